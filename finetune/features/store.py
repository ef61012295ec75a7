"""A store of activations: computed by all processes together, cached on disk (`tensor_cache`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader

from finetune.config.settings import Recipe
from finetune.data import tensor_cache
from finetune.features import graph_split
from finetune.features.extract import Extractor
from finetune.features.policy import Caching
from finetune.models.architectures import Preprocess
from finetune.runtime import devices
from finetune.training.interrupts import Interrupts

FORMAT = 3  # raise it when a change alters what is stored


class Frozen(NamedTuple):
    """The frozen part of a network, whose activations are stored."""

    prefix: fx.GraphModule
    digest: str
    place: str
    """Where it ends, in words."""

    @classmethod
    def of(cls, split: graph_split.Split, model: nn.Module, pooled: bool = False) -> Frozen:
        """The part of a model up to a split; with `pooled`, and the average over a map's positions."""
        prefix = split.prefix(model, pooled)
        return cls(prefix, graph_split.digest(prefix), f"{split.module}, {' × '.join(map(str, split.shape))}")


class Store:
    """The activations of a run's images. All methods are collective."""

    def __init__(
        self,
        caching: Caching,
        recipe: Recipe,
        preprocess: Preprocess,
        accelerator: Accelerator,
        progress: Callable[..., object],
        interrupts: Interrupts,
    ) -> None:
        self.folder, self.limit = caching.folder, caching.limit
        self.recipe, self.preprocess, self.accelerator = recipe, preprocess, accelerator
        self.progress, self.raise_if_stopped = progress, interrupts.raise_if_stopped
        self.extractor = Extractor(accelerator, preprocess, recipe.run.channels_last)
        self.fingerprints: dict[str, str] = {}
        self.full = False
        """Whether activations could not be written: the rest of the run uses images."""

    def get(
        self, frozen: Frozen, name: str, loader: DataLoader, view: int | None, before: Callable[[], None] = lambda: None
    ) -> Tensor | None:
        """A split's activations, computed now if they are not cached; `before` is called before that.

        `view` is None where the loader's transform is not random. Returns None where they cannot be cached.
        """
        if self.full:
            return None
        path, about = self._entry(frozen, name, loader, view)
        missing = self.accelerator.is_local_main_process and not tensor_cache.is_whole(path)
        if devices.anywhere(self.accelerator, missing):
            before()
            self._fill(frozen, name, loader, view, path, about)
        values = tensor_cache.read(path)
        # Another run may have evicted them meanwhile, on one machine of several.
        return None if devices.anywhere(self.accelerator, values is None) else values

    def compute(self, frozen: Frozen, name: str, loader: DataLoader, view: int | None) -> Tensor:
        """A split's activations in memory, without the cache."""
        return torch.cat([*self._rows(frozen, name, loader, view)])[: len(loader.dataset)]

    def _fill(
        self, frozen: Frozen, name: str, loader: DataLoader, view: int | None, path: Path, about: dict[str, str]
    ) -> None:
        """Compute activations, each process for its part of the images, and cache them on each machine.

        A failure to write is printed, and the rest of the run does without the cache.
        """
        count = len(loader.dataset)
        writer = tensor_cache.Writer(path, count, about) if self.accelerator.is_local_main_process else None
        try:
            for rows in self._rows(frozen, name, loader, view):
                failure = self._append(writer, rows, count) if writer else ""
                self.full = devices.anywhere(self.accelerator, bool(failure))
                if failure:
                    print(f"Activations of {name} images are not cached in {self.folder}: {failure}. Training goes on.")
                if self.full:
                    return
        finally:
            if writer:
                writer.abandon()  # does nothing after a commit

    def _rows(self, frozen: Frozen, name: str, loader: DataLoader, view: int | None) -> Iterator[Tensor]:
        title = f"frozen part, {name} images" + (f", view {view + 1}" if view is not None else "")
        batches = self.progress(self.extractor.batches(loader, view or 0), title)
        for rows in self.extractor.rows(frozen.prefix, batches):
            self.raise_if_stopped()
            yield rows

    def _entry(self, frozen: Frozen, name: str, loader: DataLoader, view: int | None) -> tuple[Path, dict[str, str]]:
        """The path of a split's activations, and the description in their header."""
        samples, recipe = loader.dataset, self.recipe
        if name not in self.fingerprints:
            self.fingerprints[name] = tensor_cache.fingerprint(samples.split.items)
        key = tensor_cache.key(
            format=FORMAT,
            prefix=frozen.digest,
            images=self.fingerprints[name],
            transform=str(samples.transform),
            preprocess=asdict(self.preprocess),
            channels=samples.channels,
            precision=self.accelerator.mixed_precision,
            channels_last=recipe.run.channels_last,
            kernels=devices.kernels(self.accelerator.device),
            **({} if view is None else {"seed": samples.seed, "view": view}),
        )
        about = {"model": recipe.net.model, "place": frozen.place, "images": f"{len(samples)} {name}"}
        return self.folder / f"{key}{tensor_cache.SUFFIX}", about | {"view": str(view or 0), "data": recipe.images.data}

    def _append(self, writer: tensor_cache.Writer, rows: Tensor, count: int) -> str:
        """Write rows, and commit after the last; the reason for a failure, or an empty string."""
        try:
            if not writer.rows:
                size = count * rows[0].numel() * rows.element_size()
                if size > self.limit:
                    raise OSError("they need more than --cache-gb")
                tensor_cache.make_room(self.folder, size, self.limit)
            writer.append(rows[: count - writer.rows])
            if writer.rows == count:
                writer.commit()
        except OSError as error:
            return error.strerror or str(error)
        return ""
