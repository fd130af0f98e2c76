"""Shards are whole or not there, the same bytes with any number of processes, and go on after any end."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maemm.contract.errors import MaemmError
from maemm.data.shards.source import open_shards
from maemm.tasks.data.pack import data_index, data_shards


def digest(folder: Path) -> dict[str, str]:
    files = [path for path in folder.iterdir() if path.suffix in (".tar", ".bin", ".json") and path.name[0] != "."]
    return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in files}


def test_any_number_of_processes_gives_the_same_bytes(pictures, shards, tmp_path):
    packed = data_shards(pictures, tmp_path / "two", samples=9, workers=2)
    assert digest(tmp_path / "two") == digest(shards)
    assert (packed.samples, packed.shards, packed.written) == (40, 5, 5)
    again = data_shards(pictures, tmp_path / "two", samples=9, workers=0)
    assert (again.samples, again.shards, again.written) == (40, 5, 0)


def test_it_goes_on_after_a_kill(pictures, shards, tmp_path):
    """What a killed process left is no shard, and the end is the same."""
    code = (
        "import os, time\nfrom maemm.data.shards import pack\nreplace = os.replace\n"
        "def slow(*paths):\n    time.sleep(0.3)\n    replace(*paths)\npack.os.replace = slow\n"
        f"from maemm.tasks.data.pack import data_shards\ndata_shards({str(pictures)!r}, 'out', samples=9, workers=0)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    while not (tmp_path / "out" / "shard-000001.tar").exists():
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert "index.json" not in left and "shard-000004.tar" not in left
    with pytest.raises(MaemmError, match="there is no index of shards"):
        open_shards(str(tmp_path / "out"), name="image")
    done = data_shards(pictures, tmp_path / "out", samples=9, workers=0)
    assert 0 < done.written < 5
    assert digest(tmp_path / "out") == digest(shards)


def test_unreadable_files_are_left_out_and_tried_again(tmp_path, pictures):
    source = tmp_path / "pictures"
    source.mkdir()
    for number, path in enumerate(sorted(pictures.rglob("a.*.png"))[:6]):
        (source / f"{number}.png").write_bytes(path.read_bytes())
    os.symlink("/nowhere/at/all", source / "9.png")
    packed = data_shards(source, tmp_path / "out", samples=4, workers=0)
    assert [bad.id for bad in packed.bad] == ["9.png"] and packed.samples == 6
    (line,) = (tmp_path / "out" / "bad_samples.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "9.png"
    (source / "9.png").unlink()
    (source / "9.png").write_bytes((source / "1.png").read_bytes())
    packed = data_shards(source, tmp_path / "out", samples=4, workers=0)
    assert (packed.samples, packed.written, packed.bad) == (7, 1, [])
    assert not (tmp_path / "out" / "bad_samples.jsonl").exists()


def test_a_folder_with_other_settings_is_refused(pictures, shards):
    with pytest.raises(MaemmError, match="holds a pack with other settings .samples: 9 -> 8."):
        data_shards(pictures, shards, samples=8, workers=0)


def test_a_size_limit(pictures, tmp_path):
    packed = data_shards(pictures, tmp_path / "out", megabytes=1, workers=0)
    assert packed.shards == 1
    assert packed.as_dict()["samples"] == 40


def test_what_is_no_file_is_refused(tmp_path):
    import numpy as np

    np.save(tmp_path / "a.npy", np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(MaemmError, match="a sample is no file"):
        data_shards(tmp_path / "a.npy", tmp_path / "out", workers=0)


def test_a_full_disk(pictures, tmp_path, monkeypatch):
    from maemm.data.shards import pack

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack.os, "fsync", full)
    with pytest.raises(MaemmError, match="cannot write to .*No space left on device.*make room"):
        data_shards(pictures, tmp_path / "out", workers=0)
    assert not [path for path in (tmp_path / "out").iterdir() if "tar" in path.name]


@pytest.mark.parametrize("content", [b"", b"text" * 1000], ids=["empty", "text"])
def test_a_broken_shard_is_not_indexed(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(MaemmError, match="a shard cannot be indexed .*a.tar"):
        data_index(tmp_path, workers=0)
    assert not (tmp_path / "index.json").exists()
    with pytest.raises(MaemmError, match="there are no shards to index"):
        data_index(tmp_path / "nothing", workers=0)


def test_the_command_line(pictures, tmp_path, capsys):
    from maemm.__main__ import main

    out = str(tmp_path / "out")
    assert main(["data", "pack", str(pictures), out, "--as", "shards", "--samples", "30", "--workers", "0"]) == 0
    assert "40 samples in 2 shards, 2 written" in capsys.readouterr().out
    assert main(["data", "index", out, "--workers", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 40
    for words, message in (
        (["data", "index"], "usage: maemm data index"),
        (["data", "index", out, "a", "b"], "too many|usage"),
        (["data", "check", out, "--samples", "3"], "--samples belongs to"),
        (["data", "pack", out, "x", "--as", "shards", "--megabytes", "0"], "give 1 or more"),
        (["data", "pack", out, "--as", "shards"], "missing argument"),
    ):
        assert main(words) == 2
        assert re.search(message, capsys.readouterr().err), words
