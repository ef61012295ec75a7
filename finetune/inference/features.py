"""The features of image files: what a model's head gets."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from finetune.errors import UserError
from finetune.inference.predictor import Predictor, predict
from finetune.models.heads import after_pool
from finetune.runtime import files

THUMBNAIL = 48  # pixels


@dataclass(frozen=True)
class Features:
    """The features and predictions of N images that decode, in the order of their paths."""

    features: np.ndarray
    """(N, D) float32: the input of the head; the mean over the map where the head is a convolution."""
    paths: list[str]
    predictions: np.ndarray
    """(N,) int64: the most probable class."""
    probabilities: np.ndarray
    """(N,) float32, of `predictions`."""
    labels: np.ndarray
    """(N,) int64: the class that an image's folder is named after; -1 where it is named after none."""
    thumbnails: dict[str, Tensor]
    """(C, h, h) uint8 each, by path, of those asked for."""
    errors: dict[str, str]
    """Why each other image does not decode, by path."""


def embed(
    predictor: Predictor, paths: list[str], batch_size: int, workers: int, thumbnails: Container[str] = ()
) -> Features:
    """Compute the features of image files, in the batches of `predict`, and keep thumbnails of those paths.

    Raises `UserError` where no image decodes.
    """
    known = predictor.metadata
    label_of = {name: label for label, name in enumerate(known.classes)}
    batch: Iterator[Tensor] = iter(())  # the features of the last batch

    def keep(module: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal batch
        x = inputs[0].float()
        batch = iter((x.mean((2, 3)) if x.ndim == 4 else x).cpu())  # (N, D)

    rows: list[tuple[Any, ...]] = []
    small, errors = {}, {}
    with after_pool(predictor.model, known.net).register_forward_pre_hook(keep):
        for prediction in predict(predictor, paths, 1, batch_size, workers):
            if prediction.error:
                errors[prediction.path] = prediction.error
                continue
            label = label_of.get(Path(prediction.path).absolute().parent.name, -1)
            rows.append((next(batch).numpy(), prediction.path, *prediction.top[0], label))
            if prediction.path in thumbnails:
                resized = functional.resize(prediction.image, [THUMBNAIL, THUMBNAIL], antialias=True)
                small[prediction.path] = resized
    if not rows:
        raise UserError(f"none of {len(paths)} images could be read: {next(iter(errors.values()))}")
    features, kept, predictions, probabilities, labels = zip(*rows, strict=True)
    return Features(np.stack(features), list(kept), np.array(predictions, np.int64),
                    np.array(probabilities, np.float32), np.array(labels, np.int64), small, errors)  # fmt: skip


def save(found: Features, classes: list[str], path: Path) -> None:
    """Write the features as `.npz`, with class numbers and their names, or as `.parquet`, with class names."""
    with files.atomic(path) as temporary:
        if path.suffix == ".npz":
            with temporary.open("wb") as file:  # savez would add its extension to another name
                np.savez(
                    file,
                    features=found.features,
                    paths=np.array(found.paths),
                    predictions=found.predictions,
                    probabilities=found.probabilities,
                    labels=found.labels,
                    classes=np.array(classes),
                )
            return
        import pyarrow
        from pyarrow import parquet

        count = found.features.shape[1]
        values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(found.features.ravel()), count)
        columns = {
            "path": found.paths,
            "features": values,
            "prediction": [classes[k] for k in found.predictions],
            "probability": found.probabilities,
            "label": pyarrow.array([classes[k] if k >= 0 else None for k in found.labels], pyarrow.string()),
        }
        parquet.write_table(pyarrow.table(columns), temporary)


def plane(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Two coordinates (N, 2) per image: t-SNE (van der Maaten & Hinton 2008) of the first 50 principal components."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count = min(50, *features.shape)
    reduced = PCA(count, random_state=seed).fit_transform(features)
    return TSNE(perplexity=min(30.0, (len(features) - 1) / 3), random_state=seed).fit_transform(reduced)
