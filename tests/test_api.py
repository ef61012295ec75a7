"""The project from a notebook."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, ROOT
from PIL import Image
from torchvision.transforms.v2 import functional

import finetune
from finetune.errors import UserError


def test_load_gives_a_model_that_says_what_validation_said(train, image_folder):
    code, output = train("--recipe", "finetune", "--lr", "3e-3", "--epochs", "3")
    assert code == 0
    model, transform, classes = finetune.load(output)
    assert classes == list(CLASSES)
    assert not model.training
    paths = sorted((image_folder / "val").rglob("*.jpg"))
    right = [classes[model(transform(path)).argmax()] == path.parent.name for path in paths]
    assert len(right) == 9
    score = finetune.artifact.load(output).score
    assert sum(right) / 9 == pytest.approx(score["val_accuracy"])
    image = Image.open(paths[0])
    views = [str(paths[0]), paths[0], image, functional.pil_to_tensor(image), functional.to_image(image)]
    whole = transform(views)
    assert whole.shape == (5, 3, 32, 32)
    assert all(torch.equal(view, whole[0]) for view in whole[1:])
    with pytest.raises(UserError, match="does not decode"):
        transform(output / "config.json")
    with pytest.raises(ValueError, match="the image has 4"):
        transform(torch.zeros(4, 40, 40))


def test_a_recipe_its_model_and_its_plan(image_folder):
    recipe = finetune.make_recipe("finetune", model="shufflenet_v2_x0_5", weights="none", image_size=32, epochs=3,
                                  data=str(image_folder), hidden=[4])  # fmt: skip
    assert (recipe.training.epochs, recipe.net.hidden) == (3, (4,))
    model, transform = finetune.build_model(recipe, 3)
    assert model.eval()(transform(Image.new("RGB", (50, 40)))).shape == (1, 3)
    frozen, _ = finetune.build_model(finetune.make_recipe("feature_extractor"), 3)
    assert [name for name, p in frozen.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]
    plan = finetune.make_plan(recipe)
    assert plan.epochs == 3
    assert plan.facts["images"] == "21 train, 9 val"
    with pytest.raises(UserError, match=r"unknown setting 'batchsize'\. Did you mean batch_size"):
        finetune.make_recipe("finetune", batchsize=3)
    with pytest.raises(UserError, match="--lr"):
        finetune.make_recipe("finetune", lr=-1)


def test_importing_the_package_costs_nothing():
    check = "import sys, finetune; assert 'torch' not in sys.modules; finetune.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)
    assert Path(finetune.__file__).stat().st_size < 2000
