"""``maemm embed``: features of a whole data set in one file, written in chunks so that an interrupted pass goes on."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.bad_samples import BadSample
from maemm.data.single_pass import Progress
from maemm.data.subset import Subset
from maemm.model.model import Model
from maemm.tasks._shared import feature_files as files
from maemm.tasks._shared.features import Features, check_any, embedder, join, pieces
from maemm.tasks._shared.inputs import Weights, data_config, data_stamp, open_data, open_model, weights_stamp

CHUNK_ROWS, CHUNK_BYTES, CHUNK_S = 8192, 1 << 26, 60.0  # a chunk ends at whichever comes first
ABOUT, SKIPPED = "about.json", ".skipped.jsonl"


@dataclass(frozen=True)
class Embedded:
    """What :func:`embed` wrote."""

    path: Path
    count: int
    shapes: dict[str, tuple[int, ...]]  # by modality, of one sample
    skipped: list[BadSample]
    resumed: int  # samples that an interrupted pass had done

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in self.shapes.items())
        skipped = f", {len(self.skipped):,} skipped (list: {self.path}{SKIPPED})" if self.skipped else ""
        before = f", {self.resumed:,} of them from before" if self.resumed else ""
        return f"{self.count:,} embeddings ({shapes}){before}{skipped} -> {self.path}"


def embed(
    what: Weights,
    data: str | os.PathLike | None,
    out: str | os.PathLike,
    *,
    pool: str | None = None,
    norm: str | None = None,
    layers: Iterable[int] | None = None,
    tokens: bool = False,
    batch: int = 64,
    workers: int | None = None,
    source: Any = None,
    list: str | os.PathLike | None = None,
    on_progress: Progress | None = None,
    **known: Any,
) -> Embedded:
    """Features of all samples of ``data`` -> ``out``, a .npz, .safetensors or .parquet file with ids and labels.

    ``what``: a run or checkpoint folder, a weights file, or a model. ``data`` None: the data of its recipe. ``pool``,
    ``norm``, ``layers``, ``tokens``: see :meth:`Model.embed`. ``source``, ``list``, ``workers``: in place of those in
    the recipe's ``data``. ``known`` goes to :func:`maemm.load`. Called again after an interrupt it goes on. Raises
    :class:`MaemmError`; samples that cannot be read are left out and listed beside ``out``.
    """
    out = Path(out)
    files.check_target(out)
    model = open_model(what, **known)
    options = {k: v for k, v in (("source", source), ("list", list and str(list))) if v is not None}
    config = data_config(model.recipe, data, **options)
    opened = open_data(model.recipe, data, **options)
    layers = None if layers is None else [int(one) for one in layers]
    chosen = {"pool": pool, "norm": norm, "layers": layers, "tokens": tokens}
    about = {
        "weights": weights_stamp(model),
        "data": data_stamp(opened, config["root"], config["list"]),
        **chosen,
    }
    parts = _Parts(out, about)
    done = parts.rows
    rest = Subset(opened, range(done, len(opened)))
    workers = config["workers"] if workers is None else workers
    for chunk in _chunks(model, rest, chosen, batch, workers, _behind(done, on_progress)):
        parts.add(*chunk)
    return _finish(parts, out, opened, done, about)


def _behind(done: int, on_progress: Progress | None) -> Progress | None:
    return None if on_progress is None else lambda more, left: on_progress(done + more, done + left)


def _chunks(
    model: Model, source: Source, chosen: dict[str, Any], batch: int, workers: int, on_progress: Progress | None
) -> Iterator[tuple[int, dict[str, Features]]]:
    """(rows of the source, their features). What is at hand when an interrupt comes is a chunk too."""
    held: list[dict[str, Features]] = []
    rows, size, began = 0, 0, time.monotonic()
    if not len(source):
        return
    found = pieces(model, source, embedder(**chosen), batch=batch, workers=workers, on_progress=on_progress)
    interrupted: BaseException | None = None
    while True:
        try:
            piece = next(found, None)
        except (KeyboardInterrupt, MaemmError) as error:
            piece, interrupted = None, error
        if piece is not None:
            held.append(piece)
            rows += min(batch, len(source) - rows)
            size += sum(one.x.nbytes for one in piece.values())
        full = len(held) * batch >= CHUNK_ROWS or size >= CHUNK_BYTES or time.monotonic() - began >= CHUNK_S
        if held and (full or piece is None):
            yield rows, join(held)
            held, size, began = [], 0, time.monotonic()
        if interrupted is not None:
            raise interrupted
        if piece is None:
            return


class _Parts:
    """The chunks of an unfinished file, in a folder beside it."""

    def __init__(self, out: Path, about: dict[str, Any]):
        self.out, self.folder = out, out.with_name(f".{out.name}.parts")
        self.about = json.dumps(about, sort_keys=True)
        stored = self.folder / ABOUT
        if stored.exists() and stored.read_text(encoding="utf-8") != self.about:
            raise MaemmError(
                f"{self.folder} holds an unfinished embedding of other weights, data or options; remove it, or choose "
                "another -o"
            )
        for path in self.folder.glob("*.tmp"):
            path.unlink()
        self.first = self.rows  # rows that were there at the start: numbers in chunks count from here

    @property
    def paths(self) -> list[Path]:
        return sorted(self.folder.glob("rows-*.npz"))

    @property
    def rows(self) -> int:
        """How many rows of the source are done."""
        return max((int(path.stem.split("-")[1]) for path in self.paths), default=0)

    def add(self, rows: int, found: dict[str, Features]) -> None:
        """Store a chunk whose last row is ``rows`` behind those that were there at the start."""
        any_of = next(iter(found.values()))
        arrays = files.arrays_of(found)
        skipped = json.dumps([{**asdict(one), "index": one.index + self.first} for one in any_of.skipped])
        path = self.folder / f"rows-{self.first + rows:012d}.npz"
        beside = path.with_suffix(".tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ABOUT).write_text(self.about, encoding="utf-8")
            with beside.open("wb") as file:
                np.savez(file, **arrays, skipped=np.array(skipped))
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except OSError as error:
            raise MaemmError(
                f"cannot write {path} ({error.strerror}); look at the folder and the free space: the same command "
                "goes on"
            ) from error

    def skipped(self) -> list[BadSample]:
        return [BadSample(**one) for chunk in self.chunks() for one in json.loads(str(chunk["skipped"]))]

    def chunks(self) -> Iterator[np.lib.npyio.NpzFile]:
        """The stored chunks; each reads an array when it is asked for it, and is closed when the next one comes."""
        for path in self.paths:
            with np.load(path, allow_pickle=False) as stored:
                yield stored

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _finish(parts: _Parts, out: Path, source: Source, resumed: int, about: dict[str, Any]) -> Embedded:
    skipped = parts.skipped()
    arrays = files.concatenated(parts.chunks)
    if not arrays:
        parts.remove()
        none = Features(np.zeros((0, 0), np.float32), np.zeros(0, np.int64), [], skipped)
        check_any(none, len(source))
    classes = None if source.classes is None else [*source.classes]
    files.write(out, arrays, classes, about)
    if skipped:
        lines = (json.dumps(asdict(one)) + "\n" for one in skipped)
        out.with_name(out.name + SKIPPED).write_text("".join(lines), encoding="utf-8")
    parts.remove()
    shapes = {name: value.shape[1:] for name, value in arrays.items() if files.is_features(name)}
    return Embedded(out, len(arrays["ids"]), shapes, skipped, resumed)
