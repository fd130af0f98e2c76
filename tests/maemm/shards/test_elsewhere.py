"""Shards on a web server and in a bucket: faults that pass, servers that are gone, a cache with a limit."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import socket
import threading
import time
import zlib

import numpy as np
import pytest

from maemm.contract.errors import DataLost, MaemmError
from maemm.contract.rng import Rng
from maemm.data.shards import cache as cache_
from maemm.data.shards import storage
from maemm.data.shards.cache import Cache
from maemm.data.shards.source import open_shards
from maemm.data.shards.storage import Range, Storage
from maemm.tasks.data.pack import data_index

from .servers import s3, serving
from .test_source import batches, same

pytest.importorskip("aiohttp")


@pytest.fixture
def server(shards):
    with serving(shards) as server:
        yield server


def test_a_web_server_gives_what_the_folder_gives(pictures, server, tmp_path):
    folder = batches("image/mae_tiny_cpu", {"root": str(pictures), "source": None}, steps=6)
    source = {"type": "shards", "cache": str(tmp_path / "cache"), "cache_gb": 1.0, "retry_seconds": 5}
    same(folder, batches("image/mae_tiny_cpu", {"root": server.url, "source": source}, steps=6, workers=1))
    asked = len(server.requests)
    same(folder, batches("image/mae_tiny_cpu", {"root": server.url, "source": source}, steps=6))
    assert len(server.requests) - asked < 5  # the index; the samples are in the cache


@pytest.mark.parametrize("fault", ["cut", "slow", "short", "busy"])
def test_faults_that_pass(pictures, server, fault):
    folder = batches("image/mae_tiny_cpu", {"root": str(pictures), "source": None}, steps=2)
    server.faults = [fault] * 5
    found = batches(
        "image/mae_tiny_cpu", {"root": server.url, "source": {"type": "shards", "retry_seconds": 20}}, steps=2
    )
    same(folder, found)
    assert not server.faults


def test_a_server_without_ranges(server):
    source = open_shards(server.url, name="image")
    server.faults = ["whole"]
    with pytest.raises(DataLost, match="sends whole files where a range was asked for"):
        source.read(0, Rng((0,)))


def test_a_server_that_is_gone_for_a_while(shards, monkeypatch, capfd):
    """It comes back on its port: nothing is lost, and whoever watches is told."""
    with serving(shards) as first:
        source = open_shards(first.url, name="image", retry_seconds=30)
        before = source.read(3, Rng((0,)))
        port = first.server_address[1]

    monkeypatch.setattr(storage, "_SILENT_S", 0.3)

    def again():
        time.sleep(2)
        with serving(shards, port):
            done.wait(30)

    done, thread = threading.Event(), threading.Thread(target=again)
    thread.start()
    assert (source.read(3, Rng((0,))).raw["image"] == before.raw["image"]).all()
    done.set()
    thread.join()
    waits, answers = capfd.readouterr().err.splitlines()
    assert waits.startswith(f"waiting for the storage of the data, which does not answer ({first.url}: ")
    assert waits.endswith("; it is asked again for up to 30 s")
    assert re.fullmatch(r"the storage of the data answers again, after \d+ s \(.*\)", answers)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_worker_leaves_the_connections_of_its_parent_alone(server):
    """A fork shares the parent's event queue: what it closed there made the parent's next request hang for a minute."""
    source = open_shards(server.url, name="image", retry_seconds=0)
    source.read(0, Rng((0,)))
    child = os.fork()
    if not child:
        source.read(1, Rng((0,)))
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    answers: list = []
    thread = threading.Thread(target=lambda: answers.append(source.read(2, Rng((0,)))), daemon=True)
    thread.start()
    thread.join(20)
    assert answers


def test_a_server_that_is_gone_for_good(shards):
    with serving(shards) as server:
        source = open_shards(server.url, name="image", retry_seconds=0.5)
    with pytest.raises(DataLost, match="does not answer since 0.5 s .*start the same command again"):
        source.read(3, Rng((0,)))
    with pytest.raises(MaemmError, match="does not answer"):
        open_shards(server.url, name="image", retry_seconds=0.5)


def test_a_missing_file_is_no_fault_of_the_server(server):
    with pytest.raises(FileNotFoundError):
        Storage(server.url, patience=30).read("nothing.tar")


def test_an_index_of_shards_elsewhere(shards, server, tmp_path):
    with pytest.raises(MaemmError, match="give a folder for it: --out"):
        data_index(f"{server.url}/shard-{{000000..000004}}.tar", workers=0)
    indexed = data_index(f"{server.url}/shard-{{000000..000004}}.tar", tmp_path / "index", workers=0)
    assert (indexed.shards, indexed.samples) == (5, 40)
    source = open_shards(server.url, name="image", index=str(tmp_path / "index"))
    local = open_shards(str(shards), name="image")
    assert (source.read(12, Rng((0,))).raw["image"] == local.read(12, Rng((0,))).raw["image"]).all()


def test_a_shard_that_changes_on_the_server(shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "copy")
    with serving(folder) as server:
        source = open_shards(server.url, name="image", retry_seconds=1)
        source.read(9, Rng((0,)))
        shutil.copy(folder / "shard-000004.tar", folder / "shard-000001.tar")
        with pytest.raises(DataLost, match="a shard has changed"):
            source.read(10, Rng((0,)))


def test_a_large_index_is_read_where_it_lies(server, shards, monkeypatch):
    from maemm.data.shards import catalog

    monkeypatch.setattr(catalog, "_IN_MEMORY", 100)
    far, near = open_shards(server.url, name="image"), open_shards(str(shards), name="image")
    far.read_ahead([9, 30, 2])
    for index in (9, 30, 2):
        assert (far.read(index, Rng((0,))).raw["image"] == near.read(index, Rng((0,))).raw["image"]).all()
        assert far.label(index) == near.label(index)
    assert far.catalog._table is None


def test_a_bucket(shards, pictures):
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with s3(shards) as options:
        spec = {"type": "shards", "storage": options, "retry_seconds": 10}
        folder = batches("image/mae_tiny_cpu", {"root": str(pictures), "source": None}, steps=2)
        same(folder, batches("image/mae_tiny_cpu", {"root": "s3://data", "source": spec}, steps=2))
        with pytest.raises(MaemmError, match="there is no index of shards"):
            open_shards("s3://nothing", name="image", storage=options, retry_seconds=1)


# ----------------------------------------------------------------------------------------------------------- cache
@pytest.mark.parametrize("processes", [1, 10])
def test_a_cache_stays_below_its_limit(tmp_path, processes):
    """However many processes and runs share it, each of which sees its own additions alone."""
    caches = [Cache(tmp_path, 1_000_000, "v") for _ in range(processes)]
    data = np.random.default_rng(0).bytes(3000)
    for number in range(2000):
        caches[number % processes].put(Range("a", number, number + 3000), data)
    assert 500_000 < _size(tmp_path) <= 1_100_000


def test_a_small_cache_keeps_large_samples(tmp_path):
    """A limit of its own for each of 256 folders would leave no room for any."""
    cache, data = Cache(tmp_path, 10_000_000, "v"), bytes(3_000_000)
    for number in range(6):
        cache.put(Range("a", number, number + len(data)), data)
    assert 3_000_000 <= _size(tmp_path) <= 10_000_000
    cache.put(Range("b", 0, 9_000_000), bytes(9_000_000))  # it would push out all others, and itself
    assert _size(tmp_path) < 9_000_000


def test_a_large_cache_is_looked_through_in_parts(tmp_path):
    assert [Cache(tmp_path, limit, "v").groups for limit in (1, 10**9, 5 * 10**10, 10**12)] == [1, 2, 128, 256]


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    new = tmp_path / ".new"
    new.mkdir()
    here = socket.gethostname()
    for name in (f"{here}.999999999.0", f"{here}.{os.getpid()}.7", "elsewhere.1.0", "old.2.1"):
        (new / name).write_bytes(b"half")
    os.utime(new / "old.2.1", (0, 0))
    Cache(tmp_path, 10**6, "v")
    assert {path.name for path in new.iterdir()} == {f"{here}.{os.getpid()}.7", "elsewhere.1.0"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_while_it_writes_to_the_cache(tmp_path):
    """Whatever a kill leaves, entries are whole, and the next run removes the rest."""
    data, halves = np.random.default_rng(0).bytes(2**23), 0
    for attempt in range(8):
        started, ready = os.pipe()
        child = os.fork()
        if not child:
            cache = Cache(tmp_path, 10**9, "v")
            os.write(ready, b".")
            for number in range(100):
                cache.put(Range("a", number, number + len(data)), data)
            os._exit(1)
        os.read(started, 1)
        time.sleep(0.01 * (attempt + 1))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        halves += len([*(tmp_path / ".new").glob("*")])
        cache = Cache(tmp_path, 10**9, "v")
        assert not [*(tmp_path / ".new").glob("*")]
        there = [cache.get(Range("a", number, number + len(data)), zlib.crc32(data)) for number in range(100)]
        entries = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(entries) == sum(entry is not None for entry in there)  # none was wrong, none is left over
        for path in entries:
            path.unlink()
    assert halves  # some kills came while a file was written


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, monkeypatch, capfd):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    cache = Cache(tmp_path, 10**6, "v")
    cache.put(Range("a", 0, 3), b"abc")
    monkeypatch.setattr(cache_.Path, "write_bytes", refused)
    for number in range(3):
        cache.put(Range("b", number, number + 3), b"abc")
    assert cache.get(Range("a", 0, 3), zlib.crc32(b"abc")) == b"abc"
    lines = capfd.readouterr().err.splitlines()
    assert lines == [f"warning: the cache keeps nothing more ({tmp_path}: Permission denied); the run goes on"]


def _size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_cache_never_gives_wrong_bytes(tmp_path):
    cache, part = Cache(tmp_path, 10**6, "v"), Range("a", 0, 3)
    cache.put(part, b"abc")
    assert cache.get(part, zlib.crc32(b"abc")) == b"abc"
    assert Cache(tmp_path, 10**6, "other").get(part, zlib.crc32(b"abc")) is None
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    path.write_bytes(b"abd")
    assert cache.get(part, zlib.crc32(b"abc")) is None
    assert not path.exists()


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, server, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_.os, "replace", full)
    source = open_shards(server.url, name="image", cache=str(tmp_path / "cache"))
    source.read(0, Rng((0,)))
    (tmp_path / "file").write_text("")
    with pytest.raises(MaemmError, match="the cache cannot be made"):
        open_shards(server.url, name="image", cache=str(tmp_path / "file" / "cache"))
