"""The model card: README.md of a model folder, for the Hugging Face Hub too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune.models.architectures import FITS
from finetune.models.metadata import Metadata
from finetune.reporting.run_folder import RunFiles
from finetune.runtime import files
from finetune.training import metrics

NAME = "README.md"
TUNED = ("optimizer", "lr", "schedule", "batch_size", "epochs", "augment", "image_size", "precision", "seed")
TEMPLATE = """\
{header}
# {net}, fine-tuned on {data}

Classifies images of {side} × {side} pixels, {fit}, into {count} classes
({names}). It is torchvision's `{net}` with {head}
head, fine-tuned from {origin}.

## Results

{results}

## Images

{images}

## Training

Recipe `{recipe}`: {settings}. It ran for {epochs} epochs in {seconds} s{where}. The run's `config.json` has all of it.

## Limits

It knows these classes only, and assigns any image to one of them. The interval above covers sampling error alone: it
says nothing about images from another source, camera, place or time, nor are its probabilities calibrated for those.

## Use

`model.json` holds the classes in the order of the outputs, and the preprocessing; `model.safetensors` holds the weights
under torchvision's own names for `{net}`. With the project that trained it:

```python
import finetune

model, transform, classes = finetune.load("path/to/this/folder")
probabilities = model(transform("image.jpg")).softmax(1)[0]
```
"""


def write(run: RunFiles, counts: dict[str, list[int]]) -> Path:
    """Write model/README.md; `counts` are the images of each class, by split, or empty where they are not known."""
    path = run.folder / "model" / NAME
    metadata = files.read_json(run.folder / "model" / "model.json")
    files.write_text(path, text(metadata, run, counts))
    return path


def text(metadata: dict[str, Any], run: RunFiles, counts: dict[str, list[int]]) -> str:
    """The card in Markdown, with the Hub's header in front; `metadata` is model.json."""
    classes, config, summary = metadata["classes"], run.config, run.summary
    data = Path(str(config.get("data", "images"))).name
    return TEMPLATE.format(
        header=_header(metadata["model"], data, summary),
        net=metadata["model"],
        data=_plain(data),
        count=len(classes),
        names=", ".join(map(_plain, classes[:4])) + (", …" if len(classes) > 4 else ""),
        side=metadata["preprocess"]["crop"],
        fit=FITS[metadata["preprocess"].get("fit", "crop")],
        head=f"an {metadata['head']}" if metadata["head"] == "mlp" else f"a {metadata['head']}",
        origin=origin(str(metadata["weights"])),
        results="\n".join(_results(summary, config)),
        images="\n".join(_images(classes, counts, summary)),
        recipe=config.get("recipe"),
        settings=", ".join(_settings(config)),
        epochs=summary["epochs_run"],
        seconds=f"{summary['total_seconds']:.0f}",
        where=f" on {summary['num_processes']} × {summary['device']}" if "device" in summary else "",
    )


def of_pretrained(metadata: Metadata) -> str:
    """The card of a torchvision model that was not fine-tuned, without a header."""
    net, preprocess = metadata.net, metadata.preprocess
    return (
        f"# {net.model}, as it was pretrained\n\n"
        f"Classifies images of {preprocess.crop} × {preprocess.crop} pixels, {FITS[preprocess.fit]}, into ImageNet's "
        f"{len(metadata.classes):,} classes. It is torchvision's `{net.model}` with {origin(net.weights)}, not "
        "fine-tuned. It knows these classes only, and assigns any image to one of them.\n"
    )


def without_header(card: str) -> str:
    """A model card without the Hub's header."""
    return card.split("\n---\n", 1)[-1].strip() if card.startswith("---\n") else card.strip()


def _header(net: str, data: str, summary: dict[str, Any]) -> str:
    split = "test" if "test_accuracy" in summary else "validation"
    value = summary.get("test_accuracy", summary["best_val_accuracy"])
    quoted = json.dumps(data, ensure_ascii=False)
    return "\n".join(
        [
            "---",
            "library_name: torchvision",
            "pipeline_tag: image-classification",
            "tags: [image-classification, torchvision, fine-tuned]",
            "metrics: [accuracy]",
            "model-index:",
            f"- name: {json.dumps(net)}",
            "  results:",
            "  - task: {type: image-classification}",
            f"    dataset: {{name: {quoted}, type: {quoted}, split: {split}}}",
            f"    metrics: [{{type: accuracy, value: {value:.4f}}}]",
            "---",
        ]
    )


