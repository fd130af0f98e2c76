"""What each masking and each target costs in a step, against plain MAE in the same run.

    OMP_NUM_THREADS=1 python benchmarks/family.py [--rounds 7] [--batch 32] [--only "clusters;hog"]
        [--out benchmarks/results/family_cost.json]

CPU: steps (preprocess, plan, forward and backward pass, update) of ``image/mae_tiny_cpu`` with a ViT-Ti, 64 tokens, one
thread. The parts take turns step by step, so that a busy machine slows all; the median over the rounds of the ratio to
plain MAE. GPU: a step of 64 pictures of ``image/mae_base`` in bf16, counted on shapes alone on the pretended GPU of the
tests (``tests/pretended_gpu/work.py``, which also says how milliseconds follow from the counts).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from _machine import about

from maemm import config
from maemm.data.atomic import write_json
from maemm.train.distributed import DistContext
from maemm.train.optim import set_lr
from maemm.train.setup import make_train_state
from maemm.train.step import plan_micro_batches, take_step

sys.path.append(str(Path(__file__).parents[1]))
from tests.pretended_gpu import recipes  # noqa: E402  # not installed
from tests.pretended_gpu.device import gpu  # noqa: E402
from tests.pretended_gpu.work import counted  # noqa: E402

IMAGE = "modalities.image"
ON_CPU = "image/mae_tiny_cpu"
TINY = {"encoder.dim": 192, "encoder.depth": 12, "encoder.heads": 3, "decoder.dim": 128, "decoder.heads": 4}
ON_GPU = "image/mae_base"
PICTURES = 64  # of a step on the GPU


def parts_of(hog: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{part: what it changes in the recipe}. ``hog``: its sizes."""

    def masking(kind: str, **options: Any) -> dict[str, Any]:
        return {f"{IMAGE}.masking": {"type": kind, **options}}

    def target(kind: str, **options: Any) -> dict[str, Any]:
        return {f"{IMAGE}.target": {"type": kind, **options}}

    boxes = [{"blocks": 8}, {"blocks": 2, "scale": [0.7, 0.7]}]
    return {
        "plain": {},
        "scan, spiral": masking("scan", order="spiral", ratio=0.75),
        "scan, hilbert in windows": masking("scan", order="hilbert", ratio=0.75),
        "scan, peano in strides": masking("scan", order="peano", mode="stride", ratio=0.75),
        "blocks": masking("blocks", ratio=0.75),
        "inverse_block": masking("inverse_block", ratio=0.75),
        "scattered_blocks": masking("scattered_blocks", ratio=0.75),
        "multi_block, exact": masking("multi_block", min_keep=4),
        "multi_block, official": masking("multi_block", min_keep=4, count="official"),
        "multi_block, two generators": masking("multi_block", generators=boxes),
        "attention of tokens": masking("attention", ratio=0.75),
        "attention of the class token": masking("attention", ratio=0.75, queries="prefix"),
        "attention, share 0": masking("attention", ratio=0.75, share=0.0),
        "clusters": masking("clusters", ratio=0.75, begin=0.0, hints=0.1),
        "clusters, before they begin": masking("clusters", ratio=0.75, begin=1.0),
        "hog": target("hog", **hog),
        "frequency": target("frequency"),
        "teacher of the same size": target("teacher"),
        "ema": target("ema", momentum=0.99, layers=6, instance_norm=True),
        "codes": {**target("codes"), f"{IMAGE}.crop": "center", f"{IMAGE}.flip": False},
        "codebook": target("codebook"),
        "hog beside pixels": {
            "objectives": {"reconstruct": {}, "hog": {"type": "predict", "target": {"type": "hog", **hog}}}
        },
    }


TINY_PARTS, BASE_PARTS = parts_of({"cell": 4, "window": 8}), parts_of({})


