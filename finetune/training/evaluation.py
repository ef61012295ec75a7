"""Exact scores of a model on a split, on any number of processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetune.data.transforms import to_input
from finetune.errors import UserError
from finetune.runtime import files
from finetune.training import metrics
from finetune.training.metrics import Predictions
from finetune.training.step import Feed

FIELDS = ("losses", "predictions", "probabilities", "labels")


@dataclass(frozen=True)
class Scores:
    """A model's output for every image of a split, in the split's order: N images, k = min(5, classes)."""

    losses: Tensor
    """(N,) float32, cross-entropy in nats."""
    predictions: Tensor
    """(N, k) int64, classes, most probable first."""
    probabilities: Tensor
    """(N, k) float32, of `predictions`."""
    labels: Tensor
    """(N,) int64."""
    logits: Tensor | None = None
    """(N, classes) float32; None where the scores were read from a file without them."""

    def at_temperature(self, temperature: float) -> Scores:
        """The scores with all logits divided by a temperature."""
        logits = self.logits / temperature
        losses = F.cross_entropy(logits, self.labels, reduction="none")
        return Scores(losses, self.predictions, logits.softmax(1).gather(1, self.predictions), self.labels, logits)

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return self.losses.double().mean().item()

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, in [0, 1]."""
        return (self.predictions[:, 0] == self.labels).double().mean().item()

    @property
    def top5(self) -> float:
        """Top-5 accuracy (top-k where there are fewer classes), in [0, 1]."""
        return (self.predictions == self.labels[:, None]).any(1).double().mean().item()

    def record(self, best_by: str) -> dict[str, float]:
        """The fields of a record of metrics.jsonl; AUROC, which takes long, where it is `best_by`.

        Needs the logits.
        """
        matrix = metrics.confusion_matrix(self.first(), self.logits.shape[1])
        found = {
            "val_loss": self.loss,
            "val_accuracy": self.accuracy,
            "val_top5": self.top5,
            "val_macro_f1": metrics.macro_f1(matrix),
            "val_balanced_accuracy": metrics.balanced_accuracy(matrix),
        }
        if best_by == "auroc":
            found["val_auroc"] = metrics.auroc(self.logits, self.labels)
        return found

    def first(self) -> Predictions:
        """The first predictions alone, as arrays."""
        return Predictions(
            self.labels.numpy(), self.predictions[:, 0].numpy(), self.probabilities[:, 0].double().numpy()
        )

    def errors(self, classes: list[str], names: list[str]) -> list[dict[str, Any]]:
        """The images that are misclassified, largest loss first; `names` are those of all images."""
        wrong = (self.predictions[:, 0] != self.labels).nonzero().flatten().tolist()
        return [
            {
                "image": names[k],
                "true": classes[self.labels[k]],
                "predicted": classes[self.predictions[k, 0]],
                "probability": self.probabilities[k, 0].item(),
                "loss": self.losses[k].item(),
            }
            for k in sorted(wrong, key=lambda k: -self.losses[k].item())
        ]

    def save(self, path: Path, epoch: int, logits: bool = False) -> None:
        """Write the scores as safetensors, with their epoch (from 1); the logits, which may be large, if asked for."""
        with files.atomic(path) as temporary:
            tensors = {name: getattr(self, name).contiguous() for name in (*FIELDS, *(["logits"] if logits else []))}
            files.save_tensors(tensors, temporary, metadata={"epoch": json.dumps(epoch)})

    @classmethod
    def load(cls, path: Path) -> tuple[Scores, int]:
        """Scores that `save` wrote, and their epoch. Raises `UserError` where the file is damaged."""
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in FIELDS}
                tensors |= {"logits": file.get_tensor("logits")} if "logits" in file.keys() else {}  # noqa: SIM118
                return cls(**tensors), int(json.loads(file.metadata()["epoch"]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: {error}. Delete it, and the images are scored again.") from error


@torch.inference_mode()
def evaluate(
    feed: Feed,
    accelerator: Accelerator,
    channels_last: bool,
    raise_if_stopped: Callable[[], None] = lambda: None,
    fill: int = 0,
) -> Scores:
    """Score a network on its loader's split. Collective: all processes get the scores of the whole split.

    With `fill`, batches are padded to that many images: how an image's logits are rounded depends on the number of
    images in its batch, and on nothing else about them.

    Results are gathered per image and reduced afterwards, in the split's order, so that neither the number of
    processes nor the evaluation batch enters the metrics. `raise_if_stopped` is called before each batch.
    """
    model, device = feed.net.eval(), accelerator.device
    if accelerator.num_processes > 1:  # BatchNorm's statistics are each process's own: those of the main one are used
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))
    count = len(feed.loader.dataset)
    integers, reals = [], []
    for batch in feed.loader:
        raise_if_stopped()
        x = to_input(padded(batch.images, fill), feed.preprocess, device, channels_last)  # (N, C, H, W)
        labels = batch.labels.to(device)
        with accelerator.autocast():
            logits = model(x).float()[: len(labels)]  # (N, classes)
        losses = F.cross_entropy(logits, labels, reduction="none")  # (N,)
        probabilities, predictions = logits.softmax(1).topk(min(5, logits.shape[1]))  # (N, k)
        # A process without an image of its own in the last batch got one of weight 0: index -1 leaves it out.
        indices = torch.where(batch.sample_weights > 0, batch.indices, -1).to(device)
        integers.append(torch.cat([indices[:, None], labels[:, None], predictions], 1))
        reals.append(torch.cat([losses[:, None], probabilities, logits], 1))
    integer, real = torch.cat(integers), torch.cat(reals)
    integer = accelerator.gather(accelerator.pad_across_processes(integer, pad_index=-1)).cpu()
    real = accelerator.gather(accelerator.pad_across_processes(real)).cpu()
    kept = integer[:, 0] >= 0
    integer, real = integer[kept], real[kept]
    order = integer[:, 0].argsort()
    integer, real = integer[order], real[order]
    assert torch.equal(integer[:, 0], torch.arange(count)), f"{len(integer)} results for {count} images"
    probable = integer.shape[1] - 2  # classes of which the probability is kept
    return Scores(real[:, 0], integer[:, 2:], real[:, 1 : probable + 1], integer[:, 1], real[:, probable + 1 :])


def padded(images: Tensor, size: int) -> Tensor:
    """Images (N, …) with the last one repeated up to `size` images; unchanged where there are more."""
    missing = size - len(images)
    return torch.cat([images, images[-1:].expand(missing, *images.shape[1:])]) if missing > 0 else images
