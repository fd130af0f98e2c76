"""Data in shards: a simulated billion of samples; files, HTTP and S3 beside a folder; how well shards are mixed.

    OMP_NUM_THREADS=1 python benchmarks/shards.py [--pictures 4000] [--out benchmarks/results/shards.json]

The billion lies in 100,000 shards of a file system that makes its bytes when they are asked for, so that everything but
the storage is real: opening, the order of an epoch, the index (read by range, 16 GB), ranges of shards, checks. The
others read the same pictures (JPEG, 256 pixels) through the loader with two worker processes, in one run, the smallest
of three rounds each; HTTP and S3 are servers on this machine that share its cores. `data-wait` is the part of the time
that a loop waits which takes 10 ms for each batch of 64. Mixing is measured where it matters, on shards that are sorted
by class: how far the fractions of classes in a batch spread, as a multiple of those of an exact shuffle.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from _machine import about
from fsspec import AbstractFileSystem, register_implementation
from PIL import Image

from maemm import config
from maemm.contract.rng import Rng
from maemm.data.atomic import write_json
from maemm.data.loader import Loader
from maemm.data.open import open_source
from maemm.data.order import ShuffledBatches
from maemm.data.shards import tar
from maemm.data.shards.source import open_shards
from maemm.model.build import build_modalities
from maemm.tasks.data.pack import data_shards

sys.path.append(str(Path(__file__).parents[1]))
from tests.maemm.shards.servers import s3, serving  # noqa: E402  # not installed

SHARDS, EACH = 100_000, 10_000
BATCH, STEP_S = 64, 0.010


# --------------------------------------------------------------------------------------------------- a billion samples
def _sample() -> bytes:
    picture, file = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(picture, "png")
    tar.write(file, iter([("sample", {"png": picture.getvalue()})]))
    span = next(tar.spans(file.getvalue()))
    return file.getvalue()[span.start : span.stop]


class Simulated(AbstractFileSystem):
    """100,000 shards of 10,000 equal samples, and their index."""

    protocol = "simulated"
    sample = _sample()

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        if path.endswith(".bin"):
            return {"size": 8 * (SHARDS * EACH + SHARDS) + 8 * SHARDS * EACH, "type": "file"}
        return {"size": len(self.cat_file(path)), "type": "file"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return self._content(path, start or 0, end)

    def _content(self, path: str, start: int, end: int | None) -> bytes:
        if path.endswith("index.json"):
            names = [
                {"name": f"s-{number:06d}.tar", "samples": EACH, "bytes": EACH * len(self.sample), "version": ""}
                for number in range(SHARDS)
            ]
            record = {
                "maemm_shards": 1,
                "digest": "0",
                "binary": "index-0.bin",
                "parts": {"image": {}},
                "shards": names,
            }
            return json.dumps(record).encode()
        assert end is not None
        if path.endswith(".bin"):
            starts = 8 * (SHARDS * EACH + SHARDS)
            if start < starts:  # bytes of each shard's samples begin at multiples of a sample's
                numbers = np.arange(start // 8, end // 8) % (EACH + 1)
                return (numbers * len(self.sample)).astype(np.uint64).tobytes()
            if start < starts + 4 * SHARDS * EACH:
                return np.full((end - start) // 4, zlib.crc32(self.sample), np.uint32).tobytes()
            return np.full((end - start) // 4, -1, np.int32).tobytes()
        assert start % len(self.sample) == 0 and end - start == len(self.sample)
        return self.sample


def billion() -> dict[str, float]:
    """Seconds and memory of a run over a billion samples that begins at step 0, and at step 5 x 10^8 / 256."""
    register_implementation("simulated", Simulated, clobber=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    source = open_shards("simulated://data", name="image")
    opened = time.perf_counter() - start
    result: dict[str, float] = {"samples": len(source), "shards": SHARDS, "seconds_to_open": opened}
    recipe = config.load("image/mae_tiny_cpu")
    for step in (0, 5 * 10**8 // 256):
        start = time.perf_counter()
        order = ShuffledBatches(len(source), 256, 0)
        loader = Loader(source, build_modalities(recipe), order, seed=0)
        batches = loader.batches(step, step + 4)
        next(batches)
        result[f"seconds_to_first_batch_of_step_{step}"] = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(3):
            next(batches)
        result[f"seconds_of_a_batch_from_step_{step}"] = (time.perf_counter() - start) / 3
    for mixed in (None, 16):
        order = ShuffledBatches(
            len(source), 256, 0, **({} if mixed is None else {"shards": source.shard_sizes, "mixed": mixed})
        )
        order.micro_batches(5 * 10**8 // 256)
        start = time.perf_counter()
        for step in range(100):
            order.micro_batches(5 * 10**8 // 256 + step)
        result["us_of_the_order_of_a_batch" + ("" if mixed is None else f"_shuffle_{mixed}")] = (
            time.perf_counter() - start
        ) * 1e4
    result["memory_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return result


# ------------------------------------------------------------------------------------------------- samples per second
def write_pictures(folder: Path, count: int) -> None:
    """JPEG pictures of 256 pixels in 10 classes, smooth enough to be as large as photographs are."""
    numbers = np.random.default_rng(0)
    for index in range(count):
        small = Image.fromarray(numbers.integers(0, 255, (24, 24, 3), np.uint8))
        path = folder / f"class{index * 10 // count}" / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((256, 256), Image.Resampling.BICUBIC).save(path, quality=90)


def rate(root: str, spec: Any, shuffle: Any = "exact", steps: int = 30) -> dict[str, float]:
    """Samples per second of the loader alone, and the part of the time that a loop of 10 ms a batch waits."""
    recipe = config.load("image/mae_base")
    recipe["data"] = {**recipe["data"], "root": root, "source": spec}
    source = open_source(recipe)
    order = ShuffledBatches(
        len(source), BATCH, 0, **({} if shuffle == "exact" else {"shards": source.shard_sizes, "mixed": shuffle})
    )
    loader = Loader(source, build_modalities(recipe), order, seed=0, workers=2)
    rates, waits = [], []
    for epoch in range(3):
        first = epoch * order.steps_per_epoch
        batches = loader.batches(first, first + steps)
        next(batches)
        start, waited = time.perf_counter(), 0.0
        for _ in range(steps - 1):
            before = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - before
            time.sleep(STEP_S)
        seconds = time.perf_counter() - start
        rates.append(BATCH * (steps - 1) / (seconds - STEP_S * (steps - 1)))
        waits.append(waited / seconds)
        batches.close()
    return {"samples_per_second": max(rates), "data_wait": min(waits)}


def rates(pictures: Path, shards: Path) -> list[dict[str, Any]]:
    """One row for each place of the data."""
    rows = [{"place": "folder", **rate(str(pictures), None)}]
    rows.append({"place": "shards on a disk", **rate(str(shards), "shards")})
    rows.append({"place": "shards on a disk, shuffle 2", **rate(str(shards), "shards", 2)})
    with serving(shards) as server, tempfile.TemporaryDirectory() as cache:
        rows.append({"place": "HTTP", **rate(server.url, "shards")})
        kept = {"type": "shards", "cache": cache}
        rate(server.url, kept)
        rows.append({"place": "HTTP, in the cache", **rate(server.url, kept)})
    with s3(shards) as options:
        rows.append({"place": "S3", **rate("s3://data", {"type": "shards", "storage": options})})
    return rows


def cpu_of_a_sample(pictures: Path, shards: Path, rounds: int = 9) -> dict[str, float]:
    """Milliseconds of a CPU for reading a sample, as batches of 64 are read; in turns, the median of the rounds."""
    recipe = config.load("image/mae_base")
    folder = open_source({**recipe, "data": {**recipe["data"], "root": str(pictures)}})
    sources = {"shards": open_shards(str(shards), name="image"), "folder": folder}
    times: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(rounds):
        for name, source in sources.items():
            start = time.process_time()
            for first in range(0, 4 * BATCH, BATCH):
                source.read_ahead(range(first, first + BATCH))
                for index in range(first, first + BATCH):
                    source.read(index, Rng((0,)))
            times[name].append((time.process_time() - start) / (4 * BATCH) * 1000)
    return {name: float(np.median(values)) for name, values in times.items()}


# ------------------------------------------------------------------------------------------------------------- mixing
def mixing() -> list[dict[str, float]]:
    """Spread of the fractions of classes in batches of 256 from shards sorted by class, in multiples of the exact."""
    shards, each, classes = 200, 1000, 100
    sizes = np.full(shards, each)
    labels = np.arange(shards * each) * classes // (shards * each)

    def spread(**options: Any) -> float:
        order = ShuffledBatches(shards * each, 256, 0, **options)
        own = np.array(
            [[request.index for request in order.micro_batches(step)[0]] for step in range(order.steps_per_epoch)]
        )
        counts = np.stack([np.bincount(labels[row], minlength=classes) for row in own])
        return float(counts.std(0).mean())

    exact = spread()
    return [{"shuffle": mixed, "spread": spread(shards=sizes, mixed=mixed) / exact} for mixed in (1, 4, 16, 64, 200)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--only", choices=["cpu"], help="measure the CPU time of a sample, and packing, alone")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/shards.json"))
    args = parser.parse_args()
    if args.only is None:
        result: dict[str, Any] = {"about": about(), "billion": billion(), "mixing": mixing()}
    else:  # the rest of the file stays
        result = json.loads(args.out.read_text()) | {f"about_{args.only}": about()}
    with tempfile.TemporaryDirectory() as home:
        pictures, shards = Path(home, "pictures"), Path(home, "shards")
        write_pictures(pictures, args.pictures)
        start = time.process_time(), time.perf_counter()
        data_shards(pictures, shards, samples=200, workers=0)
        result["pack"] = {"pictures_per_cpu_second": args.pictures / (time.process_time() - start[0])}
        result["cpu_ms_of_a_sample"] = cpu_of_a_sample(pictures, shards)
        if args.only is None:
            result["rates"] = rates(pictures, shards)
    write_json(args.out, result, "results")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
