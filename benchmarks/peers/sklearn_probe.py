"""scikit-learn's logistic regression on the frozen features of torchvision's network.

The features are of the evaluation transform, in float32. The inverse strength C is the one of ten, 1e-5 to 1e4, that is
most accurate on the validation images; the smallest of equals. Nothing here is random, so the seed changes nothing.
"""

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from benchmarks.peers import task


@torch.inference_mode()
def extract(model: nn.Module, loader: torch.utils.data.DataLoader) -> tuple[np.ndarray, np.ndarray]:
    """The features (N, D) and labels (N,) of a loader's images."""
    place = next(model.parameters()).device
    features, labels = zip(*((model(x.to(place)).cpu(), y) for x, y in loader), strict=True)
    return torch.cat(features).numpy(), torch.cat(labels).numpy()


def main() -> None:
    flags = task.parser(__doc__)
    flags.add_argument("--standardise", action="store_true", help="scale each feature to mean 0 and deviation 1")
    given = flags.parse_args()
    task.seed_all(given.seed)
    _, samples = task.read(given.data)
    model = task.with_head(task.pretrained(given), lambda _: nn.Identity()).to(task.device()).eval()
    parts = {split: extract(model, loader) for split, loader in task.evaluation_loaders(samples, given).items()}
    if given.standardise:
        scaler = StandardScaler().fit(parts["train"][0])
        parts = {split: (scaler.transform(x), y) for split, (x, y) in parts.items()}
    warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest penalties may need more than these iterations
    best = {"val_accuracy": -1.0}
    for strength in np.logspace(-5, 4, 10):
        fit = LogisticRegression(C=strength, max_iter=1000).fit(*parts["train"])
        if (score := fit.score(*parts["val"])) > best["val_accuracy"]:
            best = {"val_accuracy": score, "test_accuracy": fit.score(*parts["test"]), "C": strength}
    task.report(best, "scikit-learn")


if __name__ == "__main__":
    main()
