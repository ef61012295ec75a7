"""The model folder: model.safetensors with the weights, and model.json with the metadata."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from finetune.config.settings import Net
from finetune.errors import UserError, no_run
from finetune.models import metadata, surgery, weights
from finetune.models.architectures import Preprocess
from finetune.models.metadata import Metadata
from finetune.runtime import files

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Model:
    """A trained model."""

    model: nn.Module
    """In evaluation mode, float32, on the CPU."""
    metadata: Metadata
    folder: Path | None
    """The model folder; None for a torchvision model as it was pretrained."""

    @property
    def net(self) -> Net:
        return self.metadata.net

    @property
    def classes(self) -> list[str]:
        return self.metadata.classes

    @property
    def preprocess(self) -> Preprocess:
        return self.metadata.preprocess


def save(folder: Path, state: dict[str, Tensor], known: Metadata) -> None:
    """Write a model folder, whole or not at all. An existing one is replaced.

    `state` is a float32 state dict with torchvision's keys.
    """
    with files.atomic(folder) as fresh:
        fresh.mkdir(parents=True)
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        files.save_tensors(tensors, fresh / WEIGHTS, metadata={"format": "pt"})
        metadata.write(fresh, known)


def find(run: Path | str) -> Path:
    """The model folder in a run's folder, or the folder itself. Raises `UserError` if there is none."""
    run = files.expanded(run)
    for folder in (run / "model", run):
        if (folder / metadata.NAME).is_file():
            return folder
    if (run / "config.json").is_file():
        raise UserError(f"{run} holds no model: the run has not finished an epoch. Resume it, or use another run.")
    what = "holds no model/model.json" if run.is_dir() else "is a file" if run.exists() else "does not exist"
    raise no_run(run, what)


def load(run: Path | str) -> Model:
    """Load the model of a run's folder or a model folder, which need not be trusted.

    No code in the folder is run and nothing outside it is read. The shapes of the weights are compared with model.json
    before memory is allocated. Raises `UserError` for a folder that has no model, is damaged, or was written by a newer
    version.
    """
    folder = find(run)
    known = metadata.read(folder)
    path = metadata.inside(folder, WEIGHTS)
    try:
        with safe_open(path, "pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            model = _empty(folder, known, shapes)
            wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
            odd = sorted(key for key in wanted.keys() | shapes.keys() if wanted.get(key) != shapes.get(key))
            if odd:
                raise _damaged(folder, f"{len(odd)} tensors do not fit {known.net.model} ({', '.join(odd[:3])})")
            state = {key: file.get_tensor(key) for key in shapes}
        weights.check_values(state, model.state_dict(), str(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder / WEIGHTS} is no whole safetensors file: {error}. Copy the folder again, to a name in UTF-8."
        ) from error
    weights.assign(model, state)
    return Model(model.eval().requires_grad_(False), known, folder)


def _empty(folder: Path, known: Metadata, shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """The model on the meta device. Sizes in model.json that no tensor has are refused first."""
    sides, net = {side for shape in shapes.values() for side in shape}, known.net
    for meaning, size in (("classes", len(known.classes)), ("channels", net.in_channels)):
        if size not in sides:
            raise _damaged(folder, f"no tensor has {size} {meaning}, as {metadata.NAME} says")
    if net.head != "linear" and not sides.issuperset(net.hidden):
        raise _damaged(folder, f"no tensor has the hidden layers {net.hidden}, as {metadata.NAME} says")
    try:
        return surgery.skeleton(net, len(known.classes), known.preprocess)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"{folder / metadata.NAME} describes a network that cannot be built: {error}") from error


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(f"{folder / WEIGHTS} and {metadata.NAME} do not belong together: {what}.")
