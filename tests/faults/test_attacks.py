"""Files from strangers: no command runs code in them, writes outside its output or passes on what they smuggle in."""

import io
import json
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

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
        *(("push", run, "user/name", "--dry-run", out / "push"),),
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
    assert seen == 10
    assert not marker.exists(), "code was run"
    assert (stage / "precious").read_text() == "precious"
    assert [path for path in sorted(stage.iterdir()) if not path.name.startswith(("run", "cache"))] == before
    page = out / "page.html"
    assert not page.exists() or EVIL[:25] not in page.read_text()


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


def test_the_payload_works(tmp_path):
    """Else no test above could fail."""
    for name, load in (("a", pickle.load), ("b", lambda file: torch.load(file, weights_only=False))):
        marker = tmp_path / f"marker-{name}"
        data = io.BytesIO()
        (pickle.dump if name == "a" else torch.save)(Payload(marker), data)
        data.seek(0)
        load(data)
        assert marker.exists()
