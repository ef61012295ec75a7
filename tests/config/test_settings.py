"""Settings: their defaults, and a meaning for each."""

import ast
import inspect
from dataclasses import fields

from finetune.config import settings
from finetune.config.schema import wrong_values
from finetune.config.settings import SECTIONS, Images, Recipe


def test_every_default_is_within_its_bounds():
    sections = [getattr(Recipe(), name) for name in SECTIONS]
    assert len(sections) == 5
    assert [wrong_values(section) for section in sections] == [[]] * 5


def test_every_setting_has_its_meaning_beneath_it():
    told = 0
    for name in SECTIONS:
        kind = type(getattr(Recipe(), name))
        (body,) = ast.parse(inspect.getsource(kind)).body
        for one, following in zip(body.body, [*body.body[1:], None], strict=True):
            if isinstance(one, ast.AnnAssign):
                assert isinstance(following, ast.Expr), one.target.id
                text = " ".join(ast.literal_eval(following.value).split())
                assert text.endswith((".", "…")), text
                told += 1
    assert told == sum(len(fields(getattr(Recipe(), name))) for name in SECTIONS) > 50


def test_no_two_sections_share_a_name():
    names = [field.name for name in SECTIONS for field in fields(getattr(Recipe(), name))]
    assert len(names) == len(set(names)), "flags and config.json have no sections"


def test_named_sets_lie_in_the_users_cache_folder(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert str(Images().data_root) == "~/.cache/finetune/data"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert str(Images().data_root) == "/elsewhere/finetune/data"


def test_settings_import_nothing_of_the_project():
    modules = [node.module for node in ast.walk(ast.parse(inspect.getsource(settings))) if hasattr(node, "module")]
    assert len(modules) >= 3
    assert not any(module.startswith("finetune") for module in modules)
