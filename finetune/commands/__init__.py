"""The commands of `python -m finetune`: a module each, with `main(arguments) -> exit code`.

A command's options are a dataclass; what several commands take is declared here, with its help. torch is imported after
the command line is parsed, so that help and mistakes are quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import tyro

from finetune.config.settings import Bounds
from finetune.errors import UserError
from finetune.runtime import files

RunArgument: TypeAlias = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
ModelArgument: TypeAlias = Annotated[
    tyro.conf.Positional[Path],
    tyro.conf.arg(
        metavar="RUN",
        help="A run's folder, a model folder, or the name of a torchvision model, as it was pretrained on ImageNet.",
    ),
]
WeightsOption: TypeAlias = Annotated[
    str,
    tyro.conf.arg(
        help="Of a torchvision model by name: default, torchvision's, downloaded once; or a .safetensors or .pth file."
    ),
]
RunsArgument: TypeAlias = Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN ...")]
DataOption: TypeAlias = Annotated[
    str | None, tyro.conf.arg(help="Where the run's images are now, if they have been moved.", metavar="DATA")
]
ImagesArgument: TypeAlias = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE ...")]
BatchSize: TypeAlias = Annotated[int, Bounds(at_least=1, at_most=65_536)]
RepositoryArgument: TypeAlias = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="REPOSITORY")]


def new_file(flag: str, path: Path | None) -> Path | None:
    """The path of a file to write, `~` expanded. Raises `UserError` where it exists or its folder does not."""
    if path is None:
        return None
    path = files.expanded(path)
    if path.exists() or path.is_symlink():  # a link may lead nowhere
        raise UserError(f"{flag} {path} exists already. Name another, or delete it.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {path.parent}. Make it first.")
    return path


def empty_folder(flag: str, path: Path | None) -> Path | None:
    """The path of a folder to write into, `~` expanded. Raises `UserError` where something is there already."""
    if path is None:
        return None
    path = files.expanded(path)
    if (path.exists() or path.is_symlink()) and not path.is_dir():
        raise UserError(f"{flag} {path} is a file. Name a folder.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {path.parent}. Make it first.")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"{flag} {path} is not empty. Name a new folder, or empty it.")
    return path
