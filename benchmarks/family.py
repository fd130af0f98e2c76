"""What each masking and each target costs in a step, against plain MAE in the same run.

    OMP_NUM_THREADS=1 python benchmarks/family.py [--rounds 7] [--batch 32] [--size 64] [--only plain,attention]
        [--out benchmarks/results/family_cost.json]

Steps are those of ``image/mae_tiny_cpu`` with a ViT-Ti (patch 8, decoder of 2 blocks of 128): preprocess, plan, forward
and backward pass, update. CPU: one thread, the parts take turns step by step, so that a busy machine slows all; the
median over the rounds of the ratio to plain MAE, and the smallest seconds. Launches, bytes and waits are those of the
second step on the pretended GPU of the tests: operations that are no views, and what these read and write.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _machine import about
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import maemm
from maemm import config
from maemm.data.atomic import write_json
from maemm.train.distributed import DistContext
from maemm.train.optim import set_lr
from maemm.train.setup import make_train_state
from maemm.train.step import plan_micro_batches, take_step
from tests.pretended_gpu import recipes
from tests.pretended_gpu.device import gpu, is_on_gpu

RECIPE = "image/mae_tiny_cpu"
IMAGE = "modalities.image"
TINY = {"encoder.dim": 192, "encoder.depth": 12, "encoder.heads": 3, "decoder.dim": 128, "decoder.heads": 4}


def masking(**spec: Any) -> dict[str, Any]:
    return {f"{IMAGE}.masking": spec}


def target(**spec: Any) -> dict[str, Any]:
    return {f"{IMAGE}.target": spec}


#: {part: what it changes in the recipe}; TEACHER stands for a file
PARTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scan, spiral": masking(type="scan", order="spiral", ratio=0.75),
    "scan, hilbert in windows": masking(type="scan", order="hilbert", ratio=0.75),
    "scan, peano in strides": masking(type="scan", order="peano", mode="stride", ratio=0.75),
    "blocks": masking(type="blocks", ratio=0.75),
    "inverse_block": masking(type="inverse_block", ratio=0.75),
    "scattered_blocks": masking(type="scattered_blocks", ratio=0.75),
    "multi_block, exact": masking(type="multi_block", min_keep=4),
    "multi_block, official": masking(type="multi_block", min_keep=4, count="official"),
    "multi_block, two generators": masking(
        type="multi_block", generators=[{"blocks": 8}, {"blocks": 2, "scale": [0.7, 0.7]}]
    ),
    "attention of tokens": masking(type="attention", ratio=0.75),
    "attention of the class token": masking(type="attention", ratio=0.75, queries="prefix"),
    "attention, share 0": masking(type="attention", ratio=0.75, share=0.0),
    "clusters": masking(type="clusters", ratio=0.75, begin=0.0, hints=0.1),
    "clusters, before they begin": masking(type="clusters", ratio=0.75, begin=1.0),
    "hog": target(type="hog", cell=4, window=8),
    "frequency": target(type="frequency"),
    "teacher of the same size": target(type="teacher", model="TEACHER"),
    "ema": target(type="ema", momentum=0.99, layers=6, instance_norm=True),
    "codes": {**target(type="codes", vocab=2048), f"{IMAGE}.crop": "center", f"{IMAGE}.flip": False},
    "codebook": target(type="codebook", vocab=2048),
    "hog beside pixels": {
        "objectives": {"reconstruct": {}, "hog": {"type": "predict", "target": {"type": "hog", "cell": 4, "window": 8}}}
    },
}


class Traffic(TorchDispatchMode):
    """Counts operations on the pretended GPU that are no views, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        touched = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor) and is_on_gpu(x)]
        returns = func._schema.returns
        view = bool(returns) and all(x.alias_info is not None and not x.alias_info.is_write for x in returns)
        if touched and not view and func is not torch.ops.prim.device.default:
            self.launches += 1
            self.bytes += sum(x.numel() * x.element_size() for x in touched)
        return out


