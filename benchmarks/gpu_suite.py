"""Measure every landed recipe on the machine at hand, in under nine minutes; writes its dated JSON as it goes.

    python benchmarks/gpu_suite.py [--out benchmarks/results] [--budget 500]

On a GPU: eager and compiled bf16 steps of the published sizes, share of the bf16 matmul rate measured in the same
run, peak memory. On a CPU the same rows with tiny widths, so that the suite itself is tested everywhere. Later
plugins add their rows to ``ROWS``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from _machine import about
from torch.utils.flop_counter import FlopCounterMode

import maemm

SHRUNK = {"encoder.dim": 32, "encoder.depth": 2, "encoder.heads": 2,
          "decoder.dim": 32, "decoder.depth": 1, "decoder.heads": 2}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One recipe to measure: samples per step on a GPU, and the shape of one where the example is a small one."""

    recipe: str
    batch: int
    shape: tuple[int, ...] | None = None


ROWS = [
    Row("image/mae_base", 512),
    Row("image/mae_large", 256),
    Row("image/mae_huge", 128),
    Row("image/pixio_base", 256),
    Row("audio/audiomae_base", 128),
    Row("video/videomae_base", 64),
    Row("video/videomae_v2_base", 64),
    Row("video/mae_st_large", 32),
    Row("pointcloud/point_mae", 512, (1024, 3)),
    Row("pointcloud/pcp_mae", 512, (1024, 3)),
]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device) -> float:
    """FLOP/s of a square matrix product: bf16 on a GPU, float32 on a CPU."""
    gpu = device.type == "cuda"
    side, dtype = (8192, torch.bfloat16) if gpu else (768, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    synchronize(device)
    start, count = time.perf_counter(), 20 if gpu else 5
    for _ in range(count):
        a @ b
    synchronize(device)
    return 2 * side**3 * count / (time.perf_counter() - start)


def step_function(model: torch.nn.Module, forward: torch.nn.Module, batch: dict, rows: int, device: torch.device):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")

    def step(number: int) -> None:
        inputs = model.plan(batch, maemm.Rng((0, number), range(rows), rows))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            total = forward(inputs).total
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def example(modality: torch.nn.Module, name: str, row: Row, rows: int) -> torch.Tensor:
    if row.shape is None:
        return modality.example(rows, maemm.Rng((0, name))).x
    return torch.randn(rows, *row.shape, generator=torch.Generator().manual_seed(0))


def grouping(device: torch.device) -> dict:
    """Clouds per second of farthest point sampling: the kernel against the loop in plain torch, and neighbours."""
    from maemm_plugins.pointcloud import grouping as ours

    clouds, points, groups, size = (512, 1024, 64, 32) if device.type == "cuda" else (4, 256, 16, 8)
    x = torch.randn(clouds, points, 3, generator=torch.Generator().manual_seed(0)).to(device)
    planes, nearest = x.transpose(1, 2).contiguous(), torch.full((clouds, points), torch.inf, device=device)
    first = torch.zeros(clouds, dtype=torch.long, device=device)
    index = ours.farthest_points(x, groups)[0]
    centers = ours.gather_points(x, index[..., None])[:, :, 0]
    ways = {
        "as_chosen": lambda: ours.farthest_points(x, groups),
        "torch_loop": lambda: ours._sample(planes, nearest.clone(), first, groups),
        "neighbours": lambda: ours.neighbours(x, centers, size),
    }
    found = {name: clouds / _seconds(way, device) for name, way in ways.items()}
    kernel = "triton" if device.type == "cuda" and ours._kernel() else "torch"
    return {"grouping": f"{points} -> {groups} x {size}", "clouds": clouds, "kernel": kernel, "clouds_per_s": found}


def _seconds(work, device: torch.device, count: int = 10) -> float:
    work()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        work()
    synchronize(device)
    return (time.perf_counter() - start) / count


def measure(row: Row, compiled: bool, device: torch.device, rate: float) -> dict:
    gpu = device.type == "cuda"
    rows = row.batch if gpu else 4
    torch.manual_seed(0)
    model = maemm.build(row.recipe, **({} if gpu else SHRUNK)).to(device).train()
    batch = {n: example(m, n, row, rows).to(device) for n, m in model.modalities.items()}
    with FlopCounterMode(display=False) as counter:
        step_function(model, model, batch, rows, device)(0)
    forward = torch.compile(model, dynamic=False) if compiled else model
    step = step_function(model, forward, batch, rows, device)
    for number in range(3):
        step(number)
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    synchronize(device)
    start, count = time.perf_counter(), 10 if gpu else 2
    for number in range(count):
        step(number)
    synchronize(device)
    seconds = (time.perf_counter() - start) / count
    flops = counter.get_total_flops()
    found = {"recipe": row.recipe, "compiled": compiled, "batch": rows, "samples_per_s": rows / seconds}
    found |= {"gflop_per_sample": flops / rows / 1e9, "share_of_matmul": flops / seconds / rate}
    if gpu:
        found["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return found


def results(device: torch.device, rate: float, deadline: float) -> Iterator[dict]:
    yield from steps(device, rate, deadline)
    yield grouping(device)


def steps(device: torch.device, rate: float, deadline: float) -> Iterator[dict]:
    for compiled in (False, True) if device.type == "cuda" else (False,):
        for row in ROWS:
            if time.monotonic() > deadline:
                yield {"recipe": row.recipe, "compiled": compiled, "left_out": "time budget"}
                continue
            try:
                yield measure(row, compiled, device, rate)
            except torch.cuda.OutOfMemoryError:
                yield {"recipe": row.recipe, "compiled": compiled, "left_out": "memory"}
            torch.cuda.empty_cache()


def main(argv: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--budget", type=float, default=500, help="seconds; rows past it are left out and named")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate = matmul_rate(device)
    report = about(device) | {"threads": torch.get_num_threads()}
    report |= {"command": "python benchmarks/gpu_suite.py", "matmul_tflops": rate / 1e12, "rows": []}
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"suite-{device.type}-{date.today()}.json"
    for found in results(device, rate, time.monotonic() + args.budget):
        report["rows"].append(found)
        path.write_text(json.dumps(report, indent=1) + "\n")  # after every row: a cut run keeps what it has
        print(json.dumps(found), flush=True)
    return path


if __name__ == "__main__":
    main()
