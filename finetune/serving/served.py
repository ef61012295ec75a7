"""A model that is served: its predictor, its version, its card and its examples."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain, count
from pathlib import Path

import torch
from torch import nn

from finetune.data.transforms import evaluation_transform
from finetune.inference.predictor import Predictor
from finetune.models.explain import Explainer, make_explainer
from finetune.reporting import model_card
from finetune.reporting.image_grids import heat_map
from finetune.serving import uploads
from finetune.serving.batching import Batcher
from finetune.serving.examples import Examples
from finetune.serving.images import decode

CAPACITY = 64  # images of a model that wait or are computed


@dataclass
class Served:
    """A model with the thread that computes its answers."""

    name: str
    """Of the run's folder, or of the torchvision model."""
    version: str
    predictor: Predictor
    batcher: Batcher
    card: str
    """Markdown; empty where there is none."""
    examples: Examples
    waiting: int = field(default=0, init=False)
    """Images for which there is no answer yet."""
    _explainer: Explainer | None = field(default=None, init=False)

    @contextmanager
    def room(self, images: int) -> Iterator[None]:
        """Count images as waiting inside the block. Raises `HTTPException` (503) above the capacity."""
        if self.waiting + images > CAPACITY:
            raise uploads.busy()
        self.waiting += images
        try:
            yield
        finally:
            self.waiting -= images

    def image(self, data: bytes) -> torch.Tensor:
        """An image file's content under the evaluation transform: (C, H, W). Raises `HTTPException`."""
        preprocess = self.predictor.metadata.preprocess
        return evaluation_transform(preprocess)(decode(data, len(preprocess.mean)))

    def explain(self, image: torch.Tensor, label: int) -> tuple[bytes, str]:
        """Where the model looked: a PNG of an image (C, H, W) under the heat map of a class, and the method's name."""
        known = self.predictor.metadata
        with self.batcher.model_lock:
            self._explainer = self._explainer or make_explainer(self.predictor.model, known.net, known.preprocess)
            picture = heat_map(self._explainer, image, label)
        file = BytesIO()
        picture.save(file, "PNG")
        return file.getvalue(), self._explainer.method


def serve(run: Path, predictor: Predictor, batch_size: int, taken: Collection[str] = ()) -> Served:
    """Start to serve a model; `run` is the path or name that it was opened with.

    It is called as its folder is, or as torchvision's model; a name that is `taken` gets a number.
    """
    folder = predictor.folder
    top = run if folder is None else folder.parent if predictor.has_run else folder
    card = folder / model_card.NAME if folder else None
    names = chain([top.resolve().name], (f"{top.resolve().name}-{k}" for k in count(2)))
    return Served(
        name=next(name for name in names if name not in taken),
        version=version(predictor.model),
        predictor=predictor,
        batcher=Batcher(predictor, batch_size, CAPACITY),
        card=model_card.without_header(card.read_text(errors="replace")) if card and card.is_file() else "",
        examples=Examples(top, predictor),
    )


def version(model: nn.Module) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the weights, with their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]
