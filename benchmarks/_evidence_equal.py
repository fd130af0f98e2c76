"""What must be the same: random numbers and plans on devices, losses compiled and eager, after a resume, in bf16."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch
from _evidence_device import seconds_of, synchronize, waits
from _evidence_process import Place
from _evidence_steps import Steps, recipe_of
from safetensors.torch import load_file
from torch import Tensor

from maemm import registry
from maemm.contract.rng import Rng
from maemm.train import compiling
from maemm.train.callback import Callback
from maemm.train.distributed import DistContext
from maemm.train.loop import train
from maemm.train.optim import set_lr, step_unless
from maemm.train.signals import Interrupted
from maemm.train.step import plan_micro_batches


def random_numbers(settings: dict[str, Any], place: Place) -> dict[str, Any]:
    """The same bits of ``Rng.uniform`` on the CPU and the device, for draws of many shapes and some rows of a batch."""
    different, drawn = 0, 0
    for shape in settings["shapes"]:
        for rows, total in ((range(shape[0]), shape[0]), (range(shape[0] // 2, shape[0]), 2 * shape[0])):
            rng = Rng((1, 2**40 + 3, "evidence"), rows, total)
            here, there = (rng.uniform("mask", *shape[1:], device=device) for device in ("cpu", place.device))
            different += int((here != there.cpu()).sum())
            drawn += here.numel()
    return {"numbers": drawn, "different": different}


def plans(settings: dict[str, Any], place: Place) -> dict[str, Any]:
    """The same visible and hidden tokens on the CPU and the device."""
    found: list[dict[str, Tensor]] = []
    for device in ("cpu", place.device):
        step = Steps(settings, Place(device, place.work))
        planned = plan_micro_batches(step.state, 3, step.batches[:1]).inputs[0]
        plans_of = {name: inputs.plan for name, inputs in planned.items()}
        found.append(
            {f"{name}.{key}": x.cpu() for name, plan in plans_of.items() for key, x in vars(plan).items()
             if isinstance(x, Tensor)}
        )  # fmt: skip
    here, there = found
    return {"tensors": sorted(here), "different": [key for key, x in here.items() if not torch.equal(x, there[key])]}


def losses(settings: dict[str, Any], place: Place) -> dict[str, Any]:
    """Losses of the same steps in two ways, ``a`` and ``b``, which are changes of the settings."""
    torch._dynamo.reset()
    by_way = []
    for way in (settings["a"], settings["b"]):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")  # TF32 is no difference that is looked for here
        try:
            with compiling.compiler_settings():
                step = Steps(settings | way | {"batches": settings["steps"]}, place)
                by_way.append(step.losses(settings["steps"]))
        finally:
            torch.set_float32_matmul_precision(before)
    a, b = by_way
    relative = [abs(x - y) / max(abs(x), 1e-12) for x, y in zip(a, b, strict=True)]
    tail = max(1, len(a) // 5)
    means = [sum(x[-tail:]) / tail for x in by_way]
    return {
        "a": a,
        "b": b,
        "largest_relative_difference": max(relative),
        "difference_at_the_end": abs(means[0] - means[1]) / abs(means[0]),
        "bit_equal": a == b,
    }


# ---------------------------------------------------------------------------------------------------- resuming
class _StopAt(Callback):
    """Sends this process the signal that a batch system would, after a step."""

    def __init__(self, step: int):
        self.step = step

    def draw_pictures(self, step: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def resume(settings: dict[str, Any], place: Place) -> dict[str, Any]:
    """A run that is stopped by a signal and goes on, beside two that are not stopped: losses and weights."""
    count, root = settings["steps"], place.work / "resume"
    shutil.rmtree(root, ignore_errors=True)

    def run(name: str, callback: Callback | None = None) -> Path:
        changes = {"out": str(root / name), "train.steps": count, "train.log_every": 1, "train.save_every": count}
        changes |= {"train.picture_every": count // 2, "data.workers": 0}
        return train(
            recipe_of(settings, place, **changes), echo=lambda line: print(line, flush=True), callback=callback
        )

    try:
        whole, again = _result(run("whole")), _result(run("again"))
        stopped = False
        try:
            run("stopped", _StopAt(count // 2))
        except Interrupted:
            stopped = True
        resumed = _result(run("stopped"))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return {
        "stopped": stopped,
        "steps": len(resumed[0]),
        "again": _difference(whole, again),  # what the device's own order of additions changes, without any stop
        "resumed": _difference(whole, resumed),
    }


def _result(folder: Path) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of all steps, and the last weights."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (last,) = sorted((folder / "checkpoints").glob("step-*"))[-1:]
    return [row["loss"] for row in rows], load_file(last / "model.safetensors")


def _difference(a: tuple[list[float], dict[str, Tensor]], b: tuple[list[float], dict[str, Tensor]]) -> dict[str, Any]:
    weights = max(float((x - b[1][key]).abs().max()) for key, x in a[1].items() if x.is_floating_point())
    loss = max(abs(x - y) for x, y in zip(a[0], b[0], strict=True))
    return {"bit_equal": weights == 0 and loss == 0, "largest_of_weights": weights, "largest_of_losses": loss}


# -------------------------------------------------------------------------------------------- optimisers, copies
def optimizer(settings: dict[str, Any], place: Place) -> dict[str, Any]:
    """A bad step of an optimiser changes nothing, a good one all; and whether the host waits for either."""
    device = torch.device(place.device)
    make = registry.find("optimizers", settings["optimizer"])
    parameters = [torch.nn.Parameter(torch.ones(*shape, device=device)) for shape in ((64, 32), (64,))]
    names = ["matrix", "vector"]
    groups = [{"params": parameters, "names": names, "weight_decay": 0.1, "lr_scale": 1.0}]
    built = make(groups)
    set_lr(built, 0.1)
    flags = {bad: torch.full((), bad, dtype=torch.bool, device=device) for bad in (False, True)}

    def step(bad: bool) -> bool:
        """Whether all parameters have changed; raises where only some have."""
        before = [p.detach().clone() for p in parameters]
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, torch.nan if bad else 0.5)
        step_unless(built, flags[bad])
        changed = [not torch.equal(p, x) for p, x in zip(parameters, before, strict=True)]
        if len(set(changed)) > 1:
            raise AssertionError(f"only some parameters changed: {dict(zip(names, changed, strict=True))}")
        return changed[0]

    answer = {"first_bad_changes": step(True), "good_changes": step(False), "later_bad_changes": step(True)}
    seen_by_kind = {}
    for bad in (False, True):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, torch.nan if bad else 0.5)
        with waits(device) as seen:
            step_unless(built, flags[bad])
        seen_by_kind["bad" if bad else "good"] = sum(seen.counts().values())
    answer["finite"] = all(bool(torch.isfinite(p).all()) for p in parameters)
    return answer | {"waits": seen_by_kind if device.type == "cuda" else None}


def copies(settings: dict[str, Any], place: Place) -> dict[str, Any]:
    """How much of a copy from pinned memory on a stream of its own is hidden behind matrix products."""
    device = torch.device(place.device)
    if device.type != "cuda":
        return {"hidden": None, "why": "no CUDA device"}
    pinned = torch.empty(settings["mib"] * 2**20, dtype=torch.uint8).pin_memory()
    there = torch.empty_like(pinned, device=device)
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    side = torch.cuda.Stream(device)

    def copy() -> None:
        with torch.cuda.stream(side):
            there.copy_(pinned, non_blocking=True)

    copy_s = seconds_of(copy, device, 5)
    product_s = seconds_of(lambda: a @ a, device, 5)
    products = max(1, round(2 * copy_s / product_s))  # work for twice the time of the copy

    def compute() -> None:
        for _ in range(products):
            a @ a

    def both() -> None:
        copy()
        compute()
        torch.cuda.current_stream(device).wait_stream(side)

    compute_s, both_s = seconds_of(compute, device, 5), seconds_of(both, device, 5)
    synchronize(device)
    start = time.perf_counter()
    copy()
    returned_s = time.perf_counter() - start
    synchronize(device)
    answer = {"hidden": (compute_s + copy_s - both_s) / copy_s, "gb_per_s": pinned.numel() / copy_s / 1e9}
    return answer | {"copy_ms": 1000 * copy_s, "call_returns_after_ms": 1000 * returned_s}


# ------------------------------------------------------------------------------------------------ packaged recipes
def packaged(settings: dict[str, Any], place: Place) -> dict[str, Any]:
    """A packaged recipe, shrunk, for two steps: losses on the CPU and the device, and the host's waits in the last."""
    from tests.pretended_gpu.recipes import Samples, shrunk, two_steps

    device = torch.device(place.device)
    recipe, samples = shrunk(settings["recipe"], {"train.precision": "fp32"}), Samples(place.work / "samples")
    expected = [float(loss) for loss in two_steps(recipe, samples, DistContext())]
    seen: Any
    with waits(device) as seen:  # two_steps clears it before the last step, and pins its batches where there is one
        found = two_steps(recipe, samples, DistContext(device=device), seen if device.type == "cuda" else None)
    there = [float(loss) for loss in found]
    difference = max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(there, expected, strict=True))
    return {"difference": difference, "waits": seen.counts() if device.type == "cuda" else None, "losses": there}
