"""`push`: upload a model and its card to the Hugging Face Hub, or a page that runs it."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands import RepositoryArgument, RunArgument, empty_folder
from finetune.config.command_line import parse
from finetune.errors import UserError

if TYPE_CHECKING:
    from finetune.models.model_folder import Model


@dataclass(frozen=True)
class Options:
    """Upload a run's model and its card to the Hugging Face Hub. Log in once with: hf auth login"""

    run: RunArgument
    """A run's folder, or a model folder."""
    repo: RepositoryArgument
    """user/name or organisation/name. A new repository is created."""
    space: bool = False
    """Upload a Space instead: a page that classifies pictures, which the Hub runs."""
    dry_run: Path | None = None
    """Upload nothing: leave the files in this folder, which must be new or empty."""
    private: bool = False
    """Create a new repository as private."""
    message: str = "Fine-tuned image classifier"
    """The commit message."""


def main(arguments: list[str]) -> int:
    """Upload the model's or the Space's files in one commit and print its address, or leave them in `--dry-run`."""
    options = parse(Options, "python -m finetune push", arguments)
    if not options.dry_run and importlib.util.find_spec("huggingface_hub") is None:
        raise UserError("push needs a package that is not installed: pip install huggingface_hub")
    folder = empty_folder("--dry-run", options.dry_run)

    from finetune.models import model_folder
    from finetune.reporting import model_card, run_folder

    opened = model_folder.load(options.run)  # fails where the model is damaged
    if not (opened.folder / model_card.NAME).is_file() and (opened.folder.parent / run_folder.CONFIG).is_file():
        model_card.write(run_folder.read(opened.folder.parent), {})
    with tempfile.TemporaryDirectory(dir=folder and folder.absolute().parent, prefix=".push-") as temporary:
        content = Path(temporary) / "content"
        content.mkdir()
        (_write_space if options.space else _copy_model)(opened, options, content)
        if not folder:
            print(_upload(content, options))
            return 0
        if folder.exists():
            folder.rmdir()
        content.rename(folder)
    print(f"Nothing was uploaded. The files are in {folder}.")
    return 0


def _copy_model(opened: Model, options: Options, content: Path) -> None:
    from finetune.models import metadata, model_folder
    from finetune.reporting import model_card

    for name in (model_folder.WEIGHTS, metadata.NAME, model_card.NAME):
        if (opened.folder / name).is_file():
            shutil.copyfile(opened.folder / name, content / name)


def _write_space(opened: Model, options: Options, content: Path) -> None:
    from finetune.commands.export import CHECKED_ON, example_images
    from finetune.inference import space
    from finetune.reporting import model_card

    images = example_images(opened, None).tensor(CHECKED_ON)
    card = opened.folder / model_card.NAME
    title = options.repo.rpartition("/")[2]
    space.write(opened, content, title, card.read_text() if card.is_file() else f"# {title}", images)


def _upload(content: Path, options: Options) -> str:
    """Upload a folder in one commit; the commit's address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    kind = {"repo_type": "space"} if options.space else {}
    sdk = {"space_sdk": "gradio"} if options.space else {}
    try:
        hub = HfApi()
        hub.create_repo(options.repo, private=options.private, exist_ok=True, **kind, **sdk)
        commit = hub.upload_folder(repo_id=options.repo, folder_path=content, commit_message=options.message, **kind)
    except HFValidationError as error:
        raise UserError(f"{options.repo} is not a repository name: {error}") from error
    except Exception as error:  # the network, the Hub or the login: the user can fix each
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"the upload to {options.repo} failed: {first.rstrip('.')}. "
            f"Are you logged in (hf auth login)? Is the network up?"
        ) from error
    return commit.commit_url
