"""The feeds of training and evaluation: images, or cached activations of the network's frozen part.

In each phase of training the network is split where its frozen part ends (`graph_split`). The activations of a
validation image never change. Those of a training image never change within one of its `--views`. They are cached on
disk (`tensor_cache`) for later epochs, phases and runs.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from finetune.config.settings import Recipe
from finetune.data import decoded_cache, tensor_cache
from finetune.data.dataset import Draw
from finetune.data.loader import Batch
from finetune.features import graph_split
from finetune.features.extract import Extractor
from finetune.features.policy import Caching, Phase
from finetune.models.network import Network
from finetune.runtime import devices
from finetune.runtime.progress import tracked
from finetune.training.interrupts import Interrupts
from finetune.training.step import Feed

FORMAT = 3  # raise it when a change alters what is stored


class Feeds:
    """The feeds of training and validation, epoch by epoch.

    They depend on the epoch and the frozen weights alone: a run may begin with any epoch.
    """

    def __init__(
        self,
        caching: Caching,
        recipe: Recipe,
        network: Network,
        loaders: dict[str, DataLoader],
        accelerator: Accelerator,
        console: Console,
        interrupts: Interrupts,
    ) -> None:
        self.caching, self.recipe, self.network, self.loaders = caching, recipe, network, loaders
        self.accelerator, self.raise_if_stopped = accelerator, interrupts.raise_if_stopped
        self.progress = partial(tracked, console=console)
        self.extractor = Extractor(accelerator, network.preprocess, recipe.run.channels_last)
        self.fingerprints: dict[str, str] = {}
        self.to_decode = set(caching.decoded)
        self.full = False  # activations could not be written: the rest of the run uses images
        self.phase: Phase | None = None

    def at(self, epoch: int) -> tuple[Feed, Feed]:
        """The feeds of an epoch for training and for validation. Collective.

        The training network is wrapped for the gradients of this phase. Activations that are not cached are computed
        now. Raises `Stopped` where the run is to stop.
        """
        phase = self.caching.phase(epoch)
        if phase is not self.phase:
            self.phase, self.nets, self.activations = phase, {}, {}
            self.prefix = phase.split.prefix(self.network.model) if phase.cached else None
            self.digest = graph_split.digest(self.prefix) if phase.cached else ""
        view = self.loaders["train"].batch_sampler.view(epoch)
        return self._feed("train", self.network.model, view), self._feed("val", self.network.evaluated, 0)

    def images(self, name: str) -> Feed:
        """The feed of a split's images, for evaluation."""
        return Feed(self.network.evaluated, self.loaders[name], self.network.preprocess)

    def _feed(self, name: str, model: nn.Module, view: int) -> Feed:
        loader, values = self.loaders[name], self._cached(name, view)
        from_cache = values is not None
        if (name, from_cache) not in self.nets:
            net = self.phase.split.suffix(model, name == "train") if from_cache else model
            compiled = self.recipe.run.compile
            self.nets[name, from_cache] = devices.wrap(self.accelerator, net, compiled) if name == "train" else net
        net = self.nets[name, from_cache]
        if not from_cache:
            self._decode(name)
            return Feed(net, loader, self.network.preprocess)
        activations = DataLoader(
            Activations(values, loader.dataset.split.labels, self.extractor.is_map(values)),
            batch_sampler=loader.batch_sampler,
            collate_fn=_unchanged,
            pin_memory=loader.pin_memory,
            generator=torch.Generator(),
        )
        return Feed(net, activations, None)

    def _decode(self, name: str) -> None:
        """Before a split's images are read for the first time: cache them decoded, if the policy says so."""
        if name not in self.to_decode:
            return
        self.to_decode.remove(name)
        samples, caching = self.loaders[name].dataset, self.caching
        about = {"model": "decoded images", "images": f"{len(samples)} {name}", "data": self.recipe.images.data}
        failure = decoded_cache.use(
            samples, caching.folder, caching.limit, about, self.accelerator, self.progress, self.raise_if_stopped
        )
        if failure and self.accelerator.is_main_process:
            print(f"Decoded {name} images are not cached in {caching.folder}: {failure}.")

    # ---- activations -------------------------------------------------------------------------------------------------
    def _cached(self, name: str, view: int) -> Tensor | None:
        """A split's activations in one view, computed now if they are not cached. None: use images."""
        if name not in self.phase.cached or self.full:
            return None
        if (name, view) not in self.activations:
            path, about = self._entry(name, view)
            missing = self.accelerator.is_local_main_process and not tensor_cache.is_whole(path)
            if devices.anywhere(self.accelerator, missing):
                self._fill(name, view, path, about)
            values = tensor_cache.read(path)
            # Another run may have evicted them meanwhile, on one machine of several.
            found = None if devices.anywhere(self.accelerator, values is None) else values
            self.activations[name, view] = found
        return self.activations[name, view]

    def _entry(self, name: str, view: int) -> tuple[Path, dict[str, str]]:
        """The path of a split's activations, and the description in their header."""
        samples, recipe, split = self.loaders[name].dataset, self.recipe, self.phase.split
        if name not in self.fingerprints:
            self.fingerprints[name] = tensor_cache.fingerprint(samples.split.items)
        random = name == "train" and recipe.images.augment != "none"
        key = tensor_cache.key(
            format=FORMAT,
            prefix=self.digest,
            images=self.fingerprints[name],
            transform=str(samples.transform),
            preprocess=asdict(self.network.preprocess),
            channels=samples.channels,
            precision=self.accelerator.mixed_precision,
            channels_last=recipe.run.channels_last,
            kernels=devices.kernels(self.accelerator.device),
            **({"seed": samples.seed, "view": view} if random else {}),
        )
        place = f"{split.module}, {' × '.join(map(str, split.shape))}"
        about = {"model": recipe.net.model, "place": place, "images": f"{len(samples)} {name}", "view": str(view)}
        return self.caching.folder / f"{key}{tensor_cache.SUFFIX}", about | {"data": recipe.images.data}

    def _fill(self, name: str, view: int, path: Path, about: dict[str, str]) -> None:
        """Compute a split's activations, each process for its part of the images, and cache them on each machine.

        A failure to write is printed, and the run continues from images.
        """
        self._decode(name)
        count = len(self.loaders[name].dataset)
        writer = tensor_cache.Writer(path, count, about) if self.accelerator.is_local_main_process else None
        title = f"frozen part, {name} images" + (f", view {view + 1}" if name == "train" else "")
        batches = self.progress(self.extractor.batches(self.loaders[name], view), title)
        try:
            for rows in self.extractor.rows(self.prefix, batches):
                self.raise_if_stopped()
                failure = self._append(writer, rows, count) if writer else ""
                if self._give_up(name, failure):
                    return
        finally:
            if writer:
                writer.abandon()  # does nothing after a commit

    def _append(self, writer: tensor_cache.Writer, rows: Tensor, count: int) -> str:
        """Write rows, and commit after the last; the reason for a failure, or an empty string."""
        folder, limit = self.caching.folder, self.caching.limit
        try:
            if not writer.rows:
                size = count * rows[0].numel() * rows.element_size()
                if size > limit:
                    raise OSError("they need more than --cache-gb")
                tensor_cache.make_room(folder, size, limit)
            writer.append(rows[: count - writer.rows])
            if writer.rows == count:
                writer.commit()
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def _give_up(self, name: str, failure: str) -> bool:
        """Whether writing failed on any machine: then all processes continue from images. Collective."""
        self.full = devices.anywhere(self.accelerator, bool(failure))
        if self.full:
            self.nets.clear()  # DDP's hooks on the suffix must go before the whole network is wrapped
        if failure:
            print(f"Activations of {name} images are not cached in {self.caching.folder}: {failure}. Training goes on.")
        return self.full


class Activations(Dataset):
    """Activations of a split in one view, fetched a batch at a time."""

    def __init__(self, values: Tensor, labels: list[int], is_map: bool) -> None:
        """`values` are (N, …); feature maps are (N, H, W, C)."""
        self.values, self.labels, self.is_map = values, torch.tensor(labels), is_map

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, draws: list[Draw]) -> Batch:
        """The batch of these images."""
        _, indices, weights, _, positions = zip(*draws, strict=True)
        chosen = torch.tensor(indices)
        values = self.values[chosen]
        values = values.permute(0, 3, 1, 2) if self.is_map else values  # (N, C, H, W), channels last in memory
        return Batch(values, self.labels[chosen], torch.tensor(weights), chosen, torch.tensor(positions), None, None)


def _unchanged(batch: Batch) -> Batch:
    return batch
