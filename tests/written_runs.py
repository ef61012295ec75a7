"""Runs' folders as a training writes them, written without training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from finetune import recipes
from finetune.data import readers
from finetune.data.folds import split as fold_split
from finetune.models import metadata, model_folder, surgery
from finetune.reporting import records, run_folder
from finetune.training.evaluation import Scores

TEMPERATURE = 2.0


def write_image_set(folder: Path, classes: list[str], val: int = 2) -> Path:
    """Small grey PNGs: two training images and `val` validation images of each class, whatever its name."""
    random = np.random.default_rng(0)
    lines = ["path,label,split"]
    (folder / "images").mkdir(parents=True)
    for label, name in enumerate(classes):
        for k in range(2 + val):
            path = f"images/{label}-{k}.png"
            Image.fromarray(random.integers(0, 255, (36, 36), dtype=np.uint8)).save(folder / path)
            quoted = '"' + name.replace('"', '""') + '"'
            lines.append(f"{path},{quoted},{'train' if k < 2 else 'val'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"


def write_run(folder: Path, data: Path, name: str = "finetune", epochs: int = 3, **settings: object) -> Path:
    """A run that has ended, whose model misclassifies a third of the images; `fold` of `folds` where they are given."""
    given = {"model": "shufflenet_v2_x0_5", "weights": "none", "image_size": 32, "tracker": "none"}
    recipe = recipes.from_settings(name, {**given, "data": str(data), "epochs": epochs, **settings})
    images = replace(recipe.images, folds=None, fold=None)
    imageset = readers.read(images, 3, recipe.run.seed)
    if recipe.images.folds:
        imageset = fold_split(imageset, recipe.images, recipe.run.seed)
    count = len(imageset.classes)
    folder.mkdir(parents=True)
    about = {"classes": imageset.classes, "images": imageset.fingerprint(), "image_sizes": imageset.sizes()}
    about |= {"num_processes": 1, "device": "cpu", "mixed_precision": "no", "versions": {"torch": "2.11"}}
    config = records.settings(recipe) | about | {"git_commit": "0123456789abcdef"}
    run_folder.write_json(folder / run_folder.CONFIG, config)
    scores = {split: _scores(imageset.splits[split].labels, count) for split in imageset.splits if split != "train"}
    solved = name == "feature_extractor"
    for epoch in range(1, epochs + 1):
        record = {"epoch": epoch, "step": epoch, "lr": {"head": 0.0 if solved else 1e-3 / epoch, "stem": 1e-5}}
        record |= {"train_loss": 1 / epoch, "train_accuracy": 1 - 0.5 / epoch, "val_loss": 1.1 / epoch}
        record |= {"val_accuracy": scores["val"].accuracy, "images_per_second": 9.0, "seconds": 1.0}
        head = {"l2": 10.0**-epoch, "fold_loss": 1.2 / epoch, "fold_accuracy": 0.6, "fold_accuracy_sd": 0.05}
        run_folder.append_record(folder, record | (head if solved else {}))
    summary = {"best_epoch": epochs, "best_val_accuracy": scores["val"].accuracy, "best_val_loss": 0.5}
    summary |= {"total_seconds": 3.0, "epochs_run": 0 if solved else epochs, "temperature": TEMPERATURE}
    summary |= {f"{split}_images": len(part.labels) for split, part in imageset.splits.items()}
    summary |= {"l2": 0.1} if solved else {}
    for split, found in scores.items():
        name_of = {"val": run_folder.SCORES, "test": run_folder.TEST_SCORES}[split]
        found.save(folder / name_of, epochs, logits=split == "test")
        summary |= {"test_accuracy": found.accuracy} if split == "test" else {}
    run_folder.write_json(folder / run_folder.SUMMARY, summary)
    model, preprocess, _ = surgery.build(recipe.net, count)
    known = metadata.of_run(recipe.net, imageset.classes, preprocess, {"epoch": epochs})
    model_folder.save(folder / "model", model.state_dict(), known)
    return folder


def _scores(labels: list[int], classes: int) -> Scores:
    """Scores of a model that takes every third image for the next class."""
    known = torch.tensor(labels)
    torch.manual_seed(0)
    logits = torch.randn(len(labels), classes)
    shown = torch.where(torch.arange(len(labels)) % 3 == 0, (known + 1) % classes, known)
    logits[torch.arange(len(labels)), shown] += 4
    probabilities, predictions = logits.softmax(1).topk(min(5, classes))
    return Scores(F.cross_entropy(logits, known, reduction="none"), predictions, probabilities, known, logits)


def unfinish(run: Path) -> None:
    """Leave of a run what there is while it is running."""
    for name in (run_folder.SUMMARY, run_folder.SCORES):
        (run / name).unlink()


def change(path: Path, **values: object) -> None:
    """Set entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
