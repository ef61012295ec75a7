"""The reader is picked by what `--data` names."""

import subprocess
import sys

import pytest
from support import ROOT

from finetune.config.settings import Images
from finetune.data import readers
from finetune.errors import UserError


def test_readers_import_without_torch():
    code = "import sys; from finetune.data import readers; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_channels_that_only_arrays_have_are_refused_for_files(train, capsys, tmp_path):
    assert train("--in-channels", "4")[0] == 2
    assert "--in-channels 4: the images of --data" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("run")] == []
    (tmp_path / "set.csv").write_text("path,label\n")
    for path in (tmp_path / "set.csv", "cifar10"):
        with pytest.raises(UserError, match=r"are grey \(1\) or colour \(3\)"):
            readers.read(Images(data=str(path)), 2, seed=0)
    with pytest.raises(UserError, match="does not exist"):
        readers.read(Images(data=str(tmp_path / "wrong.npz")), 4, seed=0)
