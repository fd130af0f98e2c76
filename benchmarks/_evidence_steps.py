"""Steps of training as the loop takes them: eager and compiled, their rates, memory and kernels; and the whole loop."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from statistics import median
from typing import Any
from unittest import mock

import torch
from _evidence_data import folder
from _evidence_device import available_cpus, profile, seconds_of, waits
from _evidence_process import Place
from torch._dynamo.utils import counters

from maemm import config
from maemm.data.loader import Batch
from maemm.data.open import open_parts
from maemm.train import compiling
from maemm.train.distributed import DistContext
from maemm.train.flops import count_flops, named_peak
from maemm.train.logging import peak_memory
from maemm.train.loop import train
from maemm.train.optim import set_lr
from maemm.train.setup import make_loader, make_order, make_train_state
from maemm.train.state import StepResult, TrainState
from maemm.train.step import plan_micro_batches, take_step

STEPS = 100_000  # of the run that the measured steps belong to
SHRUNK = {"dim": 32, "depth": 2, "heads": 2}
SMALLER = {  # modalities, where ``tiny``
    "image": {"size": 32, "patch": 8},
    "video": {"size": [4, 32, 32], "patch": [2, 16, 16]},
    "audio": {"size": [64, 128]},
    "pointcloud": {"points": 128, "groups": 16, "group_size": 8},
}


def recipe_of(settings: dict[str, Any], place: Place, **overrides: Any) -> dict[str, Any]:
    """The recipe of the row, with data of its kind and as many workers as there are CPUs; where ``tiny``, narrow."""
    name, tiny = settings["recipe"], settings.get("tiny", False)
    plain_recipe = config.load(name, {})
    (modality,) = plain_recipe["modalities"]
    kind = plain_recipe["modalities"][modality].get("type", modality)
    changes: dict[str, Any] = {
        "data.source": kind,
        "data.root": str(folder(kind, place.work, tiny=tiny)),
        "data.list": None,
        "data.epoch": 100 * settings["batch"],  # drawn again and again from the few files
        "data.workers": 0 if tiny else min(16, available_cpus()),
        "train.batch": settings["batch"],
        "train.micro_batch": None,
        "train.compile": settings.get("compile", False),
        "train.epochs": None,
        "train.steps": STEPS,
        "train.warmup_epochs": 0,
        "train.precision": settings.get("precision", "auto"),
    }
    if tiny:
        for part in ("encoder", "decoder"):
            changes |= {f"{part}.{key}": x for key, x in SHRUNK.items() if key in (plain_recipe.get(part) or {})}
        changes |= {f"modalities.{modality}.{key}": value for key, value in SMALLER[kind].items()}
    return config.load(name, {**changes, **settings.get("overrides", {}), **overrides})


class Steps:
    """Steps of a recipe on two batches, as the loop takes them: planned, forward, backward, one update."""

    def __init__(self, settings: dict[str, Any], place: Place):
        self.recipe, self.device = recipe_of(settings, place), torch.device(place.device)
        dist_context = DistContext(device=self.device)
        source, _ = open_parts(self.recipe)
        order = make_order(self.recipe, source, dist_context)
        self.state: TrainState = make_train_state(
            self.recipe, STEPS, 1, dist_context, steps_per_epoch=order.steps_per_epoch
        )
        set_lr(self.state.optimizer, settings.get("lr", 1e-4))
        with closing(make_loader(self.recipe, source, order).batches(0, settings.get("batches", 2))) as batches:
            read = list(batches)
        self.batches: list[Batch] = [batch.pin_memory() for batch in read] if self.device.type == "cuda" else read
        self.number = 0
        first = plan_micro_batches(self.state, 0, self.batches[:1])
        self.first = first
        if self.state.compiled:
            with _backend(settings.get("backend", "inductor")):
                compiling.start(self.state, first, self.recipe["train"]["compile"], print)

    def __call__(self) -> StepResult:
        micro_batches = plan_micro_batches(self.state, self.number, [self.batches[self.number % len(self.batches)]])
        result = take_step(self.state, micro_batches)
        self.number += 1
        return result

    def losses(self, count: int) -> list[float]:
        return [float(loss) for loss in [self().total.detach() for _ in range(count)]]


@contextmanager
def _backend(name: str) -> Iterator[None]:
    """torch.compile with this backend; a recipe has no other than torch's default."""
    with mock.patch.object(torch, "compile", partial(torch.compile, backend=name)):
        yield


def steps(settings: dict[str, Any], place: Place) -> dict[str, Any]:
    """Rate, memory, model FLOPs utilisation, kernels and waits of steps; whether they really ran compiled."""
    torch._dynamo.reset()  # the limit of recompilations is per function: later rows would run eagerly
    counters.clear()
    with compiling.compiler_settings():
        return _measured(settings, place)