class Part:
    """A recipe in training, a step at a time."""

    def __init__(self, name: str, samples: recipes.Samples, teacher: Path, size: int, device: str = "cpu"):
        options = {
            "train.batch": recipes.BATCH,
            "train.compile": False,
            "train.precision": "fp32",
            f"{IMAGE}.size": size,
        }
        changes = PARTS[name]
        if "TEACHER" in str(changes):
            changes = target(**{**changes[f"{IMAGE}.target"], "model": str(teacher)})
        self.recipe = config.load(RECIPE, {**TINY, **options, **changes}, training=True)
        context = DistContext(device=torch.device(device, 0) if device == "cuda" else torch.device(device))
        self.state = make_train_state(self.recipe, 1000, 1, context, steps_per_epoch=100)
        set_lr(self.state.optimizer, 1e-4)
        self.batch = samples.batch(self.recipe, 0)
        self.steps = 0

    def step(self) -> None:
        take_step(self.state, plan_micro_batches(self.state, self.steps, [self.batch]))
        self.steps += 1


def seconds_of(parts: dict[str, Part], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each part's step in each round, in turns and back."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(rounds + 1):
        for name in list(parts) if turn % 2 else list(reversed(parts)):
            start = time.process_time()
            parts[name].step()
            if turn:  # the first step computes tables and allocates
                seconds[name].append(time.process_time() - start)
    return seconds


def on_pretended_gpu(name: str, samples: recipes.Samples, teacher: Path, size: int) -> dict[str, int]:
    """Launches, bytes and waits of a second step."""
    with gpu() as seen:
        part = Part(name, samples, teacher, size, "cuda")
        part.batch = part.batch.pin_memory()
        part.step()
        seen.clear()
        with Traffic() as traffic:
            part.step()
        waits = len(seen.waits) + len(seen.blocking_copies)
    return {"launches": traffic.launches, "bytes": traffic.bytes, "waits": waits}


def measure(names: list[str], rounds: int, size: int) -> dict[str, dict[str, Any]]:
    """{part: CPU seconds, launches, bytes and waits of a step, and their ratios to plain MAE}."""
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        samples, teacher = recipes.Samples(Path(folder) / "samples"), Path(folder) / "teacher.safetensors"
        maemm.save(maemm.build(RECIPE, **TINY, **{f"{IMAGE}.size": size}), teacher)
        for name in names:
            rows[name] = on_pretended_gpu(name, samples, teacher, size)
        seconds = seconds_of({name: Part(name, samples, teacher, size) for name in names}, rounds)
    for name, own in seconds.items():
        ratios = sorted(a / b for a, b in zip(own, seconds["plain"], strict=True))
        rows[name] |= {
            "cpu_seconds": min(own),
            "cpu_ratio": statistics.median(ratios),
            "cpu_ratio_range": [ratios[0], ratios[-1]],
            "bytes_ratio": rows[name]["bytes"] / rows["plain"]["bytes"],
        }
    return rows


def table(rows: dict[str, dict[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| part | CPU seconds / plain | launches | bytes / plain | waits |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        low, high = row["cpu_ratio_range"]
        more = row["launches"] - rows["plain"]["launches"]
        launches = f"{more:+d}" if name != "plain" else f"{row['launches']}"
        cpu = f"{row['cpu_ratio']:.3f} ({low:.2f} to {high:.2f})" if name != "plain" else f"{row['cpu_seconds']:.2f} s"
        size = f"{row['bytes_ratio']:.3f}" if name != "plain" else f"{row['bytes'] / 2**30:.2f} GiB"
        lines.append(f"| {name} | {cpu} | {launches} | {size} | {row['waits']} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels, of patches of 8")
    parser.add_argument("--only", help="parts, with commas between them")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    names = [name for name in PARTS if not args.only or name == "plain" or name in args.only.split(",")]
    recipes.BATCH = args.batch
    rows = measure(names, args.rounds, args.size)
    print(table(rows))
    result = {
        "about": about() | {"threads": 1, "batch": args.batch, "size": args.size, "rounds": args.rounds},
        "recipe": {"name": RECIPE, **TINY},
        "rows": rows,
    }
    if args.out is not None:
        write_json(args.out, result, "results")
    return result


if __name__ == "__main__":
    main()
