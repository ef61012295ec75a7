"""Images, arrays, weights and launch configs from strangers: no code in them runs, and their names stay text."""

import io
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from strangers import EVIL, Payload, call_all
from support import ROOT, write_images

pytestmark = pytest.mark.slow


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
    flag, value = attack(stage / "stranger", stage / "marker")
    before = sorted(stage.iterdir())
    code, _ = train("--recipe", "finetune", flag, str(value))
    assert code == 2
    error = capsys.readouterr().err
    assert sum(line.startswith("error: ") for line in error.splitlines()) == 1
    assert "root:" not in error, "the file's content is shown"
    assert "\x1b]0;" not in error
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
    assert call_all(call, commands) == [0, 0, 2, 2, 0, 0, 2, 0]  # the list names no image, and one is broken
    for name in ("page.html", "check.html"):
        assert "<img src=x" not in (out / name).read_text()
    assert [path for path in sorted(stage.iterdir()) if not path.name.startswith(("run", "cache"))] == before


def test_a_strangers_launch_config_runs_no_code(stage):
    code = f"!!python/object/apply:os.mkdir [{stage / 'marker'}]"
    (stage / "launch.yaml").write_text(f"distributed_type: 'NO'\nnum_processes: 1\nmixed_precision: {code}\n")
    command = (sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(stage / "launch.yaml"))
    done = subprocess.run([*command, str(ROOT / "train.py"), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "python/object/apply" in done.stderr


def test_the_payload_works(tmp_path):
    """Else no test above could fail."""
    for name, load in (("a", pickle.load), ("b", lambda file: torch.load(file, weights_only=False))):
        marker = tmp_path / f"marker-{name}"
        data = io.BytesIO()
        (pickle.dump if name == "a" else torch.save)(Payload(marker), data)
        data.seek(0)
        load(data)
        assert marker.exists()
