"""What lies in which shard: a small ``index.json``, and one binary file with a few bytes for each sample.

The binary file holds, one behind the other: for every shard the first byte of each sample and the end of the last one
(uint64, N + S numbers), a CRC-32 of each sample (uint32, N), and its label (int32, N; -1: none, -2: several). Any
sample is found by three reads of known places, so that nothing grows with N in memory.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maemm.contract.errors import DataLost, MaemmError
from maemm.data.atomic import write_json, write_whole
from maemm.data.bad_samples import reason_of
from maemm.data.shards import tar
from maemm.data.shards.storage import Range, Storage

INDEX = "index.json"
VERSION = 1
NO_LABEL, SEVERAL = -1, -2
_IN_MEMORY = 2**28  # bytes of a binary file elsewhere that are fetched at once; of a larger one, what is needed


class Place(NamedTuple):
    """Where a sample lies."""

    shard: int
    start: int
    stop: int
    check: int  # CRC-32 of these bytes


@dataclass
class ShardEntries:
    """The samples of one shard, as its scan gives them."""

    name: str
    size: int
    version: str
    starts: np.ndarray  # (n + 1,) uint64
    checks: np.ndarray  # (n,) uint32
    labels: list[str | None]  # texts of .cls


class Catalog:
    """The samples of all shards in order. It can be sent to other processes.

    ``storage`` holds the shards, ``index_at`` the index. Raises :class:`MaemmError` for an index that cannot be used.
    """

    def __init__(self, storage: Storage, index_at: Storage | None = None):
        self.storage, self.index_at = storage, index_at or storage
        where = self.index_at.path(INDEX)
        try:
            record = json.loads(self.index_at.read(INDEX))
            version = record["maemm_shards"]
            if version == VERSION:
                self._take(record)
        except OSError as error:
            raise MaemmError(f"the index of the shards cannot be read ({where}: {reason_of(error)})") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MaemmError(
                f"no index of shards ({where}: {reason_of(error)}); make it anew: maemm data index"
            ) from error
        if version != VERSION:
            raise MaemmError(f"the index has version {version}, this maemm reads {VERSION} ({where}); make it anew")
        self._check_binary()

    def _take(self, record: dict[str, Any]) -> None:
        shards = record["shards"]
        self.names = [str(shard["name"]) for shard in shards]
        self.sizes = np.array([shard["samples"] for shard in shards], np.int64)
        self.bytes = np.array([shard["bytes"] for shard in shards], np.int64)
        self.versions = [str(shard.get("version") or "") for shard in shards]
        self.ends = np.cumsum(self.sizes)
        self.samples = int(self.ends[-1]) if len(shards) else 0
        self.classes: list[str] | None = record.get("classes")
        self.multilabel = bool(record.get("multilabel"))
        self.parts: dict[str, Any] = dict(record.get("parts") or {})
        self.binary, self.digest = str(record["binary"]), str(record["digest"])
        self._table: np.ndarray | None = None

    def _check_binary(self) -> None:
        """Raises :class:`MaemmError` where the binary file is not there, or has another length."""
        try:
            size, _ = self.index_at.info(self.binary)
        except OSError as error:
            raise MaemmError(
                f"a part of the index is missing ({self.index_at.path(self.binary)}: {reason_of(error)}); make "
                "it anew: maemm data index"
            ) from error
        expected = self._offset("end")
        if size != expected:
            raise MaemmError(
                f"a part of the index has {size:,} bytes instead of {expected:,} ({self.index_at.path(self.binary)}); "
                "make it anew: maemm data index"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}

    def __len__(self) -> int:
        return self.samples

    def shard_of(self, index: int) -> tuple[int, int]:
        """(number of the shard, number of the sample in it)."""
        shard = int(np.searchsorted(self.ends, index, side="right"))
        return shard, index - int(self.ends[shard] - self.sizes[shard])

    def places(self, indices: Sequence[int]) -> list[Place]:
        """Where the samples lie. Raises :class:`DataLost` where the index cannot be read any more."""
        shards = [self.shard_of(index)[0] for index in indices]
        ranges = []
        for index, shard in zip(indices, shards, strict=True):
            first = 8 * (index + shard)  # each shard before has one number more than samples
            check = self._offset("checks") + 4 * index
            ranges += [Range(self.binary, first, first + 16), Range(self.binary, check, check + 4)]
        parts = self._read(ranges)
        places = []
        for number, shard in enumerate(shards):
            start, stop = np.frombuffer(parts[2 * number], np.uint64).tolist()
            (check,) = np.frombuffer(parts[2 * number + 1], np.uint32).tolist()
            places.append(Place(shard, start, stop, check))
        return places

    def label(self, index: int) -> int:
        """The label; ``NO_LABEL`` or ``SEVERAL``."""
        first = self._offset("labels") + 4 * index
        (part,) = self._read([Range(self.binary, first, first + 4)])
        return int(np.frombuffer(part, np.int32)[0])

    def _offset(self, column: str) -> int:
        starts = 8 * (self.samples + len(self.names))
        return {"checks": starts, "labels": starts + 4 * self.samples, "end": starts + 8 * self.samples}[column]

    def _read(self, ranges: list[Range]) -> list[bytes]:
        if self._table is None and (self.index_at.is_local or self._offset("end") <= _IN_MEMORY):
            self._table = self._opened()
        if self._table is not None:
            return [self._table[part.start : part.stop].tobytes() for part in ranges]
        parts = self.index_at.read_ranges(ranges)
        for part in parts:
            if isinstance(part, OSError):
                raise DataLost(
                    f"the index of the shards cannot be read any more ({part}); start the same command again"
                )
        return parts  # type: ignore[return-value]

    def _opened(self) -> np.ndarray:
        """The binary file as bytes: mapped where it is local."""
        if self.index_at.is_local:
            return np.memmap(self.index_at.path(self.binary), np.uint8, "r")
        return np.frombuffer(self.index_at.read(self.binary), np.uint8)


# ------------------------------------------------------------------------------------------------------- making one
def scan_shard(storage: Storage, name: str) -> ShardEntries:
    """Read a whole tar file and note its samples, maybe none. Raises ValueError or OSError where it cannot be read."""
    size, version = storage.info(name)
    if not size:
        raise ValueError("empty file (0 bytes)")
    if storage.is_local:
        with open(storage.path(name), "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            found = [*tar.spans(mapped)]
    else:
        found = [*tar.spans(storage.read(name))]
    starts = np.array([*(span.start for span in found), found[-1].stop if found else 0], np.uint64)
    labels = [None if span.label is None else span.label.decode().strip() for span in found]
    return ShardEntries(name, size, version, starts, np.array([span.check for span in found], np.uint32), labels)


def write_catalog(
    folder: Path,
    entries: Iterable[ShardEntries],
    classes: Sequence[str] | None = None,
    parts: dict[str, Any] | None = None,
) -> int:
    """Write the index of shards to ``folder``, whole or not at all; -> samples.

    Labels are whole numbers, or names, which are numbered in their order as sorted (or as in ``classes``); several of a
    sample have spaces between them. Memory does not grow with the samples. Raises :class:`MaemmError`.
    """
    shards: list[dict[str, Any]] = []
    texts: dict[str, int] = {}  # {text of a label: number in the order in which they came}
    digest = hashlib.blake2b(digest_size=8)
    columns = [folder / f".index.{os.getpid()}.{column}.tmp" for column in ("starts", "checks", "labels")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(columns[0], "wb") as starts, open(columns[1], "wb") as checks, open(columns[2], "wb") as labels:
            for entry in entries:
                shards.append(
                    {"name": entry.name, "samples": len(entry.checks), "bytes": entry.size, "version": entry.version}
                )
                numbers = [-1 if text is None else texts.setdefault(text, len(texts)) for text in entry.labels]
                for file, column in (
                    (starts, entry.starts),
                    (checks, entry.checks),
                    (labels, np.array(numbers, np.int32)),
                ):
                    file.write(column.tobytes())
                digest.update(os.fsencode(entry.name) + entry.checks.tobytes())
        if not shards:
            raise MaemmError(f"there are no samples to index ({folder}); give tar files that hold some")
        numbering, names, multilabel = _numbering(texts, classes)
        digest.update(json.dumps([names, multilabel]).encode())
        binary = f"index-{digest.hexdigest()}.bin"
        write_whole(folder / binary, lambda path: _join(path, columns, numbering), "the index", sync=True)
        record = {
            **{"maemm_shards": VERSION, "digest": digest.hexdigest(), "binary": binary, "classes": names},
            **{"multilabel": multilabel, "parts": parts or {}, "shards": shards},
        }
        write_json(folder / INDEX, record, "the index", sync=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "make room there" if full else "give another folder for it: --out FOLDER"
        raise MaemmError(f"cannot write the index ({folder}: {error.strerror}); {advice}") from error
    finally:
        for path in columns:
            with contextlib.suppress(OSError):
                path.unlink()
    for old in folder.glob("index-*.bin"):
        if old.name != binary:
            old.unlink(missing_ok=True)
    return sum(shard["samples"] for shard in shards)


def _numbering(texts: dict[str, int], classes: Sequence[str] | None) -> tuple[np.ndarray, list[str] | None, bool]:
    """(label of each text in the order in which they came, names of the classes, whether samples have several)."""
    words = {text: text.split() for text in texts}
    numbered = all(word.isdecimal() for parts in words.values() for word in parts)
    multilabel = numbered and any(len(parts) != 1 for parts in words.values())
    if multilabel:
        labels = [SEVERAL] * len(texts)
    elif numbered:
        labels = [int(text) for text in texts]
    else:
        classes = [*(classes or sorted(texts))]
        number = {name: i for i, name in enumerate(classes)}
        if unnamed := next((text for text in texts if text not in number), None):
            raise MaemmError(f"the label {unnamed!r} is none of the {len(classes)} classes; name all of them")
        labels = [number[text] for text in texts]
    return np.array(labels or [NO_LABEL], np.int32), None if classes is None else [*classes], multilabel


def _join(path: Path, columns: Sequence[Path], numbering: np.ndarray) -> None:
    with open(path, "wb") as target:
        for column in columns[:2]:
            with open(column, "rb") as file:
                shutil.copyfileobj(file, target, 1 << 20)
        with open(columns[2], "rb") as file:
            while part := file.read(1 << 20):
                numbers = np.frombuffer(part, np.int32)
                target.write(
                    np.where(numbers < 0, NO_LABEL, numbering[np.maximum(numbers, 0)]).astype(np.int32).tobytes()
                )


def names_of(storage: Storage, root_pattern: str | None) -> list[str]:
    """The shards to index: those of a pattern with ``*`` or ``{000..999}``, else all ``.tar`` below the root."""
    if root_pattern is None:
        return storage.find("**/*.tar")
    if "*" in root_pattern:
        return storage.find(root_pattern)
    return [*expand(root_pattern)]


def expand(pattern: str) -> Iterator[str]:
    """``a-{008..010}.tar`` -> ``a-008.tar``, ``a-009.tar``, ``a-010.tar``, as shells do."""
    before, brace, rest = pattern.partition("{")
    inside, closing, after = rest.partition("}")
    if not brace or not closing:
        yield pattern
        return
    first, dots, last = inside.partition("..")
    if dots and first.isdecimal() and last.isdecimal():
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = inside.split(",")
    for choice in choices:
        for end in expand(after):
            yield f"{before}{choice}{end}"
