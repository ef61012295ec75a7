"""The Python API."""

import subprocess
import sys

import pytest
from PIL import Image
from support import CLASSES, ROOT

import finetune
from finetune.errors import UserError
from finetune.models import model_folder


def test_a_loaded_model_has_the_runs_validation_accuracy(train, image_folder):
    code, output = train("--recipe", "finetune", "--lr", "3e-3", "--epochs", "3")
    assert code == 0
    model, transform, classes = finetune.load(output)
    assert classes == list(CLASSES)
    assert not model.training
    paths = sorted((image_folder / "val").rglob("*.jpg"))
    correct = [classes[model(transform(path)).argmax()] == path.parent.name for path in paths]
    assert len(correct) == 9
    score = model_folder.load(output).metadata.score
    assert sum(correct) / 9 == pytest.approx(score["val_accuracy"])


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


@pytest.mark.slow
def test_importing_the_package_does_not_import_torch():
    check = "import sys, finetune; assert 'torch' not in sys.modules; finetune.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)
