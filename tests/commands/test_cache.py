"""`python -m finetune cache`: its list, and clearing."""

import os

import torch

from finetune.data import tensor_cache


def test_cache_lists_entries_by_last_use_and_clears_them(call, tmp_path):
    folder = tmp_path / "cache"
    names = ("old", "new")
    for name in names:
        about = {"model": f"{name}_net", "place": "mean, 4", "images": "2 val", "view": "0", "data": "bees"}
        writer = tensor_cache.Writer(folder / f"{name}{tensor_cache.SUFFIX}", 2, about)
        writer.append(torch.zeros(2, 4))
        writer.commit()
        os.utime(writer.path, (1e9, 1e9))  # long ago
    assert tensor_cache.is_whole(folder / f"old{tensor_cache.SUFFIX}")  # counts as a use
    (folder / f"killed{tensor_cache.SUFFIX}.tmp").write_bytes(b"half")
    code, out, _ = call("cache", "list", "--cache-dir", folder)
    assert code == 0
    assert all(word in out for word in ("old_net", "new_net", "mean, 4", "2 val", "bees", "unfinished"))
    assert out.index("new_net") < out.index("old_net"), "the most recently used last"
    assert f"3 files, 0.0 MiB in {folder}" in out
    assert call("cache", "--cache-dir", folder)[1] == out, "list is the default"
    code, out, _ = call("cache", "clear", "--cache-dir", folder)
    assert code == 0
    assert "Deleted 0.0 MiB" in out
    assert list(folder.iterdir()) == []
    assert "0 files" in call("cache", "--cache-dir", folder)[1]
