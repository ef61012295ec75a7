"""python -m finetune VERB …"""

import importlib
import pkgutil
import sys

from finetune import commands
from finetune.errors import UserError, exit_code, unknown


def main(arguments: list[str]) -> int:
    """Run the verb; the exit code."""
    verbs = sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
    if not arguments:
        raise UserError(f"python -m finetune needs a verb: {', '.join(verbs)}.")
    verb, *rest = arguments
    if verb not in verbs:
        raise unknown("verb", verb, verbs)
    return importlib.import_module(f"finetune.commands.{verb}").main(rest)


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
