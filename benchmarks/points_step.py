"""A training step of Point-MAE against the published order of operations, on the same weights, in one run.

    OMP_NUM_THREADS=1 python benchmarks/points_step.py [--batch 8] [--rounds 7] [--out benchmarks/results]

Published order: all groups embedded by pointwise convolutions on (B G, C, K), the maximum concatenated to every
point, then the visible groups selected. Everything else (blocks, loss, optimiser) is the same code, and grouping is
left out of both. The variants take turns, so that a busy machine slows all of them; the figures are the smallest
CPU and wall times of a step.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from datetime import date
from pathlib import Path

import torch
from _machine import about
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv1d

import maemm
from maemm.contract import Tokens, gather_tokens

GATES = {"all fp32": 1.4, "all bf16": 2.8, "visible fp32": 1.8, "visible bf16": 3.0}  # against published fp32
SHRUNK = {"encoder.dim": 48, "encoder.depth": 1, "decoder.dim": 48, "decoder.depth": 1}


class PublishedOrder(nn.Module):
    """The same layers in the order of the published code."""

    def __init__(self, ours: nn.Module):
        super().__init__()
        self.ours = ours

    def forward(self, tokens: Tokens, index: Tensor) -> Tensor:
        ours, groups = self.ours, tokens.values
        x = groups.flatten(0, 1).transpose(1, 2)
        x = _normalized(_pointwise(x, ours.first), ours.first_norm).relu_()
        x = _pointwise(x, ours.point)
        whole = x.max(2, keepdim=True).values
        x = torch.cat([whole.expand(-1, -1, x.shape[2]), x], 1)
        x = _normalized(_pointwise(x, ours.mix), ours.mix_norm).relu_()
        every = _pointwise(x, ours.last).max(2).values.unflatten(0, groups.shape[:2])
        return gather_tokens(every, index, tokens.rows)


def _pointwise(x: Tensor, layer: nn.Linear) -> Tensor:
    return conv1d(x, layer.weight[..., None], layer.bias)


def _normalized(x: Tensor, norm: nn.Module) -> Tensor:
    moving = norm.running_mean, norm.running_var
    return batch_norm(x, *moving, norm.weight, norm.bias, True, norm.momentum, norm.eps)


class Step:
    """Forward, backward and update of one variant."""

    def __init__(self, weights: nn.Module, batch: dict, name: str, bf16: bool):
        self.model, self.bf16 = maemm.build(weights.recipe).train(), bf16
        self.model.load_state_dict(weights.state_dict())
        embedding = self.model.modalities["pointcloud"].embedding
        if name == "published":
            self.model.modalities["pointcloud"].embedding = PublishedOrder(embedding)
        else:
            embedding.stats = name
        rows = len(batch["pointcloud"])
        self.inputs = self.model.plan(batch, maemm.Rng((0, 0), range(rows), rows))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, fused=True)
        self.cpu, self.wall, self.loss = [], [], float("nan")

    def __call__(self) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            total = self.model(self.inputs).total
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)
        self.loss = total.item()


def has_bf16() -> bool:
    """Whether bf16 is worth measuring: without matrix units for it, it is emulated and several times slower."""
    a = torch.randn(1024, 512)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = a.to(dtype)
        seconds[dtype] = min(_cpu_seconds(lambda x=x: x @ x.T) for _ in range(3))
    return seconds[torch.bfloat16] < seconds[torch.float32]


def _cpu_seconds(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(batch: int, rounds: int, tiny: bool = False) -> dict[str, dict[str, float]]:
    """{variant: seconds of the best step, loss} of interleaved steps."""
    torch.manual_seed(0)
    overrides = {"encoder.drop_path": 0.0, "decoder.drop_path": 0.0, **(SHRUNK if tiny else {})}
    weights = maemm.build("pointcloud/point_mae", **overrides)
    points = torch.randn(batch, 1024, 3)
    clouds = {"pointcloud": points / points.norm(dim=-1, keepdim=True)}
    steps = {
        f"{name} {'bf16' if bf16 else 'fp32'}": Step(weights, clouds, name, bf16)
        for name in ("published", "all", "visible")
        for bf16 in ((False, True) if has_bf16() else (False,))
    }
    for number in range(rounds + 1):
        for step in steps.values():
            step()
            if not number:  # warming up
                step.cpu.clear(), step.wall.clear()
    return {name: {"cpu_s": min(one.cpu), "wall_s": min(one.wall), "loss": one.loss} for name, one in steps.items()}


def main(argv: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tiny", action="store_true", help="a small model, to try the script itself")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(argv)
    found = measure(args.batch, args.rounds, args.tiny)
    base = found["published fp32"]
    for name, one in found.items():
        one["times_published_fp32_cpu"] = base["cpu_s"] / one["cpu_s"]
        one["times_published_fp32_wall"] = base["wall_s"] / one["wall_s"]
        gate = GATES.get(name)
        print(
            f"{name:15} {one['cpu_s']:.3f} s CPU {one['wall_s']:.3f} s wall  loss {one['loss']:.5f}  "
            f"{one['times_published_fp32_cpu']:.2f}x CPU {one['times_published_fp32_wall']:.2f}x wall"
            + (f"  (gate {gate}x)" if gate else "")
        )
    report = {
        **about(),
        "command": f"python benchmarks/points_step.py --batch {args.batch} --rounds {args.rounds}"
        + " --tiny" * args.tiny,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "sizes": {"batch": args.batch, "points": 1024, "groups": 64, "group_size": 32, "visible": 26},
        "gates": GATES,
        "steps": found,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"points-step-cpu-{date.today()}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


if __name__ == "__main__":
    main()
