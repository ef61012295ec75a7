"""Files from strangers: no command runs code in them, writes outside its output or passes on what they smuggle in."""

import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from serving_client import serve
from support import ROOT, write_images

from finetune.errors import UserError
from finetune.runtime import files

pytestmark = pytest.mark.slow

EVIL = "<script>alert(1)</script>\x1b]0;owned\x07\x1b[2J"


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.fixture
def stage(tmp_path, trained):
    """A stranger's run, copied from a whole one, in a folder with something to spoil beside it."""
    shutil.copytree(trained / "fast", tmp_path / "stranger" / "run")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out").mkdir()
    return tmp_path


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


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_strangers_run_is_safe_with_every_command(stage, trained, image_folder, call, train, attack):
    run, out, marker = stage / "stranger" / "run", stage / "out", stage / "marker"
    attack(run, marker)
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
    seen = 0
    for command in commands:
        code, said, error = call(*command)
        assert code in (0, 2), (command, error)
        assert "\x1b]0;" not in said + error, f"{command[0]} let an escape sequence through"
        seen += 1
    flags = ("--resume", "--output", str(run), "--recipe", "finetune", "--lr", "3e-3", "--epochs", "4")
    code, _ = train(*flags, "--eval-batch-size", "3", data=image_folder)
    assert code in (0, 2)
    code, _ = train("--recipe", "finetune", "--weights", str(run), "--image-size", "32", data=image_folder)
    assert code in (0, 2)
    assert seen == 14
    assert not marker.exists(), "code was run"
    assert (stage / "precious").read_text() == "precious"
    assert [path for path in sorted(stage.iterdir()) if not path.name.startswith(("run", "cache"))] == before
    for name in ("page.html", "check.html"):
        assert not (out / name).exists() or EVIL[:25] not in (out / name).read_text()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_strangers_run_is_safe_to_serve(stage, image_folder, attack):
    run, marker = stage / "stranger" / "run", stage / "marker"
    attack(run, marker)
    before = sorted(stage.iterdir())
    try:
        with serve(run) as server:
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
    except UserError:
        pass  # such a run is not served
    assert not marker.exists(), "code was run"
    assert (stage / "precious").read_text() == "precious"
    assert sorted(stage.iterdir()) == before


# ---- data and weights ------------------------------------------------------------------------------------------------
def weights_pth(folder, marker):
    torch.save({"state_dict": Payload(marker)}, folder / "a.pth")
    return "--weights", folder / "a.pth"


def weights_of_an_old_torch(folder, marker):
    torch.save({"a": Payload(marker)}, folder / "a.pth", _use_new_zipfile_serialization=False)
    return "--weights", folder / "a.pth"


def weights_bare_pickle(folder, marker):
    (folder / "a.pth").write_bytes(pickle.dumps(Payload(marker)))
    return "--weights", folder / "a.pth"


def object_arrays(folder, marker):
    for name in ("x_train", "y_train", "x_test", "y_test"):
        np.save(folder / f"{name}.npy", np.array([Payload(marker)], dtype=object), allow_pickle=True)
    return "--data", folder


def object_archive(folder, marker):
    arrays = {name: np.array([Payload(marker)], dtype=object) for name in ("x_train", "y_train")}
    np.savez(folder / "a.npz", **arrays)
    return "--data", folder / "a.npz"


def archive_with_paths(folder, marker):
    held = io.BytesIO()
    np.save(held, np.zeros((4, 8, 8, 3), np.uint8))
    with zipfile.ZipFile(folder / "a.npz", "w") as file:
        for name in ("../../precious.npy", "/tmp/precious.npy", "x_train.npy", "y_train.npy"):
            file.writestr(name, held.getvalue())
    return "--data", folder / "a.npz"


def images_that_are_links(folder, marker):
    for name in ("a", "b"):
        (folder / name).mkdir()
        for k in range(3):
            (folder / name / f"{k}.jpg").symlink_to("/etc/passwd")
    return "--data", folder


