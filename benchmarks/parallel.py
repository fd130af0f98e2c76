"""Sharded training beside that of one process: losses, gradients and weights of ddp, fsdp and hsdp.

    OMP_NUM_THREADS=1 python benchmarks/parallel.py [--only image,points] [--worlds 1,2,4] [--steps 4]
        [--out benchmarks/results/parallel.json]

Recipes for a CPU on their sample sets, in float32, the same global batch on 1, 2 and 4 processes (gloo, this machine),
hsdp with two ranks to a copy. Of each: the largest difference from the training of one process, of the losses of all
steps (relative), of the gradient of the first step (relative to its largest entry), and of the weights at the end
(absolute). Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
from _machine import about
from safetensors.torch import load_file

import maemm
from maemm.data.atomic import write_json
from maemm.tasks.pretrain.run import train_recipe
from maemm.train import step as train_step
from maemm.train.replica import full

RECIPES = {
    "image": "image/mae_tiny_cpu",
    "image, moving average": "image/ijepa_tiny_cpu",
    "image, latents of blocks": "image/data2vec2_tiny_cpu",
    "image, guided masks": "image/mae_attention_tiny_cpu",
    "image, uniformity": "image/umae_tiny_cpu",
    "video": "video/videomae_tiny_cpu",
    "sound": "audio/audiomae_tiny_cpu",
    "points": "pointcloud/point_mae_tiny_cpu",
    "pairs": "cav/cav_mae_tiny_cpu",
    "sensors": "multimae/tiny_cpu",
}
COLUMNS = ("first_loss", "loss", "gradient", "weights", "average")
SETTINGS = ("ddp", "fsdp", "hsdp")
# What makes a run comparable and short: a batch that four ranks divide, an average, a clipped gradient, fp32.
SHORT = {
    "train.batch": 16, "train.epochs": None, "train.warmup_epochs": 0, "train.log_every": 1, "train.ema": 0.9,
    "train.picture_every": 10**6,
    "train.precision": "fp32", "train.clip_grad": 1.0, "train.save_every": 10**6, "data.workers": 0,
}  # fmt: skip


def run(recipe: str, parallel: str, world: int, steps: int, out: Path) -> dict[str, Any]:
    """Train ``steps`` steps on ``world`` processes; losses, the first gradient by name, and the weights."""
    settings = {**SHORT, "train.steps": steps, "train.parallel": parallel, "out": str(out)}
    if parallel == "hsdp":
        settings["train.shard"] = 2
    resolved = maemm.config.load(recipe, settings, training=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_rank, args=(resolved, rank, world, port)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        raise SystemExit(f"{recipe}, {parallel}, {world} processes: failed, see above")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    newest = max((out / "checkpoints").glob("step-*"))
    return {
        "losses": [line["loss"] for line in lines],
        "gradient": torch.load(out / "gradient.pt"),
        "weights": load_file(newest / "model.safetensors"),
        "average": load_file(newest / "ema.safetensors"),
    }


def _rank(recipe: dict[str, Any], rank: int, world: int, port: int) -> None:
    if world > 1:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({"MASTER_ADDR": "127.0.0.1", **{key: str(number) for key, number in numbers.items()}})
    torch.set_num_threads(1)
    _keep_first_gradient(Path(recipe["out"]) / "gradient.pt", rank)
    try:
        train_recipe(recipe, echo=lambda *_: None)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _keep_first_gradient(path: Path, rank: int) -> None:
    """Write the whole gradient of the first step, which every rank gathers."""
    norm_of = train_step.grad_norm

    def grad_norm(optimizer: torch.optim.Optimizer, clip: float | None) -> torch.Tensor:
        named = [pair for group in optimizer.param_groups for pair in zip(group["names"], group["params"], strict=True)]
        gradients = {name: full(p.grad) for name, p in named if p.grad is not None}
        if rank == 0:
            torch.save(gradients, path)
        train_step.grad_norm = norm_of  # type: ignore[attr-defined]
        return norm_of(optimizer, clip)

    train_step.grad_norm = grad_norm  # type: ignore[attr-defined]


def differences(result: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    """The largest of each kind."""
    losses = [abs(a - b) / abs(b) for a, b in zip(result["losses"], reference["losses"], strict=True)]
    assert result["gradient"].keys() == reference["gradient"].keys(), "other parameters have a gradient"
    largest = max(float(value.abs().max()) for value in reference["gradient"].values())
    return {
        "first_loss": losses[0],
        "loss": max(losses),
        "gradient": _largest(result["gradient"], reference["gradient"]) / largest,
        "weights": _largest(result["weights"], reference["weights"]),
        "average": _largest(result["average"], reference["average"]),
    }


def _largest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max((float((a[name].float() - b[name].float()).abs().max()) for name in b if b[name].numel()), default=0.0)


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown."""
    titles = "recipe | parallel | processes | first loss | losses | first gradient | weights | average"
    lines = [f"| {titles} |", "|---" * 8 + "|"]
    for row in rows:
        cells = " | ".join(f"{row[key]:.1e}" for key in COLUMNS)
        lines.append(f"| {row['recipe']} | {row['parallel']} | {row['processes']} | {cells} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="names, with commas between them: " + "; ".join(RECIPES))
    parser.add_argument("--worlds", default="2,4")
    parser.add_argument("--parallel", default=",".join(SETTINGS))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/parallel.json"))
    args = parser.parse_args(argv)
    names = args.only.split(";") if args.only else list(RECIPES)
    rows: list[dict[str, Any]] = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            reference = run(RECIPES[name], "ddp", 1, args.steps, Path(folder) / "one")
            for world in map(int, args.worlds.split(",")):
                for parallel in args.parallel.split(","):
                    out = Path(folder) / f"{parallel}{world}"
                    result = differences(run(RECIPES[name], parallel, world, args.steps, out), reference)
                    rows.append({"recipe": RECIPES[name], "parallel": parallel, "processes": world, **result})
                    print(rows[-1], flush=True)
                    write_json(
                        args.out, {"about": about(), "settings": SHORT, "steps": args.steps, "rows": rows}, "results"
                    )
    print(table(rows))


if __name__ == "__main__":
    main()
