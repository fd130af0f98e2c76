"""What a joint budget costs: 98 tokens of three modalities with 588, against 98 of 196 of one modality.

    OMP_NUM_THREADS=1 python benchmarks/joint_budget.py [--out benchmarks/results/joint_budget.json]

The encoder of ``multimae/base`` (ViT-B), forward and backward, on a CPU in float32, two samples: in turn on pictures
alone, half of whose tokens are visible, on all three modalities with the budget, and on the same plans without it, as
padded lists. Operations (two for each multiply-add) are counted in the forward pass; times are medians of rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _machine import about
from torch.utils.flop_counter import FlopCounterMode

import maemm
from maemm.contract import ModalityInput
from maemm.contract.rng import Rng, seeded

ROWS, ROUNDS = 2, 5
Inputs = dict[str, ModalityInput]


def settings(depth: int) -> tuple[Any, dict[str, Inputs]]:
    """The model, and {setting: inputs of the encoder}."""
    with seeded("joint budget"):
        model = maemm.build("multimae/base", **{"encoder.depth": depth})
    rng = Rng((0, 0), range(ROWS), ROWS)
    batch = {name: modality.example(ROWS, rng) for name, modality in model.modalities.items()}
    joint = model.plan(batch, rng)
    padded = {name: replace(x, plan=replace(x.plan, budget=None)) for name, x in joint.items()}
    half = maemm.Plan(torch.arange(0, 196, 2).expand(ROWS, -1).contiguous(), torch.arange(1, 196, 2).expand(ROWS, -1))
    one = {"rgb": replace(joint["rgb"], plan=half)}
    return model, {
        "one modality, 98 of 196": one,
        "three modalities, 98 of 588": joint,
        "the same without the budget, padded": padded,
    }


def run(model: Any, inputs: Inputs) -> float:
    """Seconds of the encoder, forward and backward."""
    began = time.perf_counter()
    latents = model.encoder(inputs, model.modalities)
    torch.stack([x.square().mean() for x in latents.tokens.values()]).sum().backward()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "joint_budget.json")
    parser.add_argument("--depth", type=int, default=12, help="blocks of the encoder")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    model, inputs = settings(options.depth)
    rows: dict[str, dict[str, Any]] = {}
    for name, x in inputs.items():
        lengths: list[int] = []
        hook = model.encoder.blocks[0].register_forward_hook(lambda _, __, out, to=lengths: to.append(out.shape[1]))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.encoder(x, model.modalities)
        hook.remove()
        rows[name] = {"tokens of a block": lengths[0], "gigaflop": counter.get_total_flops() / ROWS / 1e9}
    seconds: dict[str, list[float]] = {name: [] for name in inputs}
    for number in range(options.rounds + 1):
        for name, x in inputs.items():
            spent = run(model, x)
            if number:  # the first is for warming up
                seconds[name].append(spent)
    for name, values in seconds.items():
        rows[name] |= {"seconds": statistics.median(values), "fastest": min(values)}
    content = {**about(), "depth": options.depth, "rows": ROWS, "rounds": options.rounds, "settings": rows}
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
