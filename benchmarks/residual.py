"""How far a step in bf16 is from one in float32, with the sums between blocks in float32 or in bf16.

    OMP_NUM_THREADS=1 python benchmarks/residual.py [--out benchmarks/results/residual.json]

``image/mae_base`` with all its blocks, narrower, on random pictures, on a CPU: bf16 autocast as on a GPU, but for layer
norms, which a CPU computes in the type of their input. Errors are |x - y| / |y| over all numbers together, of the loss,
the prediction and the gradient; three seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from _machine import about

from maemm import config
from maemm.contract.rng import Rng
from maemm.train.distributed import DistContext
from maemm.train.setup import make_train_state

NARROW = {"encoder.dim": 192, "encoder.heads": 3, "decoder.dim": 128, "decoder.heads": 4, "modalities.image.size": 96}
ROWS = 16
SETTINGS = {"residual fp32": ("bf16", "fp32"), "residual bf16": ("bf16", "bf16")}


def step(precision: str, residual: str, seed: int, depth: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, predictions, gradients) of the first step."""
    changes = {"train.precision": precision, "train.residual": residual, "train.seed": seed, "train.batch": ROWS}
    recipe = config.load("image/mae_base", NARROW | changes | {"encoder.depth": depth, "train.micro_batch": None})
    state = make_train_state(recipe, 10, 1, DistContext(), steps_per_epoch=5)
    rng = Rng((seed, 0), range(ROWS), ROWS)
    batch = {name: modality.example(ROWS, rng) for name, modality in state.model.modalities.items()}
    inputs = state.model.plan(batch, rng)
    with torch.autocast("cpu", torch.bfloat16, enabled=state.bf16):
        out = state.model(inputs)
    loss = out.parts["reconstruct.image"].mean if "reconstruct.image" in out.parts else out.total
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in state.model.parameters() if p.grad is not None])
    return loss.detach(), out.pred["image"].detach().float(), gradient


def _off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="*", default=[12, 24])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    rows: dict[str, dict[str, list[float]]] = {}
    for depth in args.depths:
        for seed in range(args.seeds):
            exact = step("fp32", "auto", seed, depth)
            for name, setting in SETTINGS.items():
                errors = [_off(a, b) for a, b in zip(step(*setting, seed, depth), exact, strict=True)]
                row = rows.setdefault(f"{depth} blocks, {name}", {"loss": [], "prediction": [], "gradient": []})
                for key, error in zip(row, errors, strict=True):
                    row[key].append(float(f"{error:.3g}"))
    for name, row in rows.items():
        print(f"{name:28}", *(f"{key} {min(x):.2g} .. {max(x):.2g}" for key, x in row.items()))
    result = {"about": about() | {"sizes": NARROW | {"rows": ROWS}}, "rows": rows}
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
