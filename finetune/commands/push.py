"""`push`: upload a model and its card to the Hugging Face Hub."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from finetune.commands import RepositoryArgument, RunArgument
from finetune.config.command_line import parse
from finetune.errors import UserError


@dataclass(frozen=True)
class Options:
    """Upload a run's model and its card to the Hugging Face Hub. Log in once with: hf auth login"""

    run: RunArgument
    """A run's folder, or a model folder."""
    repo: RepositoryArgument
    """user/name or organisation/name. A new repository is created."""
    private: bool = False
    """Create a new repository as private."""
    message: str = "Fine-tuned image classifier"
    """The commit message."""


def main(arguments: list[str]) -> int:
    """Upload model.safetensors, model.json and README.md in one commit, and print its address."""
    options = parse(Options, "python -m finetune push", arguments)
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError("push needs a package that is not installed: pip install huggingface_hub")

    from finetune.models import metadata, model_folder
    from finetune.reporting import model_card, run_folder

    opened = model_folder.load(options.run)  # fails where the model is damaged
    if not (opened.folder / model_card.NAME).is_file() and (opened.folder.parent / run_folder.CONFIG).is_file():
        model_card.write(run_folder.read(opened.folder.parent), {})

    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        hub = HfApi()
        hub.create_repo(options.repo, private=options.private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=options.repo,
            folder_path=opened.folder,
            allow_patterns=[model_folder.WEIGHTS, metadata.NAME, model_card.NAME],
            commit_message=options.message,
        )
    except HFValidationError as error:
        raise UserError(f"{options.repo} is not a repository name: {error}") from error
    except Exception as error:  # the network, the Hub or the login: the user can fix each
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"the upload to {options.repo} failed: {first.rstrip('.')}. "
            f"Are you logged in (hf auth login)? Is the network up?"
        ) from error
    print(commit.commit_url)
    return 0