class Training:
    """A recipe in training on the CPU, a step at a time."""

    def __init__(self, changes: dict[str, Any], samples: recipes.Samples, batch: int):
        options = {"train.batch": batch, "train.compile": False, "train.precision": "fp32"}
        recipe = config.load(ON_CPU, {**TINY, **options, **changes}, training=True)
        self.state = make_train_state(recipe, 1000, 1, DistContext(), steps_per_epoch=100)
        set_lr(self.state.optimizer, 1e-4)
        self.batch = samples.batch(recipe, 0, None, batch // recipes.BATCH)
        self.steps = 0

    def step(self) -> float:
        """CPU seconds."""
        start = time.process_time()
        take_step(self.state, plan_micro_batches(self.state, self.steps, [self.batch]))
        self.steps += 1
        return time.process_time() - start


def on_cpu(names: list[str], samples: recipes.Samples, rounds: int, batch: int) -> dict[str, dict[str, Any]]:
    """{part: CPU seconds of a step, and their ratio to plain MAE, median and range over the rounds}."""
    trainings = {name: Training(TINY_PARTS[name], samples, batch) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names if turn % 2 else reversed(names):
            passed = trainings[name].step()
            if turn:  # the first step computes tables and allocates
                seconds[name].append(passed)
    rows = {}
    for name, own in seconds.items():
        ratios = sorted(a / b for a, b in zip(own, seconds["plain"], strict=True))
        ends = [ratios[0], ratios[-1]]
        rows[name] = {"cpu_seconds": min(own), "cpu_ratio": statistics.median(ratios), "cpu_ratio_range": ends}
    return rows


def on_gpu(name: str, samples: recipes.Samples) -> dict[str, Any]:
    """Launches, bytes, milliseconds by the model, and waits of a second step on the pretended GPU."""
    options = {"train.batch": PICTURES, "train.micro_batch": None, "train.compile": False}
    recipe = config.load(ON_GPU, {**options, **BASE_PARTS[name]})
    unchecked = mock.patch("maemm.weights.teacher.FrozenTeacher._compare")  # shapes have no fingerprint
    with unchecked, gpu(values=False) as seen, counted(seen) as work:
        memory = recipes.counted_step(recipe, samples, seen, work)
        waits = len(seen.waits)
    ms = 1e3 * work.seconds()
    return {"launches": work.launches, "bytes": work.bytes, "ms": ms, "kept": memory["kept"], "waits": waits}


def measure(names: list[str], rounds: int, batch: int) -> dict[str, dict[str, Any]]:
    """{part: :func:`on_cpu` and :func:`on_gpu`}."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        samples = recipes.Samples(Path(folder))
        counts = {name: on_gpu(name, samples) for name in names}
        times = on_cpu(names, samples, rounds, batch)
    return {name: {**times[name], **counts[name]} for name in names}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| part | CPU time / plain (range) | launches | GB | ms | waits |", "|---|---|---|---|---|---|"]
    plain = rows["plain"]
    for name, row in rows.items():
        low, high = row["cpu_ratio_range"]
        cpu = f"{row['cpu_seconds']:.2f} s" if name == "plain" else f"{row['cpu_ratio']:.2f} ({low:.2f} to {high:.2f})"
        sign = "" if name == "plain" else "+"
        base = {"launches": 0, "bytes": 0, "ms": 0.0} if name == "plain" else plain
        launches, ms = row["launches"] - base["launches"], row["ms"] - base["ms"]
        size = (row["bytes"] - base["bytes"]) / 1e9
        numbers = f"{launches:{sign},d} | {size:{sign}.2f} | {ms:{sign}.2f}"
        lines.append(f"| {name} | {cpu} | {numbers} | {row['waits']} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=32, help="pictures of a step on the CPU")
    parser.add_argument("--only", help="parts, with semicolons between them; plain MAE is always among them")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    chosen = args.only.split(";") if args.only else list(TINY_PARTS)
    rows = measure([name for name in TINY_PARTS if name == "plain" or name in chosen], args.rounds, args.batch)
    print(table(rows))
    sizes = {"threads": 1, "batch": args.batch, "rounds": args.rounds, "pictures on the GPU": PICTURES}
    result = {"about": about() | sizes, "cpu": {"recipe": ON_CPU, **TINY}, "gpu": {"recipe": ON_GPU}, "rows": rows}
    if args.out is not None:
        write_json(args.out, result, "results")
    return result


if __name__ == "__main__":
    main()