def _results(summary: dict[str, Any], config: dict[str, Any]) -> list[str]:
    lines = ["| images | accuracy | 95 % interval (Wilson) | loss |", "| --- | --- | --- | --- |"]
    for split, accuracy, loss in (
        ("val", summary["best_val_accuracy"], f"{summary['best_val_loss']:.4f}"),
        ("test", summary.get("test_accuracy"), ""),
    ):
        count = summary.get(f"{split}_images")
        if accuracy is not None and count:
            low, high = metrics.wilson(accuracy, count)
            name = {"val": "validation", "test": "test"}[split]
            lines.append(f"| {count} {name} | {accuracy:.4f} | {low:.3f} to {high:.3f} | {loss} |")
    lines += ["", choice(summary, config)]
    return lines


def choice(summary: dict[str, Any], config: dict[str, Any]) -> str:
    """How the weights of a finished run were chosen, and whether the validation images chose them."""
    by = (
        "lowest validation loss"
        if config.get("best_by") == "loss"
        else f"highest validation {config.get('best_by', 'accuracy').replace('_', ' ')}, then lowest loss"
    )
    unbiased = (
        ": the test images, scored once at the end, give the unbiased one." if "test_accuracy" in summary else "."
    )
    if "interpolation" in summary:
        start = "the pretrained network with a solved head"
        way = f"{summary['interpolation']:.0%} of the way from {start} to those after training"
        return (
            f"The weights are {way if summary['interpolation'] else f'those of {start}'}. Among 0, 50, 75 and 100% of "
            f"the way to the weights after training, these are the nearest to half-way that score no lower than the "
            f"head on the validation images, and whose loss there, each at its own temperature, is within one standard "
            f"error of the lowest. The validation images thus chose the weights, which makes their score slightly "
            f"optimistic{unbiased}"
        )
    if summary["epochs_run"]:
        return (
            f"The weights are those of epoch {summary['best_epoch']} of {summary['epochs_run']}, which had the {by}. "
            f"The validation images thus chose the epoch, which makes their score slightly optimistic{unbiased}"
        )
    chosen = ", chosen by held-out training images" if "fold_loss" in summary else ""
    strength = f"The head was solved with an L2 penalty of strength {summary['l2']:.1e}"
    return f"{strength}{chosen}: the validation images chose no weights."


def _images(classes: list[str], counts: dict[str, list[int]], summary: dict[str, Any]) -> list[str]:
    if not counts:
        total = ", ".join(f"{summary[key]} {key.removesuffix('_images')}" for key in summary if key.endswith("_images"))
        return [f"{total or 'Their number is not known'}. Classes: {', '.join(map(_plain, classes))}."]
    totals = ", ".join(f"{sum(values)} {split}" for split, values in counts.items())
    rows = [f"| {_plain(name)} | {' | '.join(str(counts[s][k]) for s in counts)} |" for k, name in enumerate(classes)]
    table = [f"| class | {' | '.join(counts)} |", f"| --- |{' --- |' * len(counts)}", *rows]
    if len(classes) <= 25:
        return [f"{totals}.", "", *table]
    return [f"{totals}.", "", "<details><summary>Images of each class</summary>", "", *table, "", "</details>"]


def _settings(config: dict[str, Any]) -> list[str]:
    return [f"{name.replace('_', ' ')} {config[name]}" for name in TUNED if config.get(name) is not None]


def origin(weights: str) -> str:
    """What a network's first weights were, in words; a file by its name alone."""
    known = {"default": "torchvision's ImageNet weights", "none": "random weights", "starter": "the starter's weights"}
    return known.get(weights, f"the weights in `{Path(weights).name}`")


def _plain(name: str) -> str:
    """A name that is no Markdown."""
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>|#$" else sign for sign in name.replace("\n", " "))
