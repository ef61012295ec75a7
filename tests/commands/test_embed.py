"""`python -m finetune embed`: the features are what the head gets, in both formats, and the picture is drawn."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support import reset_accelerate, write_model

from finetune.commands import embed
from finetune.inference import features
from finetune.inference.predictor import open_run, predict
from finetune.models.heads import after_pool
from finetune.reporting import feature_map


def test_features_labels_and_predictions_are_written(trained, call, image_folder, tmp_path):
    photos = shutil.copytree(image_folder / "val", tmp_path / "photos")
    shutil.copytree(photos / "red", photos / "elsewhere")
    code, out, err = call("embed", trained / "fast", photos, "--output", tmp_path / "f.npz")
    assert (code, err) == (0, "")
    found = np.load(tmp_path / "f.npz")
    assert out == f"12 × 1024 features in {tmp_path / 'f.npz'}\n"
    assert found["features"].shape == (12, 1024)
    assert found["features"].dtype == np.float32
    classes = found["classes"].tolist()
    assert classes == ["blue", "green", "red"]
    folders = [path.split("/")[-2] for path in found["paths"]]
    assert [classes[k] if k >= 0 else "elsewhere" for k in found["labels"]] == folders
    reset_accelerate()
    predictions = predict(open_run(trained / "fast", "run"), found["paths"].tolist(), 1, 16, 0)
    expected = [prediction.top[0] for prediction in predictions]
    assert list(zip(found["predictions"].tolist(), found["probabilities"].tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"head": "mlp", "hidden": (8,)},
        {"head": "concat_pool", "hidden": (8,), "in_channels": 1},
        {"pool_size": 1},
        {"model": "squeezenet1_1", "image_size": 64},
        {"model": "squeezenet1_1", "image_size": 64, "head": "mlp", "hidden": (8,)},
        {"model": "mnasnet0_5", "head": "concat_pool", "hidden": (8,)},
    ],
)
def test_the_features_are_the_heads_input_to_the_bit_at_any_number_of_images(settings, tmp_path, image_folder):
    write_model(tmp_path / "bees", **settings)
    reset_accelerate()
    predictor = open_run(tmp_path / "bees", "no")
    paths = sorted(map(str, image_folder.rglob("val/*/*.jpg")))
    assert len(paths) == 9
    found = features.embed(predictor, paths, 4, 0)
    for k in (0, 5, 8):
        alone = features.embed(predictor, [paths[k]], 4, 0)
        assert np.array_equal(alone.features[0], found.features[k])
        assert alone.probabilities[0] == found.probabilities[k]
    # What follows the features gives the model's logits.
    head = after_pool(predictor.model, predictor.metadata.net)
    values = torch.from_numpy(found.features)
    if isinstance(head, torch.nn.Conv2d):
        logits = head(values[..., None, None]).flatten(1)
    else:
        parent = predictor.model.get_submodule(path_of(predictor.model, head).rpartition(".")[0])
        layers = list(parent)[list(parent).index(head) :] if path_of(predictor.model, head) not in ("fc",) else [head]
        logits = torch.nn.Sequential(*layers)(values)
    assert torch.equal(logits.argmax(1), torch.from_numpy(found.predictions))
    top = logits.softmax(1).amax(1).numpy()
    np.testing.assert_allclose(top, found.probabilities, rtol=1e-4)


def path_of(model, wanted) -> str:
    return next(path for path, module in model.named_modules() if module is wanted)


def test_a_parquet_file_has_the_same(trained, call, image_folder, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("f.npz", "f.parquet"):
        assert call("embed", trained / "fast", image_folder / "val", "--output", tmp_path / name)[0] == 0
    table, arrays = parquet.read_table(tmp_path / "f.parquet").to_pydict(), np.load(tmp_path / "f.npz")
    assert np.array_equal(np.array(table["features"], np.float32), arrays["features"])
    assert table["path"] == arrays["paths"].tolist()
    assert table["label"] == arrays["classes"][arrays["labels"]].tolist()
    assert table["prediction"] == arrays["classes"][arrays["predictions"]].tolist()


def test_images_that_do_not_decode_are_reported_and_left_out(trained, call, image_folder, tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    good = image_folder / "val" / "red" / "00.jpg"
    code, _, err = call("embed", trained / "fast", tmp_path / "a.jpg", good, "--output", tmp_path / "f.npz")
    assert code == 2
    assert f"{tmp_path / 'a.jpg'}  ERROR it is no image" in err
    assert "1 of 2 images could not be read and are left out" in err
    assert np.load(tmp_path / "f.npz")["paths"].tolist() == [str(good)]


def test_a_mistake_writes_nothing(trained, call, image_folder, tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    red, output = image_folder / "val" / "red", ("--output", tmp_path / "f.npz")
    cases = [
        ((red, "--output", tmp_path / "f.txt"), "name a .npz or a .parquet"),
        ((red, "--output", tmp_path / "a.jpg"), "exists already"),
        ((tmp_path / "a.jpg", *output), "none of 1 images could be read"),
        ((red, *output, "--picture", tmp_path / "m.svg"), "name a .png"),
        ((red, *output, "--batch-size", "0"), "at least 1"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in cases:
        code, out, err = call("embed", trained / "fast", *arguments)
        assert (code, out) == (2, "")
        assert message in err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_picture_is_the_same_each_time(trained, call, image_folder, tmp_path):
    pytest.importorskip("sklearn")
    for k in (0, 1):
        names = ("--output", tmp_path / f"{k}.npz", "--picture", tmp_path / f"{k}.png")
        code, out, _ = call("embed", trained / "slow", image_folder / "val", *names)
        assert code == 0
        assert str(tmp_path / f"{k}.png") in out
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()
    few = ("--output", tmp_path / "few.npz", "--picture", tmp_path / "few.png")
    code, _, err = call("embed", trained / "slow", image_folder / "val" / "red", *few)
    assert code == 2
    assert "at least 5 images; these are 3" in err
    assert not (tmp_path / "few.npz").exists()


def test_of_many_images_the_picture_has_some_chosen_at_random(trained, call, image_folder, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(embed, "MOST", 6)
    drawn = []
    monkeypatch.setattr(feature_map, "draw", lambda path, points, images, *_: drawn.append((len(points), len(images))))
    names = ("--output", tmp_path / "a.npz", "--picture", tmp_path / "a.png")
    code, out, err = call("embed", trained / "slow", image_folder / "val", *names)
    assert code == 0, err
    assert ", of 6 images chosen at random" in out
    assert drawn == [(6, 6)]
    with np.load(tmp_path / "a.npz") as found:
        assert len(found["features"]) == 9


def test_errors_get_a_cross_and_classes_without_a_colour_share_one(tmp_path):
    points = np.random.default_rng(0).normal(size=(80, 2))
    images, labels = [torch.full((3, 48, 48), 200, dtype=torch.uint8)] * 80, np.arange(80) % 40
    shown = []
    for wrong in (0, 20):
        predictions = np.where(np.arange(80) < wrong, (labels + 1) % 40, labels)
        feature_map.draw(tmp_path / "map.png", points, images, labels, predictions, [f"class {k}" for k in range(40)])
        shown.append(np.asarray(Image.open(tmp_path / "map.png").convert("RGB"), int))
    crosses = (shown[1].sum(2) < 60).sum() - (shown[0].sum(2) < 60).sum()
    assert crosses > 20 * 50
    grey = (shown[0] == (0x6E, 0x6E, 0x6E)).all(2).sum()
    assert grey > 100
