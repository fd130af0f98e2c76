"""Where a step of each recipe waits for the device: ``python -m tests.pretended_gpu.audit [NAME...]``."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from maemm.train.distributed import DistContext

from .device import gpu
from .recipes import RECIPES, Samples, shrunk, two_steps

FP32 = {"train.precision": "fp32"}


def audit(name: str, samples: Samples) -> dict:
    """{what a step of the recipe does on a GPU: how often}, and how far its losses are from the CPU's."""
    recipe = shrunk(name, FP32)
    expected = [float(loss) for loss in two_steps(recipe, samples, DistContext())]
    with gpu() as seen:
        losses = two_steps(recipe, samples, DistContext(device=torch.device("cuda", 0)), seen)
        waits, copies, launches = list(seen.waits), list(seen.blocking_copies), dict(seen.launches)
        losses = [float(loss.cpu()) for loss in losses]
    return {
        "waits": Counter(map(str, waits)),
        "blocking copies": Counter(map(str, copies)),
        "launches": sum(launches.values()),
        "difference": max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True)),
    }


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        samples = Samples(Path(folder))
        for name in [recipe for recipe in RECIPES if not names or any(part in recipe for part in names)]:
            start = time.perf_counter()
            try:
                row = audit(name, samples)
            except Exception as error:
                row = {"error": f"{type(error).__name__}: {error}"[:400]}
            print(json.dumps({"recipe": name, **row, "seconds": round(time.perf_counter() - start, 1)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
