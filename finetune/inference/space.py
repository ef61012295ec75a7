"""A Hugging Face Space: a folder with the exported model and an app that needs neither this project nor a run."""

from __future__ import annotations

import json
import platform
import warnings
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from finetune.errors import UserError
from finetune.inference import exports
from finetune.inference.export_forms import Form
from finetune.inference.exports.comparison import same_logits
from finetune.models.model_folder import Model
from finetune.reporting import model_card

GRADIO = "6.31.0"  # the version that the app was tested with
HEADER = """\
---
title: {title}
emoji: 🔍
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
---
"""
APP = '''\
"""Classify pictures with model.pt2. Needs only the packages in requirements.txt: python app.py"""

import json
import os
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read by the import

import gradio
import torch
from torchvision.transforms import v2

HERE = Path(__file__).parent
about = json.loads((HERE / "model.pt2.json").read_text())
model = torch.export.load(HERE / "model.pt2").module()
given = about["preprocess"]
side = given["crop"]
sizes = {"crop": (given["resize"], None), "squash": ((side, side), None), "pad": (None, side)}
size, longest = sizes[given["fit"]]
transform = v2.Compose(
    [
        v2.PILToTensor(),
        v2.Resize(size, v2.InterpolationMode(given["interpolation"]), longest, antialias=True),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(given["mean"], given["std"]),
        v2.CenterCrop(side),  # pads what is smaller with zeros
    ]
)


@torch.no_grad()
def classify(picture):
    """The probability of each class."""
    if picture is None:
        return None
    probabilities = model(transform(picture)[None]).softmax(1)[0]  # (classes,)
    return dict(zip(about["classes"], probabilities.tolist()))


gradio.Interface(
    classify,
    gradio.Image(type="pil", image_mode="RGB" if len(given["mean"]) == 3 else "L", label="Picture"),
    gradio.Label(num_top_classes=5, label="Class"),
    title=f"{about['model']}, {len(about['classes'])} classes",
    live=True,
    flagging_mode="never",
    api_name="predict",
).launch()
'''


def write(opened: Model, folder: Path, title: str, card: str, images: Tensor) -> None:
    """Write a Space into an empty folder: README.md with the model card, app.py, requirements.txt and the model.

    The exported model is compared with the model on `images`, normalised inputs (N, C, H, W). Raises `UserError` where
    the model cannot be exported or takes no pictures.
    """
    if opened.net.in_channels not in (1, 3):
        raise UserError(f"--space: the model takes {opened.net.in_channels} channels. A page has pictures: 1 or 3.")
    form = Form("torch-export")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own internals
        exports.write(opened, form, folder / form.file_name, same_logits(opened, form, images))
    python = ".".join(platform.python_version_tuple()[:2])
    header = HEADER.format(title=json.dumps(title), gradio=GRADIO, python=python)
    (folder / model_card.NAME).write_text(f"{header}\n{model_card.without_header(card)}\n")
    (folder / "app.py").write_text(APP)
    pinned = {"gradio": GRADIO} | {name: version(name).partition("+")[0] for name in ("torch", "torchvision")}
    (folder / "requirements.txt").write_text("".join(f"{name}=={number}\n" for name, number in pinned.items()))
