"""The order of images, and the global batches, are pure functions of (seed, epoch)."""

import pytest
import torch

from finetune.data.sampler import GlobalBatches, Shard, Views, check_pairs, smallest_micro_batch, weighted_draw
from finetune.errors import UserError


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [1, 5, 21, 24])
def test_processes_share_the_same_global_batches(count, processes):
    whole = list(GlobalBatches(count, 6, seed=0))
    parts = [list(GlobalBatches(count, 6, 0, Shard(process, processes))) for process in range(processes)]
    assert all(len(part) == len(whole) for part in parts)
    for number, batch in enumerate(whole):
        drawn = [draw for part in parts for draw in part[number] if draw.weight > 0]
        assert sorted(drawn) == sorted(batch)
        assert sorted(draw.position for draw in drawn) == list(range(len(batch)))
        assert sum(draw.weight for draw in drawn) == pytest.approx(1.0)
        assert all(part[number] for part in parts), "no process is left without work"
    assert sorted(draw.index for batch in whole for draw in batch) == list(range(count))


def test_micro_batches_of_all_processes_are_the_global_batch():
    whole = list(GlobalBatches(21, 8, seed=0))
    parts = [list(GlobalBatches(21, 8, 0, Shard(process, 2, accumulate=3))) for process in range(2)]
    assert [len(part) for part in parts] == [9, 9]
    for number, batch in enumerate(whole):
        micro_batches = [part[3 * number + k] for part in parts for k in range(3)]
        drawn = [draw for micro_batch in micro_batches for draw in micro_batch if draw.weight > 0]
        assert sorted(drawn) == sorted(batch)


def test_each_epoch_has_an_order_of_its_own_and_the_same_each_time():
    def order(epoch, seed=0):
        batches = GlobalBatches(21, 4, seed)
        batches.start_at(epoch)
        return [draw.index for batch in batches for draw in batch]

    assert order(1) == order(1)
    assert len({tuple(order(epoch, seed)) for epoch in (0, 1) for seed in (0, 1, None)}) == 5
    assert order(0, None) == order(1, None) == list(range(21))


def test_an_epoch_can_begin_at_any_of_its_batches():
    batches = GlobalBatches(21, 4, 0, Shard(accumulate=2))
    whole = list(batches)
    for first in range(batches.steps + 1):
        batches.start_at(0, first)
        assert len(batches) == 12 - 2 * first
        assert list(batches) == whole[2 * first :]


def test_views_take_turns_while_depths_are_frozen():
    assert [Views(2, frozen_epochs=5).of(epoch) for epoch in range(8)] == [0, 1, 0, 1, 0, 5, 6, 7]
    assert [Views(0, frozen_epochs=5).of(epoch) for epoch in range(3)] == [0, 1, 2]
    batches = GlobalBatches(4, 4, 0, views=Views(2, frozen_epochs=3))
    batches.start_at(2)
    assert {draw.view for batch in batches for draw in batch} == {0}


@pytest.mark.parametrize(
    ("count", "batch_size", "pairs", "expected"),
    [
        (9, 4, True, [4, 5]),
        (10, 4, True, [4, 4, 2]),
        (23, 10, True, [10, 13]),
        (24, 10, True, [10, 14]),
        (25, 10, True, [10, 10, 5]),
        (20, 10, True, [10, 10]),
        (5, 2, True, [2, 3]),
        (5, 3, True, [3, 2]),
        (3, 10, True, [3]),
        (1, 4, True, [1]),
        (9, 4, False, [4, 4, 1]),
    ],
)
def test_a_last_batch_of_less_than_half_the_size_joins_the_one_before_where_batchnorm_is_trained(
    count, batch_size, pairs, expected
):
    batches = GlobalBatches(count, batch_size, 0, pairs=pairs)
    assert [len(batch) for batch in batches] == expected
    assert (batches.steps, batches.largest) == (len(expected), max(expected))


def test_no_batch_joins_another_in_evaluation():
    assert [len(batch) for batch in GlobalBatches(9, 4, seed=None, pairs=True)] == [4, 4, 1]


def test_launches_whose_micro_batches_have_one_image_are_refused_and_no_others():
    refused = 0
    for count in range(1, 30):
        for batch_size in range(1, 16):
            for processes, accumulate in ((1, 1), (2, 1), (1, 2), (2, 2), (3, 1)):
                shards = [Shard(process, processes, accumulate) for process in range(processes)]
                micro_batches = [b for shard in shards for b in GlobalBatches(count, batch_size, 0, shard, pairs=True)]
                smallest = min(sum(draw.weight > 0 for draw in micro_batch) for micro_batch in micro_batches)
                assert smallest_micro_batch(count, batch_size, processes * accumulate) == smallest
                if smallest >= 2:
                    check_pairs(count, batch_size, accumulate, processes)
                else:
                    with pytest.raises(UserError, match="BatchNorm"):
                        check_pairs(count, batch_size, accumulate, processes)
                    refused += 1
    assert 0 < refused < 29 * 15 * 5


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3), (3, 2)])
@pytest.mark.parametrize("count", [21, 22, 25])
def test_an_epoch_that_goes_on_over_another_number_of_processes_draws_each_image_once(count, before, after):
    drawn = []
    for processes, accumulate, first, last in ((before, 1, 0, 2), (after, 2, 2, None)):
        for process in range(processes):
            batches = GlobalBatches(count, 6, 0, Shard(process, processes, accumulate), pairs=True)
            batches.start_at(1, first)
            taken = list(batches)[: None if last is None else last * accumulate]
            drawn += [draw.index for batch in taken for draw in batch if draw.weight > 0]
    assert sorted(drawn) == list(range(count))


def epoch_of(batches, epoch):
    batches.start_at(epoch)
    return [draw for batch in batches for draw in batch]


def test_balanced_batches_draw_each_class_equally_often():
    labels = torch.tensor([0] * 180 + [1] * 20)
    batches = GlobalBatches(200, 50, seed=0, image_weights=1 / torch.bincount(labels)[labels])
    drawn = torch.tensor([draw.index for epoch in range(20) for draw in epoch_of(batches, epoch)])
    assert len(drawn) == 4000
    assert labels[drawn].float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_balanced_drawing_has_no_limit_and_favours_none():
    count = 2**24 + 2**22  # more than float32 counts
    drawn = weighted_draw(torch.ones(count), 10_000, torch.Generator().manual_seed(0))
    assert drawn.double().mean().item() / count == pytest.approx(0.5, abs=0.01)
    assert (drawn >= 2**24).double().mean().item() == pytest.approx(0.2, abs=0.02)
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0])
    drawn = weighted_draw(weights, 10_000, torch.Generator().manual_seed(0)).bincount(minlength=5)
    assert (drawn / 10_000).tolist() == pytest.approx([0, 0.25, 0, 0.75, 0], abs=0.02)
    assert drawn[weights == 0].tolist() == [0, 0, 0]


def test_too_small_a_micro_batch_for_batchnorm_is_refused_before_anything_is_written(train, capsys):
    flags = ("--recipe", "finetune", "--batch-size", "4", "--accumulate", "3")
    code, output = train(*flags)
    assert code == 2
    assert "BatchNorm, which is trained here, needs 2: use --batch-size" in capsys.readouterr().err
    assert not output.exists()
    assert train(*flags, "--recipe", "feature_extractor", "--epochs", "1")[0] == 0, "no BatchNorm is trained"
