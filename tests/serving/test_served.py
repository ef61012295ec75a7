"""A served model: its name, version and card."""

from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from support import reset_accelerate, write_model

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from finetune.inference.predictor import open_run
from finetune.serving import served


def test_a_model_is_called_as_its_folder_and_has_its_card(run):
    reset_accelerate()
    first = served.serve(run, open_run(run, "no"), 1)
    second = served.serve(run / "model", open_run(run / "model", "no"), 1, ["colours", "colours-2"])
    assert (first.name, second.name) == ("colours", "colours-3")
    assert first.card == second.card != ""
    assert not first.card.startswith("---")
    assert first.version == second.version
    assert first.examples.all() == second.examples.all() != []
    for one in (first, second):
        one.batcher.close()


def test_predictions_and_explanations_take_turns_at_the_model(run):
    """A hook that watches the model for an explanation would see the batches of others."""
    reset_accelerate()
    one, image = served.serve(run, open_run(run, "no"), 1), torch.zeros(3, 32, 32, dtype=torch.uint8)
    with ThreadPoolExecutor() as threads:
        with one.batcher.model_lock:
            waiting = {one.batcher.submit(image), threads.submit(one.explain, image, 0)}
            assert wait(waiting, 0.3).done == set()
        assert wait(waiting, 20).done == waiting
    one.batcher.close()


def test_a_torchvision_model_has_its_name_and_neither_card_nor_examples(tmp_path):
    torch.manual_seed(0)
    state = torchvision.models.shufflenet_v2_x0_5().state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    reset_accelerate()
    name = Path("shufflenet_v2_x0_5")
    predictor = open_run(name, "no", weights=str(tmp_path / "weights.safetensors"))
    found = served.serve(name, predictor, 1)
    assert (found.name, found.card, found.examples.all()) == (str(name), "", [])
    assert len(found.predictor.metadata.classes) == 1000
    found.batcher.close()


def test_the_version_is_that_of_the_weights(tmp_path):
    model, _ = write_model(tmp_path / "bees")
    before = served.version(model)
    assert len(before) == 16
    assert served.version(model.to(memory_format=torch.channels_last)) == before, "not of their layout"
    with torch.no_grad():
        next(model.parameters())[0] += 1e-3
    assert served.version(model) != before
