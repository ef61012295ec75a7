"""The feeds of training and evaluation: images, or cached activations of the network's frozen part.

In each phase of training the network is split where its frozen part ends (`graph_split`). The activations of a
validation image never change. Those of a training image never change within one of its `--views`. They are cached on
disk (`store`) for later epochs, phases and runs.
"""

from __future__ import annotations

from functools import partial

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from finetune.config.settings import Recipe
from finetune.data import decoded_cache
from finetune.data.dataset import Draw
from finetune.data.loader import Batch, fixed_views
from finetune.features import head
from finetune.features.policy import Caching, Phase
from finetune.features.store import Frozen, Store
from finetune.models.network import Network
from finetune.runtime.progress import tracked
from finetune.training.interrupts import Interrupts
from finetune.training.step import Feed, wrapped


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
        self.store = Store(caching, recipe, network.preprocess, accelerator, self.progress, interrupts)
        self.to_decode = set(caching.decoded)
        self.phase: Phase | None = None

    def at(self, epoch: int) -> tuple[Feed, Feed]:
        """The feeds of an epoch for training and for validation. Collective.

        The training network is wrapped for the gradients of this phase. Activations that are not cached are computed
        now. Raises `Stopped` where the run is to stop.
        """
        self._enter(epoch)
        view = self.loaders["train"].batch_sampler.view(epoch)
        return self._feed("train", self.network.model, view), self._feed("val", self.network.evaluated, 0)

    def validation(self, epoch: int) -> Feed:
        """The feed of validation alone, in an epoch. Collective."""
        self._enter(epoch)
        return self._feed("val", self.network.evaluated, 0)

    def head_features(self) -> list[Tensor]:
        """The features (N, d) of the training images from which the head is solved, one tensor per view. Collective."""
        phase, found, split = self.caching.head, [], self.loaders["train"].dataset.split
        frozen = Frozen.of(phase.split, self.network.model.eval(), pooled=True)
        for loader in fixed_views(self.loaders["train"], self.network.preprocess, *head.flips(self.recipe)):
            name = "pool" if split.pool else "train"
            values = self.store.get(frozen, name, loader, None) if phase.cached else None
            values = self.store.compute(frozen, name, loader, None) if values is None else values
            found.append(values[split.positions] if split.pool else values)
        self.network.set_phase(epoch=0)
        return found

    def images(self, name: str) -> Feed:
        """The feed of a split's images, for evaluation."""
        return Feed(self.network.evaluated, self.loaders[name], self.network.preprocess)

    def _enter(self, epoch: int) -> None:
        phase = self.caching.phase(epoch)
        if phase is not self.phase:
            self.phase, self.nets, self.activations = phase, {}, {}
            self.frozen = Frozen.of(phase.split, self.network.model) if phase.cached else None

    def _feed(self, name: str, model: nn.Module, view: int) -> Feed:
        loader, values = self.loaders[name], self._cached(name, view)
        from_cache = values is not None
        if (name, from_cache) not in self.nets:
            net = self.phase.split.suffix(model, name == "train") if from_cache else model
            self.nets[name, from_cache] = wrapped(net, self.recipe, self.accelerator) if name == "train" else net
        net = self.nets[name, from_cache]
        if not from_cache:
            self._decode(name)
            return Feed(net, loader, self.network.preprocess)
        activations = DataLoader(
            Activations(values, loader.dataset.split.labels, self.store.extractor.is_map(values)),
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

    def _cached(self, name: str, view: int) -> Tensor | None:
        """A split's activations in one view, computed now if they are not cached. None: use images."""
        if name not in self.phase.cached:
            return None
        if (name, view) not in self.activations:
            random = name == "train" and self.recipe.images.augment != "none"
            split, decode = self.loaders[name].dataset.split, partial(self._decode, name)
            if name == "val" and split.pool:
                loader = fixed_views(self.loaders[name], self.network.preprocess, hflip=False, vflip=False)[0]
                values = self.store.get(self.frozen, "pool", loader, None)
                values = None if values is None else values[split.positions]
            else:
                values = self.store.get(self.frozen, name, self.loaders[name], view if random else None, decode)
            if self.store.full:
                self.nets.clear()  # DDP's hooks on the suffix must go before the whole network is wrapped
            self.activations[name, view] = values
        return self.activations[name, view]


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