def list_of_files_outside(folder, marker):
    rows = [f"/etc/passwd,{name}" for name in "aabb"]
    (folder / "a.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    return "--data", folder / "a.csv"


def tensors_by_evil_names(folder, marker):
    save_file({f"{EVIL}.weight": torch.zeros(2)}, folder / "a.safetensors")
    return "--weights", folder / "a.safetensors"


INPUTS = (
    *(weights_pth, weights_of_an_old_torch, weights_bare_pickle, object_arrays, object_archive, archive_with_paths),
    *(images_that_are_links, list_of_files_outside, tensors_by_evil_names),
)


@pytest.mark.parametrize("attack", INPUTS, ids=lambda attack: attack.__name__)
def test_strangers_data_and_weights_end_with_one_message(stage, train, capsys, attack):
    folder, marker = stage / "stranger", stage / "marker"
    shutil.rmtree(folder)
    folder.mkdir()
    flag, value = attack(folder, marker)
    before = sorted(stage.iterdir())
    code, _ = train("--recipe", "finetune", flag, str(value))
    assert code == 2
    error = capsys.readouterr().err
    assert sum(line.startswith("error: ") for line in error.splitlines()) == 1
    assert "root:" not in error, "the file's content is shown"
    assert "\x1b]0;" not in error
    assert not marker.exists(), "code was run"
    assert sorted(stage.iterdir()) == before


def test_images_and_classes_by_evil_names_stay_text(stage, call, train, capsys):
    evil = "<img src=x onerror=alert(1)>\x1b]0;owned\x07\x1b[2J"
    images = stage / "stranger" / evil
    write_images(images / "train", 4, classes=("red", "green", "blue"))
    write_images(images / "val", 2, seed=1, classes=("red", "green", "blue"))
    for folder in images.glob("*/*"):
        for path in folder.iterdir():
            path.rename(folder / f"{evil}{path.name}")
        folder.rename(folder.with_name(f"{evil}{folder.name}"))
    image = next((images / "val").glob("*/*"))
    (stage / "list.csv").write_text(f"path,action,new_label,reason\n../../precious,remove,,{evil}\n")
    out, before = stage / "out", sorted(stage.iterdir())
    code, run = train("--recipe", "finetune", "--epochs", "1", data=images, pictures=True)
    assert code == 0
    assert "\x1b]0;" not in "".join(capsys.readouterr())
    (images / "broken\x1b]0;owned.jpg").write_bytes(b"")
    commands = (
        *(("check", images, "--html", out / "check.html"), ("check", images, "--fix-list", out / "fixes.csv")),
        *(("check", images, "--exclude", stage / "list.csv"), ("predict", run, images), ("evaluate", run)),
        *(("report", run, "--output", out / "page.html"), ("embed", run, images, "--output", out / "x.npz")),
        ("predict", run, image, "--explain", out / "maps"),
    )
    seen = 0
    for command in commands:
        code, said, error = call(*command)
        assert code in (0, 2), (command, error)
        assert "\x1b]0;" not in said + error, f"{command[0]} let an escape sequence through"
        seen += 1
    assert seen == 8
    for name in ("page.html", "check.html"):
        assert "<img src=x" not in (out / name).read_text()
    assert (stage / "precious").read_text() == "precious"
    assert [path for path in sorted(stage.iterdir()) if not path.name.startswith(("run", "cache"))] == before


def test_a_strangers_launch_config_runs_no_code(stage):
    marker = stage / "marker"
    (stage / "launch.yaml").write_text(
        f"distributed_type: 'NO'\nnum_processes: 1\nmixed_precision: !!python/object/apply:os.mkdir [{marker}]\n"
    )
    command = (sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(stage / "launch.yaml"))
    done = subprocess.run([*command, str(ROOT / "train.py"), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "python/object/apply" in done.stderr
    assert not marker.exists(), "code was run"


def test_the_payload_works(tmp_path):
    """Else no test above could fail."""
    for name, load in (("a", pickle.load), ("b", lambda file: torch.load(file, weights_only=False))):
        marker = tmp_path / f"marker-{name}"
        data = io.BytesIO()
        (pickle.dump if name == "a" else torch.save)(Payload(marker), data)
        data.seek(0)
        load(data)
        assert marker.exists()
