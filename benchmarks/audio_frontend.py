"""The audio front end and a training step of AudioMAE, each against what published code does, in one run.

    python benchmarks/audio_frontend.py [--out benchmarks/results] [--rounds 8]

Front end: clips per CPU-second (one thread) of the batched filter bank, against ``torchaudio.compliance.kaldi.fbank``
called clip by clip as published workers do; on a GPU clips per second too. Step: only visible patches embedded, only
hidden ones predicted, against the published order: embed all, then choose; predict all, then count the hidden ones.
Rounds are interleaved and the best of each counts, so that a busy machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from _machine import about
from torchaudio.compliance.kaldi import fbank

import maemm
from maemm_plugins.audio.frontend import FilterBank

CLIPS = 32
SIZES = {  # of the step: (overrides, batch)
    "cpu": ({"encoder.dim": 192, "encoder.depth": 4, "encoder.heads": 3,
             "decoder.dim": 96, "decoder.depth": 4, "decoder.heads": 3}, 4),
    "cuda": ({}, 64),
}  # fmt: skip


def kaldi(waves: torch.Tensor) -> torch.Tensor:
    """Clip after clip, with the published arguments."""
    return torch.stack(
        [
            fbank(
                (one - one.mean())[None], htk_compat=True, sample_frequency=16000, use_energy=False,
                window_type="hanning", num_mel_bins=128, dither=0.0, frame_shift=10,
            )
            for one in waves
        ]
    )  # fmt: skip


def best(rounds: int, clock: Callable[[], float], **routes: Callable[[], object]) -> dict[str, float]:
    """Least time of each route over interleaved rounds."""
    found = dict.fromkeys(routes, float("inf"))
    for _ in range(rounds):
        for name, route in routes.items():
            start = clock()
            route()
            found[name] = min(found[name], clock() - start)
    return found


def front_end(seconds: float, rounds: int) -> dict:
    waves = torch.randn(CLIPS, round(seconds * 16000), generator=torch.Generator().manual_seed(0)) * 0.1
    bank = FilterBank()
    gap = float((bank(waves - waves.mean(1, keepdim=True)) - kaldi(waves)).abs().max())
    times = best(
        rounds,
        time.process_time,
        kaldi=lambda: kaldi(waves),
        ours=lambda: bank(waves - waves.mean(1, keepdim=True)),
    )
    row = {"what": "front end", "seconds": seconds, "clips": CLIPS, "largest_difference": gap}
    row |= {f"{name}_clips_per_cpu_s": CLIPS / t for name, t in times.items()}
    return row | {"ratio": times["kaldi"] / times["ours"]}


def front_end_gpu(seconds: float, rounds: int) -> dict:
    waves = torch.randn(512, round(seconds * 16000), device="cuda") * 0.1
    bank = FilterBank()
    bank(waves[:2])

    def route() -> None:
        bank(waves)
        torch.cuda.synchronize()

    times = best(rounds, time.perf_counter, ours=route)
    return {"what": "front end, GPU", "seconds": seconds, "clips": 512, "clips_per_s": 512 / times["ours"]}


def step(rounds: int, device: torch.device) -> dict:
    overrides, rows = SIZES[device.type]
    torch.manual_seed(0)
    model = maemm.build("audio/audiomae_base", **overrides).to(device).train()
    x = {"audio": model.modalities["audio"].example(rows, maemm.Rng((0,))).x.to(device)}
    inputs = model.plan(x, maemm.Rng((0,), range(rows), rows))

    def run(forward: Callable[[], torch.Tensor]) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = forward()
        loss.backward()
        model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    routes = {"ours": lambda: model(inputs).total, "published": lambda: published_order(model, inputs)}
    model.eval()  # in training the decoder's relative bias has dropout
    same = {name: float(route().detach()) for name, route in routes.items()}
    model.train()
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times = best(rounds, clock, **{name: lambda route=route: run(route) for name, route in routes.items()})
    row = {"what": f"step, {device.type}", "recipe": "audio/audiomae_base", "overrides": overrides, "batch": rows}
    row |= {f"{name}_samples_per_s": rows / t for name, t in times.items()} | {f"{n}_loss": v for n, v in same.items()}
    return row | {"ratio": times["published"] / times["ours"]}


def published_order(model: maemm.Model, inputs: dict) -> torch.Tensor:
    """The loss of the same modules in the published order of operations."""
    (audio,), (x,), encoder, decoder = model.modalities.values(), inputs.values(), model.encoder, model.decoder
    tokens, plan, every = x.tokens, x.plan, x.tokens.all_indices()
    whole = audio.embed(tokens, every) + audio.position(tokens, every, "encoder")
    kept = whole.gather(1, plan.visible[..., None].expand(-1, -1, whole.shape[-1]))
    kept = torch.cat([encoder.prefix.expand(len(kept), -1, -1), kept], 1)
    for block in encoder.blocks:
        kept = block(kept)
    filled = decoder._filled(decoder.project(encoder.norm(kept)[:, 1:]), plan, tokens.count)
    filled = filled + audio.position(tokens, every, "decoder")
    pred = decoder.heads["audio"](decoder.norm(_windows(decoder, filled, tokens.grid)))
    loss = audio.loss(pred, audio.target(tokens, every))
    hidden = torch.zeros_like(loss).scatter(1, plan.predict, 1.0)
    return (loss * hidden).sum() / hidden.sum()


def _windows(decoder: torch.nn.Module, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    from maemm_plugins.audio.window import Lattice

    x = x.unflatten(1, grid)
    lattice = Lattice(grid, decoder.window, None, x)
    x = lattice.pad(x)
    for block in decoder.blocks:
        x = block(x, lattice)
    return x[:, : grid[0], : grid[1]].flatten(1, 2)


def told(rows: list[dict], row: dict) -> None:
    rows.append(row)
    print(json.dumps(row), flush=True)


def main(argv: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 5.0, 10.0])
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for seconds in args.seconds:
        told(rows, front_end(seconds, args.rounds))
        if device.type == "cuda":
            told(rows, front_end_gpu(seconds, args.rounds))
    told(rows, step(max(2, args.rounds // 2), device))
    report = about(device) | {"threads": 1}
    report |= {"command": f"python benchmarks/audio_frontend.py --rounds {args.rounds}", "rows": rows}
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"audio_frontend-{device.type}-{date.today()}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


if __name__ == "__main__":
    main()
