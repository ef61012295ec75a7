"""Runs from strangers: no command runs code in them, writes outside its output or passes on what they smuggle in."""

import json
import pickle
import shutil
from contextlib import nullcontext

import pytest
import torch
from serving_client import serve
from strangers import EVIL, Payload, call_all

from finetune.errors import UserError
from finetune.runtime import files

pytestmark = pytest.mark.slow


@pytest.fixture
def run(stage, trained):
    """A stranger's run, copied from a whole one."""
    return shutil.copytree(trained / "fast", stage / "stranger" / "run")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- attacks: each changes the run, or adds a file, whose path it returns --------------------------------------------
def pickled_weights(run, marker):
    (run / "model" / "model.safetensors").write_bytes(pickle.dumps(Payload(marker)))


def pickled_beside(run, marker):
    """Files of the names that other libraries unpickle."""
    checkpoint = max((run / "checkpoints").iterdir())
    for folder in (run, run / "model", checkpoint):
        for name in ("optimizer.pt", "pytorch_model.bin", "optimizer.bin", "random_states_0.pkl", "model.pkl"):
            (folder / name).write_bytes(pickle.dumps(Payload(marker)))


def pickled_scores(run, marker):
    (run / "validation.safetensors").write_bytes(pickle.dumps(Payload(marker)))


def pickled_checkpoint(run, marker):
    """With checksums that fit."""
    for checkpoint in (run / "checkpoints").iterdir():
        (checkpoint / "optimizer.safetensors").unlink()
        torch.save(Payload(marker), checkpoint / "optimizer.safetensors")
        (checkpoint / files.SUMS).unlink()
        files.write_sums(checkpoint, {})


def links_out(run, marker):
    for path in (run / "model" / "model.safetensors", run / "model" / "model.json"):
        path.rename(run.parent / path.name)
        path.symlink_to(run.parent / path.name)


def sums_outside(run, marker):
    for checkpoint in (run / "checkpoints").iterdir():
        with (checkpoint / files.SUMS).open("a") as file:
            file.write(f"{files.digest(run.parent.parent / 'precious')}  ../../../../precious\n")


def paths_in_names(run, marker):
    edit(run / "model" / "model.json", model="../../precious")
    edit(run / "config.json", model="../../precious", recipe="../../precious", output="../../precious")


def paths_in_the_tracker(run, marker):
    (run / ".tracked").write_text("../../../../precious -1\n")


def evil_class_names(run, marker):
    edit(run / "model" / "model.json", classes=[f"{EVIL}{k}" for k in range(3)])
    edit(run / "config.json", classes=[f"{EVIL}{k}" for k in range(3)])


def huge_numbers(run, marker):
    edit(run / "model" / "model.json", hidden=[10**9], head="mlp")
    edit(run / "config.json", epochs=10**18, batch_size=10**18)


ATTACKS = (
    *(pickled_weights, pickled_beside, pickled_scores, pickled_checkpoint, links_out, sums_outside, paths_in_names),
    *(paths_in_the_tracker, evil_class_names, huge_numbers),
)
REFUSED = (pickled_weights, links_out, paths_in_names, huge_numbers)  # no server starts


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_strangers_run_is_safe_with_every_command(stage, run, trained, image_folder, call, train, attack):
    out = stage / "out"
    attack(run, stage / "marker")
    image = image_folder / "val" / "red" / "00.jpg"
    before = sorted(stage.iterdir())
    commands = (
        *(("predict", run, image), ("predict", run, image, "--json"), ("predict", run, image, "--csv")),
        *(("evaluate", run), ("compare", run, trained / "slow"), ("plot", run)),
        *(("report", run, "--output", out / "page.html"), ("embed", run, image, "--output", out / "x.npz")),
        *(("export", run, "--format", "state-dict", "--output", out / "x.pth"),),
        *(("push", run, "user/name", "--dry-run", out / "push"), ("check", run, "--html", out / "check.html")),
        *(("check", run, "--fix-list", out / "fixes.csv"), ("check", run, "--json")),
        *(("bench", run, "--formats", "--batch-sizes", "1", "--turns", "2"),),
    )
    assert len(call_all(call, commands)) == 14
    flags = ("--resume", "--output", str(run), "--recipe", "finetune", "--lr", "3e-3", "--epochs", "4")
    code, _ = train(*flags, "--eval-batch-size", "3", data=image_folder)
    assert code in (0, 2)
    code, _ = train("--recipe", "finetune", "--weights", str(run), "--image-size", "32", data=image_folder)
    assert code in (0, 2)
    assert [path for path in sorted(stage.iterdir()) if not path.name.startswith(("run", "cache"))] == before
    for name in ("page.html", "check.html"):
        assert not (out / name).exists() or EVIL[:25] not in (out / name).read_text()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_strangers_run_is_safe_to_serve(stage, run, image_folder, attack):
    attack(run, stage / "marker")
    before = sorted(stage.iterdir())
    with pytest.raises(UserError) if attack in REFUSED else nullcontext(), serve(run) as server:
        image = (image_folder / "val" / "red" / "00.jpg").read_bytes()
        answers = [server.send("GET", path) for path in ("/", "/health", "/model", "/examples", "/examples/0")]
        answers.append(server.upload(image))
        assert answers[-1].status == 200
        assert "script-src" in answers[0].headers["content-security-policy"]
        for answer in answers:
            kind = answer.headers["content-type"]
            assert kind.startswith("image/") or "\x1b" not in answer.text
            assert "html" not in kind or EVIL[:25] not in answer.text
        assert not any("\x1b" in line for line in server.log)
    assert sorted(stage.iterdir()) == before
