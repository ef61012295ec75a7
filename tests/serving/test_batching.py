"""Images of several requests in one batch."""

import queue
import threading

import pytest
import torch
from support import reset_accelerate, write_model

from finetune.inference.predictor import open_run
from finetune.serving import batching


@pytest.fixture
def predictor(tmp_path):
    write_model(tmp_path / "bees")
    reset_accelerate()
    return open_run(tmp_path / "bees", "no")


@pytest.fixture
def computed(monkeypatch):
    """The sizes of the batches; each waits until `computed.go` is set."""
    sizes, probabilities = [], batching.probabilities

    def counted(predictor, images, batch_size):
        sizes.append(len(images))
        counted.go.wait(10)
        return probabilities(predictor, images, batch_size)

    counted.go, counted.sizes = threading.Event(), sizes
    monkeypatch.setattr(batching, "probabilities", counted)
    return counted


def test_images_that_wait_form_batches_and_get_the_answers_they_get_alone(predictor, computed):
    images = [torch.randint(0, 255, (3, 32, 32), dtype=torch.uint8) for _ in range(12)]
    batcher = batching.Batcher(predictor, 4, 16)
    answers = [batcher.submit(image) for image in images]
    computed.go.set()
    found = [answer.result(20) for answer in answers]
    assert len(computed.sizes) <= 4, "the first may have gone alone"
    assert max(computed.sizes) == 4
    for image, row in zip(images, found, strict=True):
        assert torch.equal(batcher.submit(image).result(20), row)
    batcher.close()


def test_the_queue_is_bounded_and_emptied_at_the_end(predictor, computed):
    batcher = batching.Batcher(predictor, 1, 2)
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    answers = [batcher.submit(image)]
    while not computed.sizes:  # until the thread has taken it
        pass
    answers += [batcher.submit(image) for _ in range(2)]
    with pytest.raises(queue.Full):
        batcher.submit(image)
    computed.go.set()
    batcher.close()
    assert all(answer.done() for answer in answers)


def test_an_error_reaches_the_requests_of_its_batch_and_no_others(predictor, computed):
    computed.go.set()
    batcher = batching.Batcher(predictor, 1, 4)
    with pytest.raises(RuntimeError):
        batcher.submit(torch.zeros(5, 32, 32, dtype=torch.uint8)).result(20)
    assert batcher.submit(torch.zeros(3, 32, 32, dtype=torch.uint8)).result(20).sum() == pytest.approx(1)
    batcher.close()


def test_a_request_that_has_ended_is_left_out(predictor, computed):
    batcher = batching.Batcher(predictor, 4, 8)
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    first = batcher.submit(image)
    while not computed.sizes:
        pass
    ended, last = batcher.submit(image), batcher.submit(image)
    assert ended.cancel()
    assert not first.cancel(), "it is being computed"
    computed.go.set()
    assert first.result(20).sum() == last.result(20).sum() == pytest.approx(1)
    assert computed.sizes == [1, 1]
    batcher.close()
