"""Augmentations of batches and random draws: CPU time, and launches on the pretended GPU, of two checkouts in one run.

    OMP_NUM_THREADS=1 python benchmarks/augment.py [--before CHECKOUT] [--rounds 5] [--out benchmarks/results]

The checkouts take turns in processes of their own, so that a busy machine slows both; the figures are the smallest
CPU times of all rounds. Launches are those of a batch of 4 and of 16.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _machine import about

HERE = Path(__file__).parents[1]
DRAWS = ((1, 1), (1, 40), (8, 1), (64, 1), (128, 3), (128, 40), (256, 196), (64, 8192))  # rows, numbers of each


class Net(torch.nn.Module):
    """As much of a model as the objective looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Module()
        self.head.classes = 10


def augmentations(count: int, side: int) -> dict[str, Callable[[str], Any]]:
    """{name: a function of the device}, each of ``count`` pictures, or of an eighth as many clips."""
    from maemm.contract import Preprocessed
    from maemm.contract.rng import Rng
    from maemm.model.objectives.classify import Classify
    from maemm_plugins.image.modality import Image
    from maemm_plugins.pointcloud.modality import PointCloud

    rng = Rng((0, 4), range(count), count)
    pictures = torch.rand(count, 3, side, side)
    clips = torch.rand(max(count // 8, 2), 3, 8, side, side)
    turned = PointCloud(augment={"rotate": "so3", "jitter": 0.01, "dropout": 0.5})
    cropped = Image(size=side // 2, patch=side // 8, device_crop=True)

    def objective(x: torch.Tensor, **options: Any) -> Callable[[str], Any]:
        classify = Classify("classify", **options)
        few = Rng((0, 4), range(len(x)), len(x))

        def run(device: str) -> Any:
            batch = Preprocessed(_moved(x, device))
            return classify.batch({"x": batch}, torch.arange(len(x)) % 10, few, Net())

        return run

    return {
        "erase a quarter of the pictures": objective(pictures, erase=0.25),
        "erase all pictures": objective(pictures, erase=1.0),
        "erase a quarter of the clips": objective(clips, erase=0.25),
        "mixup of pictures": objective(pictures, mixup=0.8),
        "crops of pictures, flipped": lambda device: cropped.preprocess({"x": _moved(pictures, device)}, rng),
        "clouds scaled, shifted, turned, jittered, thinned": lambda device: turned.preprocess(
            {"x": _moved(torch.rand(count, 1024, 3), device)}, rng
        ),
    }


def _moved(x: torch.Tensor, device: str) -> torch.Tensor:
    return x if device == "cpu" else x.pin_memory().to(device, non_blocking=True)


def _milliseconds(call: Callable[[], Any], rounds: int) -> float:
    """The smallest CPU time of a call."""
    times = []
    for _ in range(rounds):
        start = time.process_time_ns()
        call()
        times.append((time.process_time_ns() - start) / 1e6)
    return min(times)


def measure(count: int, side: int) -> dict[str, Any]:
    """CPU times in ms and launches of the checkout that is on the path."""
    from maemm.contract.rng import Rng

    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    for name, run in augmentations(count, side).items():
        rows[name] = {"cpu_ms": _milliseconds(lambda run=run: run("cpu"), 3)}
    for name in rows:
        rows[name]["launches"] = [_launches(augmentations(few, 32)[name]) for few in (4, 16)]
    for number, size in DRAWS:
        rng = Rng((0, 4), range(number), number)
        repeats = max(1, 20000 // (number * size))
        draw = lambda rng=rng, size=size, repeats=repeats: [rng.uniform("draw", size) for _ in range(repeats)]  # noqa: E731
        rows[f"draw of {number} x {size}"] = {
            "cpu_ms": _milliseconds(draw, 5) / repeats,
            "launches": [_launches(lambda device, rng=rng, size=size: rng.uniform("draw", size, device=device))],
        }
    return rows


def _launches(run: Callable[[str], Any]) -> int:
    from tests.pretended_gpu.device import gpu

    views = "view", "unsqueeze", "select", "expand", "slice", "transpose", "unbind", "detach", "alias", "permute"
    with gpu() as seen:
        run("cuda")
        return sum(n for name, n in seen.launches.items() if name.split(".")[1].strip("_") not in views)


def _of_checkout(folder: Path, words: list[str]) -> dict[str, Any]:
    path = os.pathsep.join([str(folder / "importable"), str(folder)])
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", *words]
    done = subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--side", type=int, default=224, help="of pictures and clips, in pixels")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        rows = measure(args.batch, args.side)
        print(json.dumps(rows))
        return rows
    checkouts = {"after": HERE} if args.before is None else {"before": args.before.resolve(), "after": HERE}
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(args.rounds):
        for state, folder in checkouts.items():
            measured = _of_checkout(folder, ["--batch", str(args.batch), "--side", str(args.side)])
            for name, row in measured.items():
                best = rows.setdefault(name, {}).setdefault(state, row)
                best["cpu_ms"] = min(best["cpu_ms"], row["cpu_ms"])
    result = {"about": about() | {"threads": 1, "batch": args.batch, "side": args.side}, "rows": rows}
    for name, states in rows.items():
        print(f"{name:52}", *(f"{state} {row['cpu_ms']:9.4f} ms {row['launches']}" for state, row in states.items()))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "augment.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
