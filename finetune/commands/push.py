"""`push`: upload a model and its card to the Hugging Face Hub, or a page that runs it."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands import ModelArgument, RepositoryArgument, WeightsOption, empty_folder
from finetune.config.command_line import parse
from finetune.errors import UserError

if TYPE_CHECKING:
    from finetune.models.model_folder import Model


@dataclass(frozen=True)
class Options:
    """Upload a run's model and its card to the Hugging Face Hub. Log in once with: hf auth login"""

    run: ModelArgument
    repo: RepositoryArgument
    """user/name or organisation/name. A new repository is created."""
    space: bool = False
    """Upload a Space instead: a page that classifies pictures, which the Hub runs."""
    weights: WeightsOption = "default"
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

    from finetune.models import pretrained
    from finetune.reporting import model_card, run_folder

    if not options.space and pretrained.is_name(options.run):
        raise UserError(f"push {options.run}: a torchvision model that is not fine-tuned is pushed as a page, --space.")
    opened = pretrained.open_model(options.run, options.weights)  # fails where the model is damaged
    if opened.folder:
        run, card = opened.folder.parent, opened.folder / model_card.NAME
        if not card.is_file() and (run / run_folder.CONFIG).is_file():
            model_card.write(run_folder.read(run), {})
    with tempfile.TemporaryDirectory(dir=folder and folder.absolute().parent, prefix=".push-") as temporary:
        content = Path(temporary) / "content"
        content.mkdir()
        if options.space:
            _write_space(opened, options, content)
        else:
            _copy_model(opened.folder, content)
        if not folder:
            print(_upload(content, options))
            return 0
        if folder.exists():
            folder.rmdir()
        content.rename(folder)
    print(f"Nothing was uploaded. The files are in {folder}.")
    return 0


def _copy_model(folder: Path, content: Path) -> None:
    from finetune.models import metadata, model_folder
    from finetune.reporting import model_card

    for name in (model_folder.WEIGHTS, metadata.NAME, model_card.NAME):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, content / name)


def _write_space(opened: Model, options: Options, content: Path) -> None:
    from finetune.commands.export import CHECKED_ON, example_images
    from finetune.inference import space
    from finetune.reporting import model_card

    images = example_images(opened, None).tensor(CHECKED_ON)
    title, card = options.repo.rpartition("/")[2], opened.folder and opened.folder / model_card.NAME
    if card is None:
        text = model_card.of_pretrained(opened.metadata)
    else:
        text = card.read_text() if card.is_file() else f"# {title}"
    space.write(opened, content, title, text, images)


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
