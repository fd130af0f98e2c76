"""Launches, bytes and operations of one step at published sizes, counted without a GPU, of checkouts beside each other.

    python benchmarks/launches.py [--before CHECKOUT] [--out benchmarks/results/launches.json]

Every step is the second one of a run, eager, in bf16, on the pretended GPU of the tests, which knows shapes alone. The
model that turns counts into seconds and into a share of the peak of an H100 is written down in
``tests/pretended_gpu/work.py``. Checkouts are counted by the same code, in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from _machine import about

HERE = Path(__file__).parents[1]
OFTEN = {"train.micro_batch": 64}
AGAIN = {"train.activation_checkpointing": True}
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {  # recipe, samples of a step, overrides
    "mae_base": ("image/mae_base", 256, {}),
    "mae_large": ("image/mae_large", 256, {}),
    "mae_huge": ("image/mae_huge", 256, {}),
    "videomae_base": ("video/videomae_base", 64, {}),
    "audiomae_base": ("audio/audiomae_base", 64, {}),
    "point_mae": ("pointcloud/point_mae", 128, {}),
    "cav_mae_base": ("cav/cav_mae_base", 48, {}),
    "mae_large, micro-batches of 64": ("image/mae_large", 256, OFTEN),
    "mae_large, residual fp32": ("image/mae_large", 256, {"train.residual": "fp32"}),
    "mae_large, activations again": ("image/mae_large", 256, AGAIN),
}


def counts(case: tuple[str, int, dict[str, Any]], compiled: bool | str = False) -> dict[str, Any]:
    """The counts of one case, of the maemm that is imported here. ``compiled``: ``train.compile``."""
    sys.path.append(str(HERE))  # the pretended GPU is always the one of this checkout
    from maemm import config
    from tests.pretended_gpu.device import gpu
    from tests.pretended_gpu.inductor import lowered
    from tests.pretended_gpu.recipes import Samples, counted_step
    from tests.pretended_gpu.work import counted

    recipe_name, batch, changes = case
    base = {"train.batch": batch, "train.micro_batch": None, "train.compile": compiled}
    recipe = config.load(recipe_name, base | changes)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        seen = stack.enter_context(gpu(values=False))
        work = stack.enter_context(counted(seen))
        graphs = stack.enter_context(lowered(seen, work)) if compiled else []
        memory = counted_step(recipe, Samples(Path(folder)), seen, work)
        if compiled and not graphs:
            raise RuntimeError(f"nothing of {recipe_name} was compiled")
    return {
        "launches": work.launches,
        "GB": round(work.bytes / 1e9, 1),
        "GB_by_kind": {kind: round(x.bytes / 1e9, 1) for kind, x in work.kinds.items()},
        "launches_by_kind": {kind: x.launches for kind, x in work.kinds.items()},
        "TFLOP": round(work.flops / 1e12, 2),
        "ms": round(1e3 * work.seconds(), 1),
        "share_of_peak": round(work.share(), 3),
        "weights_and_moments_GB": round(memory["held"] / 1e9, 2),
        "kept_activations_GB": round(memory["kept"] / 1e9, 2),
    }


def _of_checkout(folder: Path, name: str) -> dict[str, Any] | None:
    environment = {**os.environ, "PYTHONPATH": str(folder / "importable"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--count", name]
    done = subprocess.run(command, cwd=HERE / "benchmarks", env=environment, capture_output=True, text=True)
    if done.returncode:  # such as an option that the checkout does not have
        print(done.stderr.strip().splitlines()[-1][:300])
        return None
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--count", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.count:
        row = counts(CASES[args.count])
        print(json.dumps(row))
        return row
    checkouts = {"after": HERE} if args.before is None else {"before": args.before.resolve(), "after": HERE}
    rows: dict[str, dict[str, Any]] = {}
    for name in args.cases:
        recipe, batch, changes = CASES[name]
        rows[name] = {"recipe": recipe, "batch": batch, **changes}
        for state, folder in checkouts.items():
            rows[name][state] = row = _of_checkout(folder, name)
            print(f"{name:32} {state:7}", {k: x for k, x in (row or {}).items() if "by_kind" not in k})
    result = {"about": about(), "rows": rows}
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
