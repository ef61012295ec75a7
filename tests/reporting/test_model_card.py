"""The model card states the scores with their intervals, and escapes names that would be Markdown."""

from pathlib import Path

import pytest
import yaml

from finetune.reporting import model_card
from finetune.reporting.run_folder import RunFiles

SUMMARY = {
    **{"best_epoch": 3, "best_val_accuracy": 0.5, "best_val_loss": 0.61, "epochs_run": 5, "total_seconds": 12.3},
    **{"val_images": 10, "num_processes": 2, "device": "cuda"},
}
CONFIG = {"recipe": "finetune", "data": "/data/beetles_2", "lr": 0.001, "best_by": "accuracy", "crop_scale": 0.1}


def card(classes=("a", "b"), counts=None, head="linear", weights="default", **summary) -> str:
    metadata = {"model": "resnet18", "classes": list(classes), "preprocess": {"crop": 224}, "head": head,
                "weights": weights}  # fmt: skip
    run = RunFiles(Path("runs/mine"), CONFIG, [], SUMMARY | summary, True)
    return model_card.text(metadata, run, counts or {})


def test_the_header_is_yaml_with_the_score():
    header = yaml.safe_load(card().split("---\n")[1])
    assert header["pipeline_tag"] == "image-classification"
    (result,) = header["model-index"][0]["results"]
    assert result["dataset"] == {"name": "beetles_2", "type": "beetles_2", "split": "validation"}
    assert result["metrics"] == [{"type": "accuracy", "value": 0.5}]
    header = yaml.safe_load(card(test_accuracy=0.4, test_images=20).split("---\n")[1])
    (result,) = header["model-index"][0]["results"]
    assert (result["dataset"]["split"], result["metrics"][0]["value"]) == ("test", 0.4)


def test_scores_have_their_interval_and_the_test_score_is_the_unbiased_one():
    text = card(test_accuracy=0.4, test_images=20)
    assert "| 10 validation | 0.5000 | 0.237 to 0.763 | 0.6100 |" in text
    assert "| 20 test | 0.4000 | 0.219 to 0.613 |  |" in text
    assert "scored once at the end, give the unbiased one" in text
    assert "20 test" not in card()
    assert "slightly optimistic." in card()


def test_names_are_no_markdown():
    text = card(classes=("a_b*", "<c>|d"), counts={"train": [3, 4], "val": [1, 2]})
    assert "| a\\_b\\* | 3 | 1 |" in text
    assert "| \\<c\\>\\|d | 4 | 2 |" in text
    assert "fine-tuned on beetles\\_2" in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "with a linear\nhead, fine-tuned from torchvision's ImageNet weights."),
        ({"head": "mlp", "weights": "none"}, "with an mlp\nhead, fine-tuned from random weights."),
        ({"weights": "/home/me/w.pth"}, "fine-tuned from the weights in `w.pth`."),
    ],
)
def test_the_head_and_the_origin_of_the_weights_are_named(settings, words):
    assert words in card(**settings)


def test_many_classes_are_folded_away():
    names = [f"class {k}" for k in range(26)]
    assert "<details>" in card(names, {"train": [1] * 26})
    assert "<details>" not in card(names[:25], {"train": [1] * 25})


def test_a_solved_head_was_chosen_by_no_validation_image():
    shown = card(epochs_run=0, l2=3.2e-4, fold_loss=0.5)
    assert "strength 3.2e-04, chosen by held-out training images: the validation images chose no weights." in shown
    assert "epoch 3 of 0" not in shown
    given = card(epochs_run=0, l2=3.2e-4)
    assert "strength 3.2e-04: the validation images chose no weights." in given, "--l2 chose it"
