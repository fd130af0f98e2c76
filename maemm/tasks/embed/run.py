"""``maemm embed``: features of a whole data set in one file, written in chunks so that an interrupted pass resumes."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maemm.config.paths import expanded
from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.atomic import write_text
from maemm.data.bad_samples import BadSample
from maemm.data.locks import writes
from maemm.data.single_pass import Progress
from maemm.data.subset import Subset
from maemm.tasks._shared import feature_files as files
from maemm.tasks._shared.embedding import embed_batches, embedder
from maemm.tasks._shared.features import Features, check_any, complete, join
from maemm.tasks._shared.inputs import Data, Weights, data_config, data_stamp, open_data, open_encoder, weights_stamp

CHUNK_ROWS, CHUNK_BYTES, CHUNK_S = 8192, 1 << 26, 60.0  # a chunk ends at whichever comes first
ABOUT, SKIPPED = "about.json", ".skipped.jsonl"


@dataclass(frozen=True)
class Embedded:
    """What :func:`embed` wrote."""

    path: Path
    count: int
    shapes: dict[str, tuple[int, ...]]  # by modality, of one sample
    skipped: list[BadSample]
    resumed: int  # samples that an interrupted call had done

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in self.shapes.items())
        skipped = f", {len(self.skipped):,} skipped (list: {self.path}{SKIPPED})" if self.skipped else ""
        before = f", {self.resumed:,} of them from before" if self.resumed else ""
        return f"{self.count:,} embeddings ({shapes}){before}{skipped} -> {self.path}"


@writes("out")
def embed(
    weights: Weights,
    data: Data,
    out: str | os.PathLike,
    *,
    pool: str | None = None,
    norm: str | None = None,
    layers: Iterable[int] | None = None,
    tokens: bool = False,
    latents: bool = False,
    batch: int = 64,
    workers: int | None = None,
    source: Any = None,
    list: str | os.PathLike | None = None,
    on_progress: Progress | None = None,
    **settings: Any,
) -> Embedded:
    """Features of all samples of ``data`` -> ``out``, a .npz, .safetensors or .parquet file with ids and labels.

    ``weights``: a run or checkpoint folder, a weights file, or a model. ``data``: a path; None: the data of its recipe.
    A program may also give an array or tensor (N, ...) of samples for a model of one modality, a pair of it and N
    labels, a torch Dataset (of arrays, images or {modality: such}, with or without a label), a list of paths, or a
    source; each array is read as a .npy file with it would be.
    ``pool``, ``norm``, ``layers``, ``tokens``, ``latents``: see :meth:`Model.embed`. ``source``, ``list``, ``workers``:
    in place of those in the recipe's ``data``. ``settings``: what a checkpoint does not record, see
    :func:`maemm.load`. The same call after an interrupt resumes. Samples that cannot be read are left out and listed
    beside ``out``. Raises :class:`MaemmError`.
    """
    out = expanded(out)
    files.check_target(out)
    model = open_encoder(weights, **settings)
    options = {k: v for k, v in (("source", source), ("list", list)) if v is not None}
    config = data_config(model.recipe, data, **options)
    opened = open_data(model.recipe, data, **options)
    blocks = None if layers is None else [int(block) for block in layers]
    embed_options: dict[str, Any] = {"pool": pool, "norm": norm, "layers": blocks, "tokens": tokens}
    if latents:
        embed_options["latents"] = True
    about = {
        "weights": weights_stamp(model),
        "data": data_stamp(opened, config["root"], config["list"]),
        **embed_options,
        **({"precision": "bf16"} if model.bf16 else {}),
    }
    stored = _StoredChunks(out, about)
    done = stored.rows
    rest = Subset(opened, range(done, len(opened)))

    def progress_of_rest(more: int, total: int) -> None:
        if on_progress is not None:
            on_progress(done + more, done + total)

    if len(rest):
        batches = embed_batches(
            model,
            rest,
            embedder(**embed_options),
            latents=latents,
            batch=batch,
            workers=config["workers"] if workers is None else workers,
            on_progress=progress_of_rest,
        )
        with closing(batches):  # an interrupt must not leave the inference mode of a suspended generator behind
            for rows, features in _chunks(batches, batch, len(rest)):
                stored.add(rows, features)
    return _finish(stored, out, opened, done, about)


def _chunks(
    batches: Iterator[dict[str, Features]], batch: int, total: int
) -> Iterator[tuple[int, dict[str, Features]]]:
    """(samples read so far, features since the chunk before). On an interrupt what is there is a chunk, too."""
    pending: list[dict[str, Features]] = []
    rows, size, began = 0, 0, time.monotonic()
    interrupt: BaseException | None = None
    while True:
        try:
            features = next(batches, None)
        except (KeyboardInterrupt, MaemmError) as error:
            features, interrupt = None, error
        if features is not None:
            pending.append(features)
            rows += min(batch, total - rows)
            size += sum(part.x.nbytes for part in features.values())
        full = len(pending) * batch >= CHUNK_ROWS or size >= CHUNK_BYTES or time.monotonic() - began >= CHUNK_S
        if pending and (full or features is None):
            yield rows, join(pending)
            pending, size, began = [], 0, time.monotonic()
        if interrupt is not None:
            raise interrupt
        if features is None:
            return


class _StoredChunks:
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
            path.unlink(missing_ok=True)
        self.first = self.rows  # samples that were done at the start: the new chunks count from here

    @property
    def paths(self) -> list[Path]:
        return sorted(self.folder.glob("rows-*.npz"))

    @property
    def rows(self) -> int:
        """How many samples of the source are done."""
        return max((int(path.stem.split("-")[1]) for path in self.paths), default=0)

    def add(self, rows: int, features: dict[str, Features]) -> None:
        """Store a chunk that ends ``rows`` samples behind those that were done at the start."""
        bad_samples = next(iter(features.values())).skipped
        skipped = json.dumps([{**asdict(bad), "index": bad.index + self.first} for bad in bad_samples])
        arrays = {**files.arrays_of(features), "skipped": np.array(skipped)}
        path = self.folder / f"rows-{self.first + rows:012d}.npz"
        beside = path.with_suffix(".tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ABOUT).write_text(self.about, encoding="utf-8")
            with beside.open("wb") as file:
                files.save_npz(file, arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except OSError as error:
            raise MaemmError(
                f"cannot write {path} ({error.strerror}); look at the folder and the free space: the same command "
                "continues"
            ) from error

    def skipped(self) -> list[BadSample]:
        return [BadSample(**bad) for chunk in self.chunks() for bad in json.loads(str(chunk["skipped"]))]

    def chunks(self) -> Iterator[np.lib.npyio.NpzFile]:
        """The stored chunks; each reads an array on access, and is closed when the next one comes."""
        for path in self.paths:
            with np.load(path, allow_pickle=False) as stored:
                yield stored

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _finish(stored: _StoredChunks, out: Path, source: Source, resumed: int, about: dict[str, Any]) -> Embedded:
    skipped = stored.skipped()
    arrays = files.concatenated(stored.chunks)
    complete(len(arrays.get("ids", ())), len(skipped), len(source), f"remove {stored.folder} and start again")
    if not arrays:
        stored.remove()
        check_any(Features(np.zeros((0, 0), np.float32), np.zeros(0, np.int64), [], skipped), len(source))
    classes = None if source.classes is None else [*source.classes]
    if skipped:  # first, since the file that the user named says that all is done
        text = "".join(json.dumps(asdict(bad)) + "\n" for bad in skipped)
        write_text(out.with_name(out.name + SKIPPED), text, "the list of skipped samples", advice=files.ADVICE)
    files.write(out, arrays, classes, about)
    stored.remove()
    shapes = {name: value.shape[1:] for name, value in arrays.items() if files.is_features(name)}
    return Embedded(out, len(arrays["ids"]), shapes, skipped, resumed)
