"""The bodies of requests and answers, as OpenAPI describes them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from finetune.serving.uploads import MAX_FILE, MAX_FILES

BINARY = {"type": "string", "format": "binary"}
UPLOAD = {
    "requestBody": {
        "required": True,
        "description": f"One image; or up to {MAX_FILES} as files of a form. An image has up to {MAX_FILE >> 20} MiB.",
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"file": {"type": "array", "items": BINARY}}}
            },
            "image/*": {"schema": BINARY},
        },
    }
}


class ClassProbability(BaseModel):
    """A class and its probability."""

    name: str = Field(alias="class")
    probability: float


class Prediction(ClassProbability):
    """The most probable class of an image, and the `topk` most probable ones."""

    top: list[ClassProbability]


class Predictions(BaseModel):
    """A model's predictions for the images of a request, in their order."""

    run: str
    version: str = Field(description="A hash of the weights.")
    predictions: list[Prediction]


class Explanation(BaseModel):
    """Where a model looked: the picture as the model sees it, under a heat map of what speaks for a class."""

    run: str
    version: str = Field(description="A hash of the weights.")
    name: str = Field(alias="class")
    method: str
    image: str = Field(description="A PNG file, as a data: address.")


class Model(BaseModel):
    """A model: what it knows, how images are prepared for it, and how good it was."""

    run: str
    version: str = Field(description="A hash of the weights.")
    model: str = Field(description="torchvision's name of the architecture.")
    classes: list[str]
    preprocess: dict[str, Any]
    score: dict[str, Any]
    card: str = Field(description="Markdown.")


class Models(BaseModel):
    """The models that are served."""

    models: list[Model]


class ExampleImage(BaseModel):
    """A validation image: the path of its file, its class and the run's prediction for it."""

    image: str
    true: str
    predicted: str


class ExampleImages(BaseModel):
    """The validation images that a run shows."""

    examples: list[ExampleImage]


class Health(BaseModel):
    """Whether the server answers, and how many images wait."""

    status: str
    waiting: int


class Error(BaseModel):
    """Why a request was refused."""

    error: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": Error, "description": meaning}
    for code, meaning in (
        (400, "No image, or a broken form"), (404, "No such run"), (408, "Too slow an upload"),
        (413, "Too many bytes or pixels"), (415, "No image that can be read"), (422, "A damaged image"),
        (503, "Busy: try again after Retry-After seconds"),
    )
}  # fmt: skip
