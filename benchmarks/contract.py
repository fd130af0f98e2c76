"""What the toys of the contract cost and change: budgets, predicted sets, missing values.

python benchmarks/contract.py [--out benchmarks/results/contract.json]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _machine import about
from torch.utils.flop_counter import FlopCounterMode

import maemm
from maemm import config, registry
from maemm.contract import ModalityInput, Plan
from maemm.contract.grid import GridModality
from maemm.model.build import build_model
from maemm.model.model import Model

TOYS = Path(__file__).parents[1] / "tests" / "toy_plugin"
ENCODER = {"type": "vit", "dim": 64, "depth": 4, "heads": 4}
DECODER = {"type": "full", "dim": 32, "depth": 1, "heads": 2}


def model(modalities: dict[str, Any], **overrides: Any) -> Model:
    torch.manual_seed(0)
    return build_model(
        config.load({"modalities": modalities, "encoder": ENCODER, "decoder": DECODER}, overrides)
    ).eval()


def flops(net: Model, inputs: dict[str, ModalityInput]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.encoder(inputs, net.modalities)
    return counter.get_total_flops()


def joint_budget() -> dict[str, Any]:
    """98 visible tokens over three modalities of 196, beside 98 tokens of one."""
    net = model(
        {name: {"type": "toy", "size": 28, "patch": 2} for name in "abc"}, masking={"type": "budget", "budget": 98}
    )
    batch = {name: torch.rand(2, 1, 28, 28) for name in "abc"}
    inputs = net.plan(batch, maemm.Rng((0,), range(2), 2))
    single = net.plan({"a": batch["a"]}, maemm.Rng((0,), range(2), 2))["a"]
    visible = single.tokens.all_indices()[:, :98]
    alone = replace(single, plan=Plan(visible, visible[:, :0]))
    joint, plain = flops(net, inputs), flops(net, {"a": alone})
    return {"operations, joint": joint, "operations, 98 tokens": plain, "ratio": joint / plain}


def predicted_sets() -> dict[str, Any]:
    """Four predicted sets of one pass of the encoder, beside four passes."""
    net = model({"toy": {"type": "toy", "size": 28, "patch": 2, "masking": {"type": "four"}}})
    inputs = net.plan({"toy": torch.rand(2, 1, 28, 28)}, maemm.Rng((0,), range(2), 2))
    shared = inputs["toy"]
    separate = replace(shared, plan=replace(shared.plan, passes=None, first=None))
    with torch.no_grad():
        difference = net.predict({"toy": shared}).pred["toy"] - net.predict({"toy": separate}).pred["toy"]
    once, four = flops(net, {"toy": replace(shared, plan=shared.plan.of_passes())}), flops(net, {"toy": separate})
    return {
        "largest difference": float(difference.abs().max()),
        "operations of the encoder, four passes / one": four / once,
    }


def missing_values() -> dict[str, Any]:
    """Clips of 8 x 64 x 64 with 3 % of their values missing: what stands there, and the loss."""

    class Radar(GridModality):
        def __init__(self) -> None:
            super().__init__(size=(8, 64, 64), patch=(2, 8, 8), gaps=True)

    torch.manual_seed(0)
    clips = torch.randn(4, 1, 8, 64, 64)
    valid = torch.rand(clips.shape) > 0.03
    base = model({"toy": {"type": "toy"}})
    net = Model({"radar": Radar()}, base.masking, base.encoder, base.decoder)
    registry.clear_cache()
    losses = {}
    net.modalities["radar"].connect(64, 32)
    net.encoder.names, net.decoder = ["radar"], registry.find("decoders", "full")(
        {"radar": net.modalities["radar"].output_dim()}, 64, 1, dim=32, depth=1, heads=2
    )  # fmt: skip
    net.masking = registry.find("maskings", "random")(ratio=0.75)
    for filling in (0.0, 1e6, float("nan"), float("inf")):
        x = maemm.Preprocessed(clips.masked_fill(~valid, filling), valid)
        with torch.no_grad():
            out = net.predict({"radar": x}, rng=maemm.Rng((1,), range(4), 4))
        counted = out.plans["radar"].counted
        losses[str(filling)] = float((out.loss["radar"] * counted).sum() / counted.sum())
    return {"missing": float((~valid).float().mean()), "losses": losses, "equal": len(set(losses.values())) == 1}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    registry.add_path(TOYS)
    registry.clear_cache()
    torch.set_num_threads(1)
    record = {
        **about(),
        "joint budget": joint_budget(),
        "predicted sets": predicted_sets(),
        "missing": missing_values(),
    }
    text = json.dumps(record, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