def _utilisation(step: Steps, seconds: float) -> dict[str, Any]:
    """Operations of a step that took ``seconds``, and as a fraction of the device's peak, where that is listed."""
    try:
        flops = count_flops(step.state, step.first)
    except Exception as error:  # the other figures of the row are measured all the same
        return {"no_mfu": f"{type(error).__name__}: {error}"[:200]}
    answer = {"gflop_per_sample": flops / step.state.batch / 1e9, "tflops": flops / seconds / 1e12}
    name = torch.cuda.get_device_name(step.device) if step.device.type == "cuda" else ""
    peak = named_peak(name, step.state.bf16)
    return answer if peak is None else {**answer, "mfu": answer["tflops"] / peak}


def _measured(settings: dict[str, Any], place: Place) -> dict[str, Any]:
    _as_the_loop_does(torch.device(place.device))
    start = time.perf_counter()
    step = Steps(settings, place)
    device, batch = step.device, settings["batch"]
    gpu = device.type == "cuda"

    # The first steps, whose losses are compared between rows.
    answer: dict[str, Any] = {"losses": step.losses(3), "start_s": time.perf_counter() - start}
    answer |= {"graphs": counters["stats"]["unique_graphs"], "graph_breaks": sum(counters["graph_break"].values())}
    place.keep(answer)

    # Time, with the copies to the device, without the loader.
    frames = counters["frames"]["total"]
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = seconds_of(step, device, 1, warm=0)
    seconds = seconds_of(step, device, max(2, min(200, int(settings["seconds"] / seconds))), warm=0)
    answer |= {"samples_per_s": batch / seconds, "ms": 1000 * seconds}
    answer |= _utilisation(step, seconds)
    answer |= {"peak_gib": peak_memory(device) / 2**30, "compiled_again": counters["frames"]["total"] - frames}
    place.keep(answer)

    # What a step is made of.
    profiled = profile(step, device)
    answer |= profiled
    if profiled["kernel_seconds"] is not None:
        answer["busy"] = profiled["kernel_seconds"] / seconds  # the rest of the time the device waits for launches
    with waits(device) as seen:
        step()
        step()
    answer["waits_per_step"] = {where: count / 2 for where, count in seen.counts().items()} if gpu else None
    ran = answer["graphs"] > 0 and profiled["compiled_regions"] > 0  # in this very step
    answer["mode"] = "eager" if not settings.get("compile") else "compiled" if ran else "not compiled"
    return answer


def _as_the_loop_does(device: torch.device) -> None:
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def farthest_points(settings: dict[str, Any], place: Place) -> dict[str, Any]:
    """Clouds per second of farthest point sampling, the kernel where there is one against the loop in torch."""
    from maemm_plugins.pointcloud import grouping

    clouds, points, groups = settings["clouds"], settings["points"], settings["groups"]
    device = torch.device(place.device)
    x = torch.randn(clouds, points, 3, generator=torch.Generator().manual_seed(0)).to(device)
    planes, first = x.transpose(1, 2).contiguous(), torch.zeros(clouds, dtype=torch.long, device=device)

    def in_torch() -> torch.Tensor:
        return grouping._sample(planes, torch.full_like(planes[:, 0], torch.inf), first, groups)[0]

    answer = {"same": torch.equal(grouping.farthest_points(x, groups)[0].cpu(), in_torch().cpu())}
    answer["kernel"] = device.type == "cuda" and grouping._kernel() is not None  # asked after it has been tried
    ways = {"chosen": lambda: grouping.farthest_points(x, groups), "torch": in_torch}
    return answer | {name: clouds / seconds_of(way, device, settings["rounds"]) for name, way in ways.items()}


def loop(settings: dict[str, Any], place: Place) -> dict[str, Any]:
    """The whole training loop with its loader: what its own log says of rates, waiting for data and memory."""
    out = place.work / "loop" / settings["recipe"].replace("/", "-")
    shutil.rmtree(out, ignore_errors=True)
    overrides = {"train.steps": settings["steps"], "train.log_every": settings["log_every"], "out": str(out)}
    recipe = recipe_of(settings, place, **overrides, **{"train.save_every": settings["steps"]})
    try:
        train(recipe, echo=lambda line: print(line, flush=True))
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    finally:
        shutil.rmtree(out, ignore_errors=True)
    last = rows[1:] or rows  # the first has the start of the workers
    answer = {name: median(row[name] for row in last) for name in ("samples_per_second", "data_wait")}
    answer |= {"workers": recipe["data"]["workers"], "lines": len(last), "memory_gib": rows[-1]["memory"] / 2**30}
    return answer | {"loss": rows[-1]["loss"], "log": rows[-1]}
