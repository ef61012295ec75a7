"""Activations at the frontier of what is frozen: computed once for each input, and fed to the rest in its place.

In each phase of the training the network is cut where its frozen start ends (`frontier`). Of a validation image the
activations are always the same; of a training image they are while `--views` views of it take turns. They are kept on
disk (`store`), where later epochs, phases and runs find them. DINOv2 and VISSL have tools of their own that compute
features once; here the usual training does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from finetune import cache, freezing, frontier, hardware, pixels, store
from finetune.archs import Preprocess
from finetune.data import Batch
from finetune.recipe import Recipe
from finetune.samples import Draw, to_input

FORMAT = 3  # raise it when a change alters what is stored


class Feed(NamedTuple):
    """A network and what it is fed with: images, or their activations at the frontier and the rest of the network."""

    net: nn.Module
    loader: DataLoader
    preprocess: Preprocess | None
    """For `samples.to_input`; None for activations."""


class Feeds:
    """What training and validation are fed with, epoch by epoch.

    It depends on nothing but the epoch and the weights of what is frozen: a run may begin with any epoch.
    """

    def __init__(
        self,
        caches: cache.Caches,
        recipe: Recipe,
        model: nn.Module,
        kept: nn.Module,
        preprocess: Preprocess,
        loaders: dict[str, DataLoader],
        accelerator: Accelerator,
        shown: Callable[[DataLoader, str], Iterator[Any]],
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`caches` say what to keep, `kept` is the model that is validated.

        `shown` iterates over a loader under a title, for the user; `stop` says, for all processes alike, whether to
        leave what is being computed.
        """
        self.stop, self.stopped = stop, False
        self.failed = False  # in keeping activations: the rest of the run goes on from images
        self.phases, self.recipe, self.model, self.kept = caches.phases, recipe, model, kept
        self.preprocess, self.loaders, self.accelerator, self.shown = preprocess, loaders, accelerator, shown
        self.folder, self.most = cache.folder(recipe.run.cache_dir), caches.most
        self.channels_last = recipe.run.channels_last
        # Images that are computed together: always as many, since their number enters the rounding. On a CPU a few,
        # whose activations stay in its caches.
        self.together = 16 if accelerator.device.type == "cpu" else 64
        self.images: dict[str, str] = {}
        self.to_decode = set(caches.decoded)
        self.phase: cache.Phase | None = None

    def at(self, epoch: int) -> tuple[Feed, Feed] | None:
        """For training, wrapped for the gradients that the model now asks for, and for validation.

        None if `stop` said so while something was computed.
        """
        phase = next(phase for phase in self.phases if epoch in phase.epochs)
        if phase is not self.phase:
            self.phase, self.nets, self.values = phase, {}, {}
            self.prefix = phase.cut.prefix(self.model) if phase.splits else None
            self.digest = frontier.digest(self.prefix) if phase.splits else ""
        view = self.loaders["train"].batch_sampler.view(epoch)
        train = self._feed("train", self.model, view)
        val = self._feed("val", self.kept, 0) if train else None
        return (train, val) if train and val else None

    def _feed(self, name: str, model: nn.Module, view: int) -> Feed | None:
        loader, values = self.loaders[name], self._activations(name, view)
        if self.stopped:
            return None
        cut_here = values is not None
        if (name, cut_here) not in self.nets:
            net = self.phase.cut.suffix(model, name == "train") if cut_here else model
            compiled = self.recipe.run.compile
            self.nets[name, cut_here] = freezing.wrap(self.accelerator, net, compiled) if name == "train" else net
        net = self.nets[name, cut_here]
        if not cut_here:
            self._keep_decoded(name)
            return None if self.stopped else Feed(net, loader, self.preprocess)
        features = DataLoader(
            Features(values, loader.dataset.split.labels, self._as_maps(values)),
            batch_sampler=loader.batch_sampler,
            collate_fn=_as_it_is,
            pin_memory=loader.pin_memory,
            generator=torch.Generator(),
        )
        return Feed(net, features, None)

    def _keep_decoded(self, name: str) -> None:
        """Before a split's images are read: let them be kept decoded, where that was decided."""
        if name not in self.to_decode:
            return
        self.to_decode.remove(name)
        samples, accelerator = self.loaders[name].dataset, self.accelerator
        about = {"model": "decoded images", "images": f"{len(samples)} {name}", "data": self.recipe.images.data}
        there = pixels.keep(samples, self.folder, self.most, about, accelerator, self.shown, self._asked)
        if not there and not self.stopped and accelerator.is_main_process:
            print(f"Decoded {name} images are not kept: they do not fit within --cache-gb, or on the disk.")

    def _asked(self) -> bool:
        """Whether to stop; nothing else is begun from then on."""
        self.stopped = self.stop()
        return self.stopped

    def _as_maps(self, values: Tensor) -> bool:
        return self.channels_last and values.ndim == 4

    def _activations(self, name: str, view: int) -> Tensor | None:
        """Of one split in one view: those that are kept, else computed now. None where none are or can be."""
        if name not in self.phase.splits or self.failed:
            return None
        if (name, view) not in self.values:
            path, about = self._entry(name, view)
            missing = self.accelerator.is_local_main_process and not store.whole(path)
            if self._anywhere(missing):
                self._fill(name, view, path, about)
            if self.stopped or self.failed:
                return None
            values = store.read(path)
            # Another run may have made room in between, on one machine of several.
            self.values[name, view] = None if self._anywhere(values is None) else values
        return self.values[name, view]

    def _anywhere(self, found: bool) -> bool:
        """Whether it is so on any process."""
        return hardware.anywhere(self.accelerator, found)

    def _entry(self, name: str, view: int) -> tuple[Path, dict[str, str]]:
        """Where the activations are kept, and what is said about them there."""
        samples, net = self.loaders[name].dataset, self.recipe.net
        if name not in self.images:
            self.images[name] = store.fingerprint(samples.split.items)
        drawn = {"seed": samples.seed, "view": view} if name == "train" else {}
        if name == "train" and self.recipe.images.augment == "none":
            drawn = {}
        key = store.key(
            format=FORMAT,
            prefix=self.digest,
            images=self.images[name],
            transform=str(samples.transform),
            preprocess=asdict(self.preprocess),
            channels=samples.channels,
            precision=self.accelerator.mixed_precision,
            channels_last=self.channels_last,
            device=self.accelerator.device.type,
            kernels=hardware.kernels(self.accelerator.device),
            **drawn,
        )
        place = f"{self.phase.cut.place}, {' × '.join(map(str, self.phase.cut.shape))}"
        about = {"model": net.model, "place": place, "images": f"{len(samples)} {name}", "view": str(view)}
        return self.folder / f"{key}{store.SUFFIX}", about | {"data": self.recipe.images.data}

    def _fill(self, name: str, view: int, path: Path, about: dict[str, str]) -> None:
        """Compute one split's activations, each process its part of the images, and keep them on each machine.

        Where they cannot be written, nothing more is kept in this run.
        """
        self._keep_decoded(name)
        if self.stopped:
            return
        accelerator, loader = self.accelerator, self.loaders[name]
        count, process, processes = len(loader.dataset), accelerator.process_index, accelerator.num_processes
        rounds = math.ceil(count / (self.together * processes))
        starts = [(k * processes + process) * self.together for k in range(rounds)]
        # A process that has nothing left computes the first image again, since all take part in each exchange.
        draws = [
            [Draw(view, k, 1.0, k) for k in range(start, min(start + self.together, count)) or (0,)] for start in starts
        ]
        images = DataLoader(
            loader.dataset,
            batch_sampler=draws,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            worker_init_fn=loader.worker_init_fn,
            generator=torch.Generator(),
        )
        autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
        prefix = frontier.cast(self.prefix, autocast) if autocast else self.prefix
        failed, done = "", 0
        writer = store.Writer(path, count, about) if accelerator.is_local_main_process else None
        title = f"frozen part, {name} images" + (f", view {view + 1}" if name == "train" else "")
        for values in self._computed(prefix, self.shown(images, title)):
            if self._asked():
                if writer:
                    writer.abandon()
                return
            rows = self._rows(values)
            if writer:
                try:
                    if not done:
                        self.folder.mkdir(parents=True, exist_ok=True)
                        size = count * rows[0].numel() * rows.element_size()
                        if size > self.most:
                            raise OSError("more than --cache-gb")
                        store.make_room(self.folder, size, self.most)
                    writer.append(rows[: count - done])
                    if done + len(rows) >= count:
                        writer.commit()
                except OSError as error:
                    failed = error.strerror or str(error)
                    print(f"Activations cannot be kept in {self.folder} ({failed}): the run goes on from the images.")
            if self._anywhere(bool(failed)):
                self.failed = True
                self.nets.clear()  # DDP's hooks on the rest of the network must go before the whole is wrapped
                if writer:
                    writer.abandon()
                return
            done += len(rows)

    def _computed(self, prefix: nn.Module, batches: Iterator[Batch]) -> Iterator[Tensor]:
        """The activations of each batch, in order; on a CPU of several batches at once, each on a core of its own.

        All cores on one batch wait for each other at every layer, and for the next batch's images.
        """
        cores = torch.get_num_threads()
        if self.accelerator.device.type != "cpu" or cores == 1:
            yield from (self._compute(prefix, batch) for batch in batches)
            return
        torch.set_num_threads(1)  # in the pool's threads too, which take it from here
        try:
            with ThreadPoolExecutor(cores) as pool:
                waiting: deque[Future[Tensor]] = deque()
                for batch in batches:
                    waiting.append(pool.submit(self._compute, prefix, batch))
                    if len(waiting) > cores:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
        finally:
            torch.set_num_threads(cores)

    @torch.inference_mode()
    def _compute(self, prefix: nn.Module, batch: Batch) -> Tensor:
        x = to_input(batch.images, self.preprocess, self.accelerator.device, self.channels_last)  # (N, C, H, W)
        with self.accelerator.autocast():
            return prefix(x)  # (N, …)

    def _rows(self, values: Tensor) -> Tensor:
        """What goes to the file: all processes' activations, in the images' order, on the CPU."""
        values = values.permute(0, 2, 3, 1) if self._as_maps(values) else values
        if self.accelerator.num_processes > 1:
            short = self.together - len(values)
            values = torch.cat([values, values.new_zeros(short, *values.shape[1:])]) if short else values
            # As bytes, since not every backend exchanges every type.
            raw = self.accelerator.gather(values.contiguous().view(len(values), -1).view(torch.uint8))
            values = raw.view(values.dtype).view(-1, *values.shape[1:])
        return values.cpu().contiguous()


class Features(Dataset):
    """Activations of one split in one view, fetched a batch at a time."""

    def __init__(self, values: Tensor, labels: list[int], maps: bool) -> None:
        """`values` are (N, …), maps (N, H, W, C)."""
        self.values, self.labels, self.maps = values, torch.tensor(labels), maps

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, draws: list[Draw]) -> Batch:
        _, indices, shares, _, places = zip(*draws, strict=True)
        chosen = torch.tensor(indices)
        values = self.values[chosen]
        values = values.permute(0, 3, 1, 2) if self.maps else values  # (N, C, H, W), channels-last in memory
        return Batch(values, self.labels[chosen], torch.tensor(shares), chosen, torch.tensor(places), None, None)


def _as_it_is(batch: Batch) -> Batch:
    return batch
