"""Shards of a data set, written in several processes, and the index of shards that exist."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from maemm.config.paths import expanded
from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.bad_samples import BadSample, printable, reason_of
from maemm.data.pack import WRITE_ERRNOS, results
from maemm.data.pack_folder import BAD, PackFolder, new_name
from maemm.data.shards import tar
from maemm.data.shards.catalog import INDEX, ShardEntries, names_of, scan_shard, write_catalog
from maemm.data.shards.storage import Storage, is_url
from maemm.registry.make import part_of

MEGABYTES, SAMPLES = 256, 10_000  # of a shard, at most
_PATIENCE_S = 30.0  # for which a storage is asked again
_HEADERS = 1536  # bytes that a member takes in a tar file besides its content, at most

OnProgress = Callable[[int, int], object]  # samples or shards done, all
Task = tuple[int, str, str]  # number of a shard, its name twice: what the pool of workers expects


@dataclass
class PackedShards:
    """The result of :func:`pack_shards` or :func:`index_shards`."""

    target: str
    shards: int = 0
    samples: int = 0
    written: int = 0  # shards, of this call
    bad: list[BadSample] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        bad = {sample.id: sample.reason for sample in self.bad}
        return {**vars(self), "bad": len(self.bad), "unreadable": bad}

    def __str__(self) -> str:
        bad = f", {len(self.bad):,} unreadable (list: {Path(self.target) / BAD})" if self.bad else ""
        return f"{self.samples:,} samples in {self.shards:,} shards, {self.written:,} written{bad} -> {self.target}"


def pack_shards(
    source: Source,
    target: str | os.PathLike[str],
    parts: Mapping[str, Any],
    *,
    megabytes: int = MEGABYTES,
    samples: int = SAMPLES,
    workers: int = 0,
    on_progress: OnProgress | None = None,
) -> PackedShards:
    """Write the samples of ``source``, in its order, to tar files with an index in the folder ``target``.

    The same samples give the same bytes, with any number of ``workers`` (0: this process). Shards appear whole or not
    at all, the index last; the same call continues an interrupted one. Unreadable files are left out, counted, and
    listed in ``target/bad_samples.jsonl``; their shards are written again by the next call. ``parts``: how the members
    are read, for the index. Raises :class:`MaemmError` for samples that are no files of their own.
    """
    folder = expanded(target)
    plan = _layout(source, megabytes * 10**6, samples)
    about = {"shards": source.fingerprint(), "megabytes": megabytes, "samples": samples, "parts": dict(parts)}
    done = PackedShards(str(folder))
    with PackFolder(folder, about) as pack_folder:
        tasks: list[Task] = [(number, name, name) for number, name in enumerate(_shard_names(len(plan)))]
        writer = _ShardWriter(source, folder, plan, alone=len(parts) == 1)
        try:
            entries = _noted(results(writer, tasks, workers), done, plan, on_progress)
            classes = None if source.classes is None else [*source.classes]
            done.samples = write_catalog(folder, entries, classes, dict(parts))
        finally:
            pack_folder.write_bad(done.bad)
    return done


def index_shards(
    root: str, out: str | os.PathLike[str] | None = None, *, workers: int = 0, on_progress: OnProgress | None = None
) -> PackedShards:
    """Make the index of tar files that exist: a folder or URL, a pattern with ``*``, or ``a-{000..999}.tar``.

    Every shard is read once. ``out``: folder for the index; None: beside the shards. Raises :class:`MaemmError` where
    there are none, where one is broken, and for ``out`` None with a URL.
    """
    folder, pattern = (root, None) if not root.endswith(".tar") else ("/".join(root.split("/")[:-1]) or ".", root)
    if pattern is not None:
        pattern = pattern.split("/")[-1]
    if out is None and is_url(root):
        raise MaemmError(f"an index cannot be written to {folder}; give a folder for it: --out FOLDER")
    storage = Storage(folder, patience=_PATIENCE_S)
    try:
        names = names_of(storage, pattern)
    except OSError as error:
        raise MaemmError(f"the shards cannot be listed ({root}: {reason_of(error)}); check the path") from error
    if not names:
        raise MaemmError(f"there are no shards to index ({root}); give a folder of .tar files, or a pattern")
    target = expanded(out) if out is not None else Path(storage.root)
    done = PackedShards(str(target))

    def entries() -> Iterator[ShardEntries]:
        tasks: list[Task] = [(number, name, name) for number, name in enumerate(names)]
        for number, scanned in enumerate(results(_Scanner(storage), tasks, workers)):
            if isinstance(scanned, BadSample):
                raise MaemmError(f"a shard cannot be indexed ({storage.path(scanned.id)}: {scanned.reason}); remove it")
            if len(scanned.checks):
                done.shards += 1
                yield scanned
            if on_progress is not None:
                on_progress(number + 1, len(names))

    classes, parts = _stated_before(target)
    done.samples = write_catalog(target, entries(), classes, parts)
    return done


def _stated_before(folder: Path) -> tuple[list[str] | None, dict[str, Any]]:
    """Names of the classes and how members are read, as an index that is there says."""
    try:
        record = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return record.get("classes"), dict(record.get("parts") or {})
    except (OSError, ValueError, AttributeError, TypeError):
        return None, {}


def _noted(
    scanned: Iterator[Any], done: PackedShards, plan: list[range], on_progress: OnProgress | None
) -> Iterator[ShardEntries]:
    """The entries of all shards; what was written and what was bad is noted in ``done``."""
    samples = 0
    for number, (entries, written, bad) in enumerate(scanned):
        done.bad += bad
        done.written += written
        samples += len(plan[number])
        if entries is not None:
            done.shards += 1
            yield entries
        if on_progress is not None:
            on_progress(samples, plan[-1].stop)


def _layout(source: Source, most_bytes: int, most_samples: int) -> list[range]:
    """The samples of each shard: neighbours that fit into it. Depends on the samples alone."""
    plan: list[range] = []
    start, size = 0, 0
    for index in range(len(source)):
        own = sum(_size(path) + _HEADERS for path in _paths(source, index).values())
        if index > start and (size + own > most_bytes or index - start == most_samples):
            plan.append(range(start, index))
            start, size = index, 0
        size += own
    return [*plan, range(start, len(source))]


def _paths(source: Source, index: int) -> Mapping[str, Any]:
    paths = source.paths(index)
    folder = next((path for path in (paths or {}).values() if os.path.isdir(path)), None)
    if paths is None or folder is not None:
        what = f"is a folder ({printable(str(folder))})" if folder is not None else f"is no file ({source.name(index)})"
        raise MaemmError(f"a sample {what}; shards are made of samples that are whole files")
    return paths


def _size(path: Any) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # counted as unreadable when it is copied
        return 0


def _shard_names(count: int) -> list[str]:
    return [f"shard-{number:0{max(6, len(str(count)))}d}.tar" for number in range(count)]


class _Scanner:
    """Scans one shard per call, in a worker or in this process."""

    at: Any = None

    def __init__(self, storage: Storage):
        self.storage, self.lost = storage, dict[int, str]()

    def __call__(self, task: Task) -> ShardEntries | BadSample:
        number, name, _ = task
        if number in self.lost:
            return BadSample(number, name, self.lost[number])
        if self.at is not None:
            self.at.fill_(number)
        try:
            return scan_shard(self.storage, name)
        except (ValueError, OSError) as error:
            return BadSample(number, name, reason_of(error))
        finally:
            if self.at is not None:
                self.at.fill_(-1)


class _ShardWriter(_Scanner):
    """Writes one shard per call, unless it is there with all its samples, and scans it.

    -> (its entries, None where no sample of it can be read; shards written; unreadable samples).
    """

    def __init__(self, source: Source, folder: Path, plan: list[range], *, alone: bool):
        super().__init__(Storage(str(folder)))
        self.source, self.folder, self.plan = source, folder, plan
        self.alone = alone  # members have the endings of their files; otherwise PART.ending

    def __call__(self, task: Task) -> tuple[ShardEntries | None, int, list[BadSample]]:  # type: ignore[override]
        number, name, _ = task
        path, samples = self.folder / name, self.plan[number]
        if path.exists():
            entries = super().__call__(task)
            if isinstance(entries, ShardEntries) and len(entries.checks) == len(samples):
                return entries, 0, []
        if number in self.lost:
            raise MaemmError(f"a process ended while it wrote {path} ({self.lost[number]}); start the command again")
        bad = self._write(path, samples)
        if len(bad) == len(samples):
            return None, 0, bad
        entries = super().__call__(task)
        if isinstance(entries, BadSample):
            raise MaemmError(f"a shard cannot be read back ({path}: {entries.reason}); look at the disk")
        return entries, 1, bad

    def _write(self, path: Path, samples: range) -> list[BadSample]:
        bad: list[BadSample] = []
        new = path.with_name(new_name(path.name))
        try:
            with open(new, "wb") as file:
                if not tar.write(file, self._members(samples, bad)):
                    return bad
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
        except OSError as error:
            raise MaemmError(f"cannot write to {self.folder} ({error.strerror}); make room there") from error
        finally:
            new.unlink(missing_ok=True)
        return bad

    def _members(self, samples: range, bad: list[BadSample]) -> Iterator[tuple[str, Mapping[str, bytes]]]:
        previous = None
        for index in samples:
            name = self.source.name(index)
            try:
                key, contents = self._sample(index, name)
            except OSError as error:
                if error.errno in WRITE_ERRNOS:
                    raise
                bad.append(BadSample(index, printable(name), reason_of(error)))
                continue
            # Two files that differ in the ending alone would become one sample.
            key = name if key == previous else key
            previous = key
            yield key, contents

    def _sample(self, index: int, name: str) -> tuple[str, dict[str, bytes]]:
        paths = _paths(self.source, index)
        contents = {}
        for part, path in paths.items():
            ending = PurePosixPath(os.fsdecode(path)).suffix.lower().lstrip(".") or "bin"
            contents[ending if self.alone else f"{part}.{ending}"] = Path(os.fsdecode(path)).read_bytes()
        label = self.source.label(index)
        if label is not None:
            numbers = label if isinstance(label, tuple) else (label,)
            contents["cls"] = " ".join(map(str, numbers)).encode()
        return (str(PurePosixPath(name).with_suffix("")) if self.alone else name), contents


def parts_of_recipe(recipe: Mapping[str, Any], paths: Mapping[str, Any]) -> dict[str, Any]:
    """How the members of a recipe's samples are read: {part: {type, options}}, for the index."""
    kind, options = part_of(recipe["data"].get("source"), default=next(iter(recipe["modalities"].values())).get("type"))
    if kind == "paired":
        return {
            name: {"type": (spec or {}).get("type", name), **_plain(spec or {})}
            for name, spec in options["parts"].items()
        }
    (name,) = paths
    return {name: {"type": kind, **_plain(options)}}


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in ("root", "list", "name", "type")}
