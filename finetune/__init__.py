"""Fine-tune image classifiers, and use them: `finetune.load(RUN)` gives a model, its transform and its classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.api import build_model, load, make_plan, make_recipe

__all__ = ["build_model", "load", "make_plan", "make_recipe"]


def __getattr__(name: str) -> Any:
    """Import the API on first use: torch takes seconds."""
    if name in __all__:
        from finetune import api

        return getattr(api, name)
    raise AttributeError(f"module 'finetune' has no attribute '{name}'")
