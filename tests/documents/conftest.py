import shutil

import numpy as np
import pytest
import torchvision
from safetensors.torch import save_file
from support import ROOT, reset_accelerate


@pytest.fixture(scope="module")
def trained(image_folder, tmp_path_factory):
    """A run's folder; nothing may be written into it."""
    import train as script

    folder = tmp_path_factory.mktemp("documents") / "RUN"
    reset_accelerate()
    flags = f"--recipe feature_extractor --data {image_folder} --output {folder} --tracker none --precision no"
    flags += " --epochs 1 --model shufflenet_v2_x0_5 --image-size 32 --weights none"
    assert script.main(flags.split()) == 0
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The user's cache folder, in which the starter set is drawn once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def checkout(trained, cache, image_folder, tmp_path, monkeypatch):
    """The working folder: the project as links, a run called RUN, image.jpg, and images of each kind in path/to."""
    folder = tmp_path / "checkout"
    (folder / "path" / "to").mkdir(parents=True)
    for name in ("train.py", "finetune", "launch", "benchmarks", "requirements.txt"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(trained, folder / "RUN")
    shutil.copy(image_folder / "val" / "red" / "00.jpg", folder / "image.jpg")
    for name in ("train/ants", "train/bees", "val/ants", "val/bees"):
        (folder / "hymenoptera_data" / name).mkdir(parents=True)
        shutil.copy(folder / "image.jpg", folder / "hymenoptera_data" / name)
    untrained = torchvision.models.squeezenet1_0(weights=None)
    save_file(untrained.state_dict(), folder / "squeezenet1_0.safetensors")
    photos = folder / "path" / "to" / "photos"
    photos.symlink_to(image_folder)
    rows = [
        f"photos/{path.relative_to(image_folder)},{path.parent.name}" for path in image_folder.glob("train/*/*.jpg")
    ]
    (photos.parent / "labels.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    (folder / "fixes.csv").write_text("path,action,new_label\ntrain/red/00.jpg,remove,\n")
    pixels, labels = np.zeros((12, 40, 40), np.uint8), np.arange(12) % 3
    np.savez(photos.parent / "arrays.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return folder
