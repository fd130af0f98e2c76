"""Launches, bytes and modelled time of a step at published sizes: eager, with compiled blocks, and as one graph.

    python benchmarks/compiled.py [--cases mae_base ...] [--out benchmarks/results/compiled.json]

Nothing runs: what is compiled is lowered by Inductor for compute capability 9.0 on the pretended GPU of the tests, down
to the code that would be launched (``tests/pretended_gpu/inductor.py``). The rest of the step, such as plans, losses,
clipping, the optimiser and averages of weights, is counted as in ``launches.py``, by the same model of an H100. One
process for each count; a whole graph takes a minute or two. With ``--out``, rows of other cases stay in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import launches
from _machine import about

HERE = Path(__file__).parents[1]
SETTINGS: dict[str, Any] = {"eager": False, "blocks": "blocks", "graph": True}  # of train.compile
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    name: launches.CASES[name]
    for name in (
        "mae_base",
        "mae_large",
        "videomae_base",
        "audiomae_base",
        "point_mae",
        "cav_mae_base",
        "mae_large, micro-batches of 64",
        "mae_large, activations again",
    )
} | {"data2vec2_base": ("image/data2vec2_base", 128, {}), "ijepa_base": ("image/ijepa_base", 128, {})}


def _count(name: str, setting: str) -> dict[str, Any]:
    """In a process of its own."""
    code = "import json, sys, compiled; print(json.dumps(compiled.count(*sys.argv[1:])))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE / "importable")}
    command = [sys.executable, "-c", code, name, setting]
    done = subprocess.run(command, cwd=HERE / "benchmarks", env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}, {setting}: {done.stderr.strip().splitlines()[-1][:300]}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def count(name: str, setting: str) -> dict[str, Any]:
    """The counts of one case."""
    return launches.counts(CASES[name], SETTINGS[setting])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    rows: dict[str, dict[str, Any]] = {}
    if args.out is not None and args.out.exists():
        rows = json.loads(args.out.read_text())["rows"]
    result = {"about": about(), "rows": rows}
    for name in args.cases:
        recipe, batch, changes = CASES[name]
        rows[name] = {**rows.get(name, {}), "recipe": recipe, "batch": batch, **changes}
        for setting in args.settings:
            rows[name][setting] = row = _count(name, setting)
            print(f"{name:32} {setting:7}", {k: x for k, x in row.items() if "by_kind" not in k}, flush=True)
            if args.out is not None:
                args.out.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
