"""A training step of MAE and VideoMAE: this implementation against transformers' of the same size, on the same batch.

    python benchmarks/transformers_step.py [--kind image] [--size base] [--batch 8] [--rounds 6] [--steps 3]
        [--out benchmarks/results]

Forward, loss, backward and AdamW, rounds of both interleaved, in float32 on a CPU and in bf16 on a GPU, eager. Saved
activations are the bytes that autograd keeps for the backward pass. transformers is no dependency; without it only our
own rows are measured, and the file says so.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _machine import about

import maemm

#: size of the signal, encoder (width, depth, heads), decoder (width, depth, heads)
SIZES = {
    "image": {
        "tiny": ([64, 64], (192, 6, 6), (96, 2, 3)),
        "base": ([224, 224], (768, 12, 12), (512, 8, 16)),
    },
    "video": {
        "tiny": ([16, 64, 64], (192, 6, 6), (96, 2, 3)),
        "small": ([16, 224, 224], (384, 12, 6), (192, 4, 3)),
        "base": ([16, 224, 224], (768, 12, 12), (384, 4, 6)),
    },
}
RECIPES = {"image": "image/mae_base", "video": "video/videomae_base"}
Loss = Callable[[int], torch.Tensor]  # of the step's number


def ours(kind: str, size: str, rows: int, device: torch.device) -> tuple[torch.nn.Module, Loss]:
    sides, *parts = SIZES[kind][size]
    options = {f"{name}.{key}": value for name, part in zip(("encoder", "decoder"), parts, strict=True)
               for key, value in zip(("dim", "depth", "heads"), part, strict=True)}  # fmt: skip
    model = maemm.build(RECIPES[kind], **{**options, f"modalities.{kind}.size": sides}).to(device).train()
    batch = {kind: torch.randn(rows, 3, *sides, device=device)}

    def loss(number: int) -> torch.Tensor:
        return model(model.plan(batch, maemm.Rng((0, number), range(rows), rows))).total

    return model, loss


def theirs(kind: str, size: str, rows: int, device: torch.device) -> tuple[torch.nn.Module, Loss]:
    """The same of transformers; clips with masks as its documentation makes them."""
    import transformers

    sides, encoder, decoder = SIZES[kind][size]
    options = {
        "image_size": sides[-1], "hidden_size": encoder[0], "num_hidden_layers": encoder[1],
        "num_attention_heads": encoder[2], "intermediate_size": 4 * encoder[0], "decoder_hidden_size": decoder[0],
        "decoder_num_hidden_layers": decoder[1], "decoder_num_attention_heads": decoder[2],
        "decoder_intermediate_size": 4 * decoder[0],
    }  # fmt: skip
    if kind == "image":
        config = transformers.ViTMAEConfig(**options, mask_ratio=0.75, norm_pix_loss=True)
        model = transformers.ViTMAEForPreTraining(config).to(device).train()
        pixels = torch.randn(rows, 3, *sides, device=device)
        return model, lambda number: model(pixels).loss
    config = transformers.VideoMAEConfig(**options, num_frames=sides[0], use_mean_pooling=False)
    model = transformers.VideoMAEForPreTraining(config).to(device).train()
    clips = torch.randn(rows, sides[0], 3, *sides[1:], device=device)
    area, slots = (sides[1] // 16) * (sides[2] // 16), sides[0] // 2

    def loss(number: int) -> torch.Tensor:
        hidden = torch.zeros(rows, area, dtype=torch.bool)
        noise = torch.rand(rows, area, generator=torch.Generator().manual_seed(number))
        hidden.scatter_(1, noise.argsort(1)[:, : int(0.9 * area)], True)
        return model(clips, bool_masked_pos=hidden.repeat(1, slots).to(device)).loss

    return model, loss


def saved_bytes(loss: Callable[[int], torch.Tensor]) -> int:
    """Bytes of distinct tensors that autograd keeps, parameters among them."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(0)
    return sum(kept.values())


def timer(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def steps_of(
    model: torch.nn.Module, loss: Callable[[int], torch.Tensor], device: torch.device
) -> Callable[[int], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(number: int) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            value = loss(number)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(args: argparse.Namespace, device: torch.device) -> list[dict]:
    rows, steps = [], {}
    for name, make in (("maemm", ours), ("transformers", theirs)):
        torch.manual_seed(0)
        try:
            model, loss = make(args.kind, args.size, args.batch, device)
        except ImportError:
            rows.append({"implementation": name, "left_out": "transformers is not installed"})
            continue
        count = sum(parameter.numel() for parameter in model.parameters())
        rows.append(
            {"implementation": name, "parameters": count, "saved_mib": saved_bytes(loss) / 2**20, "seconds": []}
        )
        steps[name] = steps_of(model, loss, device)
        steps[name](0)
    for _ in range(args.rounds):
        for row in rows:
            if row["implementation"] in steps:
                start = timer(device)
                for number in range(args.steps):
                    steps[row["implementation"]](number)
                row["seconds"].append((timer(device) - start) / args.steps)
    if all("seconds" in row for row in rows):
        own, other = (np.array(row["seconds"]) for row in rows)
        rows[0]["ratio"] = float(np.median(other / own))  # above 1: ours is faster
    for row in rows:
        if "seconds" in row:
            row["samples_per_s"] = args.batch / float(np.median(row["seconds"]))
        print(json.dumps(row), flush=True)
    return rows


def main(argv: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--kind", choices=SIZES, default="image")
    parser.add_argument("--size", choices=("tiny", "small", "base"), default="base")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    report = {
        **about(device), "seconds": "wall" if device.type == "cuda" else "of one CPU thread",
        "command": f"python benchmarks/transformers_step.py --kind {args.kind} --size {args.size} --batch {args.batch}",
        "signal": SIZES[args.kind][args.size][0], "rows": measure(args, device),
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"transformers_step-{device.type}-{args.kind}-{args.size}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


if __name__ == "__main__":
    main()
