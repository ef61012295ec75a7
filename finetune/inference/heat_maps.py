"""Heat maps of predictions, as pictures in a folder."""

from __future__ import annotations

import os
from pathlib import Path

from finetune.errors import UserError
from finetune.inference.predictor import Prediction, Predictor
from finetune.models.explain import make_explainer
from finetune.reporting.image_grids import heat_map
from finetune.runtime import files


class HeatMaps:
    """The pictures of a predictor's images, each under the heat map of its first class."""

    def __init__(self, folder: Path, predictor: Predictor, paths: list[str]) -> None:
        """`folder`, which is new or empty, gets the subfolders that the images have below their common folder.

        Raises `UserError` where it cannot be made.
        """
        known = predictor.metadata
        self.explainer = make_explainer(predictor.model, known.net, known.preprocess)
        absolute = [os.path.abspath(path) for path in paths]  # noqa: PTH100 (resolve would follow links)
        top = os.path.commonpath([os.path.dirname(path) for path in absolute])  # noqa: PTH120
        pairs = zip(paths, absolute, strict=True)
        # The image's extension stays too: a.jpg and a.png are two images.
        self.path_of = {path: folder / f"{os.path.relpath(there, top)}.png" for path, there in pairs}
        _make(folder)

    def write(self, prediction: Prediction) -> Path:
        """Write the picture of an image that decodes; its path. An image that is named twice has one picture."""
        path = self.path_of[prediction.path]
        if not path.exists():
            picture = heat_map(self.explainer, prediction.image, prediction.top[0][0])
            _make(path.parent)
            with files.atomic(path) as temporary:
                picture.save(temporary, "png")
        return path


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--explain: {folder} cannot be made: {error.strerror}.") from error
