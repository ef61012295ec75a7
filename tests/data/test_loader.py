"""Loaders give the same samples whatever the workers, and batches that BatchNorm can take."""

import multiprocessing
import os
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from support import SIGNALS

from finetune.config.settings import Images, Recipe, Run, Training
from finetune.data import readers
from finetune.data.loader import _init_worker, make_loaders
from finetune.errors import UserError
from finetune.models.architectures import Preprocess

PREPROCESS = Preprocess(36, 32, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def split(image_folder):
    return readers.read(Images(data=str(image_folder)), 3, seed=0).splits


def loaders(split, workers=0, batch_size=4):
    accelerator = Accelerator(cpu=True)
    recipe = Recipe(images=Images(workers=workers), training=Training(batch_size=batch_size), run=Run(seed=3))
    return make_loaders(split, PREPROCESS, recipe, accelerator)


def test_workers_and_batch_size_change_no_sample(split):
    seen = []
    for workers, batch_size in ((0, 4), (2, 4), (0, 9)):
        loader = loaders(split, workers, batch_size)["train"]
        for epoch in (0, 1):
            loader.batch_sampler.start_at(epoch)
            batches = list(loader)
            images = torch.cat([batch.images for batch in batches])
            indices = torch.cat([batch.indices for batch in batches])
            seen.append((epoch, indices, images))
    assert len(seen) == 6
    for epoch, indices, images in seen[2:]:
        assert torch.equal(indices, seen[epoch][1])
        assert torch.equal(images, seen[epoch][2])
    assert not torch.equal(seen[0][1], seen[1][1]), "each epoch has its own order"


def test_reading_batches_leaves_the_global_generator_alone(split):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    next(iter(loaders(split)["train"]))
    assert torch.equal(torch.rand(3), expected)


def test_only_training_batches_are_mixed_and_each_with_an_image_of_its_batch(split):
    recipe = Recipe(images=Images(mixup=1.0, workers=0), training=Training(batch_size=8))
    made = make_loaders(split, PREPROCESS, recipe, Accelerator(cpu=True))
    seen = 0
    for batch in made["train"]:
        partners = batch.indices.roll(1)
        assert batch.labels_b.tolist() == [split["train"].labels[k] for k in partners]
        assert ((batch.lam >= 0) & (batch.lam <= 1)).all()
        assert batch.images.dtype == torch.uint8
        seen += len(batch.lam.unique())
    assert seen == 21, "each image has a lam of its own"
    batch = next(iter(made["val"]))
    assert batch.labels_b is None
    assert batch.lam is None


def batches_of(split, batch_size, process, processes, accumulate):
    recipe = Recipe(training=Training(batch_size=batch_size, accumulate=accumulate))
    accelerator = SimpleNamespace(process_index=process, num_processes=processes, device=torch.device("cpu"))
    return make_loaders(split, PREPROCESS, recipe, accelerator, pairs=True)["train"].batch_sampler


def test_batches_for_batchnorm_are_the_same_on_any_number_of_processes_or_refused(split):
    taken, refused = 0, 0
    for batch_size in range(2, 22):
        for processes, accumulate in ((1, 1), (2, 1), (1, 2), (2, 2), (3, 1)):
            try:
                ranks = [list(batches_of(split, batch_size, k, processes, accumulate)) for k in range(processes)]
            except UserError as error:
                smallest = int(str(error).partition("use --batch-size ")[2].split()[0].strip("."))
                assert smallest > batch_size
                assert len(batches_of(split, smallest, 0, processes, accumulate))
                refused += 1
                continue
            assert all(len(batch) >= 2 for batches in ranks for batch in batches)
            alone = batches_of(split, batch_size, 0, 1, 1)
            for first in range(alone.steps):  # stopped there, and resumed on one process
                alone.start_at(0, first)
                before = [draw.index for batches in ranks for batch in batches[: first * accumulate] for draw in batch]
                after = [draw.index for batch in alone for draw in batch]
                assert sorted(before + after) == list(range(21))
            taken += 1
    assert (taken, refused) == (80, 20)


def test_too_few_images_for_batchnorm_are_named_with_what_helps(split):
    for arguments, message in (
        ((4, 0, 1, 3), r"^--batch-size 4 with --accumulate 3 on 1 process: of 21 images, .* gets 1\. BatchNorm, .*"
                       r"needs 2: use --batch-size 7 or a smaller --accumulate\.$"),
        ((6, 0, 2, 1), r"--accumulate 1 on 2 processes: .* use --batch-size 7 or fewer processes\.$"),
        ((21, 0, 1, 11), r" gets 1\. .*: use a smaller --accumulate\.$"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            batches_of(split, *arguments)


def test_a_worker_outlives_signals_until_the_run_ends():
    fork = multiprocessing.get_context("fork")
    ending, here = fork.RawValue("b"), fork.Event()

    def work():
        _init_worker(ending, 0)
        while True:
            here.set()
            time.sleep(0.01)

    worker = fork.Process(target=work, daemon=True)
    worker.start()
    assert here.wait(30)
    for number in SIGNALS:
        os.kill(worker.pid, number)
    time.sleep(0.1)
    here.clear()
    assert here.wait(5)
    ending.value = 1
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0, "torch raises for one that a signal ended"
