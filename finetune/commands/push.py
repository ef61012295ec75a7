"""`push`: a model and its card on the Hugging Face Hub."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import tyro

from finetune.commands import parse
from finetune.errors import UserError


@dataclass(frozen=True)
class Options:
    """Put a run's model folder, its card included, on the Hugging Face Hub. Log in once with: hf auth login"""

    run: tyro.conf.Positional[Path]
    """A run's folder, or a model folder."""
    repo: tyro.conf.Positional[str]
    """user/name or organisation/name; made where it does not exist."""
    private: bool = False
    """Make it private, where it is made."""
    message: str = "Fine-tuned image classifier"
    """The commit's message."""


def main(arguments: list[str]) -> int:
    """Upload model.safetensors, model.json and README.md in one commit and print its address; the exit code."""
    options = parse(Options, "push", arguments)
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError("push needs a package that is not here: pip install huggingface_hub")

    from finetune import artifact, card, runs

    opened = artifact.load(options.run)  # what does not open is not for others
    if not (opened.folder / card.NAME).is_file() and (opened.folder.parent / "config.json").is_file():
        card.write(runs.read(opened.folder.parent), {})

    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        hub = HfApi()
        hub.create_repo(options.repo, private=options.private, exist_ok=True)
        done = hub.upload_folder(
            repo_id=options.repo,
            folder_path=opened.folder,
            allow_patterns=[artifact.WEIGHTS, artifact.CARD, card.NAME],
            commit_message=options.message,
        )
    except HFValidationError as error:
        raise UserError(f"{options.repo} is no repository's name: {error}") from error
    except Exception as error:  # of the network, of the Hub, of the login: all for the user to mend
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"the Hub did not take {options.repo}: {first} Are you logged in (hf auth login), is the network up?"
        ) from error
    print(done.commit_url)
    return 0
