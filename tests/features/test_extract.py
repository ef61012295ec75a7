"""Activations of all images of a split, in the images' order."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from support import reset_accelerate, write_images
from torch import nn
from torch.utils.data import DataLoader

from finetune.config.settings import Recipe
from finetune.data.loader import make_loaders
from finetune.data.types import Split
from finetune.features import graph_split
from finetune.features.extract import Extractor
from finetune.models.architectures import Preprocess

PREPROCESS = Preprocess(36, 32, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
COUNT = 21


@pytest.fixture
def loader(tmp_path):
    write_images(tmp_path / "images", COUNT // 3)
    paths = sorted(map(str, (tmp_path / "images").rglob("*.jpg")))
    reset_accelerate()
    return make_loaders({"val": Split(paths, [0] * COUNT)}, PREPROCESS, Recipe(), Accelerator(cpu=True))["val"]


@pytest.fixture
def prefix():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    model.eval().requires_grad_(False)
    model[2].requires_grad_(True)
    return graph_split.Splitter(SimpleNamespace(model=model, preprocess=PREPROCESS)).find().prefix(model)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_are_the_activations_in_the_images_order(loader, prefix, channels_last, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        extractor = Extractor(Accelerator(cpu=True), PREPROCESS, channels_last)
        rows = list(extractor.rows(prefix, extractor.batches(loader, view=0)))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert [len(part) for part in rows] == [16, 5]
    found = torch.cat(rows)  # (N, H, W, C) under channels-last
    found = found.permute(0, 3, 1, 2) if channels_last else found
    images = torch.cat([batch.images for batch in loader])
    assert len(images) == COUNT
    torch.testing.assert_close(found, prefix((images / 255 - 0.5) / 0.2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_processes_share_the_images_and_have_the_same_number_of_batches(loader, processes):
    device, rounds, seen = torch.device("cpu"), set(), []
    for process in range(processes):
        accelerator = SimpleNamespace(device=device, process_index=process, num_processes=processes)
        batches = Extractor(accelerator, PREPROCESS, True).batches(loader, view=3)
        assert isinstance(batches, DataLoader)
        rounds.add(len(batches))
        seen.append([[draw.index for draw in draws] for draws in batches.batch_sampler])
        assert all(draw.view == 3 for draws in batches.batch_sampler for draw in draws)
    assert len(rounds) == 1
    in_order = [index for parts in zip(*seen, strict=True) for part in parts for index in part]
    assert in_order[:COUNT] == list(range(COUNT))
    assert set(in_order[COUNT:]) <= {0}, "only fillers follow"
