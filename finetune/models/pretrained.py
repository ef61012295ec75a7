"""torchvision's models as they were pretrained: 1,000 classes of ImageNet, before any fine-tuning."""

from __future__ import annotations

from pathlib import Path

import torchvision
from torch import Tensor, nn

from finetune.config.settings import Net
from finetune.errors import UserError, unknown
from finetune.models import architectures, model_folder, surgery, weights
from finetune.models.metadata import Metadata
from finetune.models.model_folder import Model
from finetune.runtime import files

IDS = Path(__file__).with_name("imagenet_ids.txt")  # the WordNet id of each class, in the models' order


def is_name(run: Path | str) -> bool:
    """Whether it names a torchvision model, and no folder has that name."""
    return str(run) in architectures.BY_NAME and not files.expanded(run).exists()


def open_model(run: Path | str, weights_of: str = "default") -> Model:
    """The model of a run's folder or of a model folder; or, by its name, a torchvision model as it was pretrained.

    `weights_of` are a torchvision model's: `default`, torchvision's, or a file. A folder with a model's name comes
    first. Raises `UserError` for a folder that is no model, and for weights that do not fit.
    """
    path, name = files.expanded(run), str(run)
    if is_name(run):
        return load(name, weights_of)
    if weights_of != "default":
        raise UserError(f"--weights {weights_of}: only a torchvision model, such as resnet50, takes other weights.")
    if not path.exists() and path.name == name:  # a single word: perhaps a model's name with a slip in it
        near = unknown("model", name, architectures.BY_NAME)
        if "Did you mean" in str(near):
            raise UserError(f"{name} is neither a run's folder nor a torchvision model: {near}")
    return model_folder.load(path)


def load(name: str, source: str = "default") -> Model:
    """A torchvision model with ImageNet's classes, in evaluation mode.

    `source` is `default`, torchvision's best weights, which are downloaded once, or a file of them. Raises `UserError`
    for weights that cannot be read, lack the last layer or do not fit.
    """
    family = architectures.find(name)
    if source in ("none", "starter") or files.expanded(source).is_dir():
        raise UserError(f"--weights {source}: {name} knows ImageNet's classes from torchvision's weights or a file.")
    state, _ = weights.read(name, source)
    if f"{family.head}.weight" not in state:
        raise UserError(
            f"--weights {source} lacks the last layer of {name} ({family.head}), and with it the classes. Such "
            f"weights are for training: python train.py --model {name} --weights {source}"
        )
    model = from_state(name, state, f"--weights {source}")
    known = Metadata(Net(name, weights=source), classes(), architectures.preprocess(name), score={})
    return Model(model, known, folder=None)


def from_state(name: str, state: dict[str, Tensor], given: str = "the state dict") -> nn.Module:
    """torchvision's own model with all of its layers, in evaluation mode; `given` names the state dict in messages."""
    family, side = architectures.find(name), architectures.preprocess(name).crop
    model = surgery.torchvision_model(Net(name), family, side, empty=True)
    weights.load(model, family, state, given, name, heads=True)
    return model.eval().requires_grad_(False)


def classes() -> list[str]:
    """The names of ImageNet's 1,000 classes, in the order of the models' outputs."""
    return list(torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"])


def imagenet_names(names: list[str]) -> list[str]:
    """The names of classes as ImageNet has them, where it has them; others stay.

    A name may be ImageNet's in any case, with underscores for blanks or in the plural (`ants`), or a WordNet id
    (`n02219486`).
    """
    known = classes()
    spelled = {name.casefold(): name for name in known} | dict(zip(IDS.read_text().split(), known, strict=True))
    found = []
    for name in names:
        word = name.strip().replace("_", " ").casefold()
        singular = (word, word.removesuffix("s"), word.removesuffix("es"))
        found.append(next((spelled[form] for form in singular if form in spelled), name))
    return found
