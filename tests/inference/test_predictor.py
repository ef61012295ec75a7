"""A model on its device, and its predictions for image files."""

import pytest
import torch
from support import reset_accelerate, write_images, write_model
from torch import nn

from finetune.config.settings import Recipe
from finetune.inference.predictor import Mirrored, open_run, predict


@pytest.fixture
def paths(tmp_path):
    write_images(tmp_path / "images", 3)
    return sorted(map(str, (tmp_path / "images").rglob("*.jpg")))


def test_the_logits_under_tta_are_finite_where_probabilities_underflow():
    logits = torch.tensor([[400.0, 0.0], [0.0, 1.0]])
    found = Mirrored(lambda x: logits)(torch.zeros(2, 3, 4, 4))
    torch.testing.assert_close(found, logits.log_softmax(1))


def test_a_mirror_image_gets_the_same_prediction_under_tta():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    x = torch.randn(2, 3, 4, 4)
    logits = Mirrored(model)(x)  # (N, classes)
    expected = (model(x).softmax(1) + model(x.flip(-1)).softmax(1)) / 2
    torch.testing.assert_close(logits.softmax(1), expected)
    torch.testing.assert_close(Mirrored(model)(x.flip(-1)), logits)
    assert not torch.allclose(model(x.flip(-1)), model(x))


def test_a_model_folder_without_its_run_opens_with_the_default_settings(tmp_path):
    model, preprocess = write_model(tmp_path / "bees")
    reset_accelerate()
    predictor = open_run(tmp_path / "bees", "no")
    assert not predictor.has_run
    assert predictor.recipe == Recipe()
    assert predictor.metadata.classes == ["a", "b", "c"]
    assert (predictor.metadata.net.model, predictor.metadata.preprocess) == ("shufflenet_v2_x0_5", preprocess)
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(predictor.model(x), model(x))
        torch.testing.assert_close(open_run(tmp_path / "bees", "no", tta=True).model(x), Mirrored(model)(x))


def test_a_prediction_does_not_depend_on_the_other_images(tmp_path, paths):
    write_model(tmp_path / "bees")
    reset_accelerate()
    predictor = open_run(tmp_path / "bees", "no")
    together = list(predict(predictor, paths, 5, batch_size=4, workers=0))
    assert len(together) == 9
    for prediction in together:
        (alone,) = predict(predictor, [prediction.path], 5, batch_size=4, workers=0)
        assert alone.top == prediction.top
        assert len(alone.top) == 3, "no more than there are classes"
        assert sum(probability for _, probability in alone.top) == pytest.approx(1)


def test_an_image_that_does_not_decode_yields_its_error_in_its_place(tmp_path, paths):
    write_model(tmp_path / "bees")
    (tmp_path / "bad.jpg").write_text("no image")
    reset_accelerate()
    given = [paths[0], str(tmp_path / "bad.jpg"), paths[1]]
    found = list(predict(open_run(tmp_path / "bees", "no"), given, 1, batch_size=2, workers=0))
    assert [prediction.path for prediction in found] == given
    assert [bool(prediction.error) for prediction in found] == [False, True, False]
    assert [len(prediction.top) for prediction in found] == [1, 0, 1]
    assert found[1].image is None
    assert found[0].image.shape == (3, 32, 32)
