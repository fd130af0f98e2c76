"""What ``maemm estimate`` says of memory and operations, beside real training steps in fp32 on this CPU.

    python benchmarks/estimate.py [--cases image ...] [--out benchmarks/results/estimate.json]

Two steps of a packaged recipe are trained with its own samples. Memory is what torch's allocator says: the sum of all
that it gave and took back since the model was made, as the profiler records it, at most during the second step, whose
samples are preprocessed before. Operations are those that ``torch.utils.flop_counter`` counts in a third step, with
attention as plain products, which it can count. The estimate knows the recipe alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from _machine import about

HERE = Path(__file__).parents[1]
STEP = "the step that counts"
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {  # recipe, samples of a step (a multiple of 4), overrides
    "image": ("image/mae_tiny_cifar10", 32, {}),
    "image, micro-batches": ("image/mae_tiny_cpu", 32, {"train.micro_batch": 8}),
    "image, teacher and average": ("image/data2vec2_tiny_cpu", 8, {"train.ema": 0.999}),
    "video": ("video/videomae_tiny_grid", 8, {}),
    "audio": ("audio/audiomae_tiny_esc10", 16, {"modalities.audio.pad": "seen"}),  # of whole length
    "points": ("pointcloud/point_mae_tiny_modelnet10", 32, {}),
    "sound and picture": ("cav/cav_mae_tiny_cpu", 16, {}),
    "signal": ("signal/tiny_cpu", 64, {}),
}


def _recipe(name: str, again: bool) -> dict[str, Any]:
    from maemm import config

    recipe, batch, changes = CASES[name]
    plain = {"train.batch": batch, "train.micro_batch": None, "train.compile": False, "train.precision": "fp32"}
    return config.load(recipe, {**plain, "train.activation_checkpointing": again, **changes})


def estimated(name: str, again: bool) -> dict[str, float]:
    """Bytes and operations of a step, from the recipe alone."""
    from maemm.tasks.estimate.imagined import Imagined

    recipe = _recipe(name, again)
    batch = recipe["train"]["batch"]
    rows = recipe["train"]["micro_batch"] or batch
    imagined = Imagined(recipe, bf16=False, accumulates=rows < batch)
    counted = imagined.step(rows, recompute=again, accumulates=rows < batch)
    flops = sum(part.forward + part.backward for part in counted.parts.values()) * (batch // rows)
    return {"bytes": counted.peak + counted.inputs * (batch // rows - 1), "flops": flops}


def measured(name: str, again: bool) -> dict[str, float]:
    """The same of real steps."""
    sys.path.append(str(HERE))
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.profiler import ProfilerActivity, profile, record_function
    from torch.utils.flop_counter import FlopCounterMode

    from maemm.contract.rng import Rng
    from maemm.train.distributed import DistContext
    from maemm.train.optim import set_lr
    from maemm.train.setup import make_train_state
    from maemm.train.step import plan_micro_batches, take_step
    from tests.pretended_gpu.recipes import BATCH, Samples

    recipe = _recipe(name, again)
    train = recipe["train"]
    rows = train["micro_batch"] or train["batch"]
    accumulation = train["batch"] // rows

    with tempfile.TemporaryDirectory() as folder:
        batches = [Samples(Path(folder)).batch(recipe, 0, times=rows // BATCH)] * accumulation
    gc.collect()  # nothing of before is taken back while it is counted
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        state = make_train_state(recipe, 10, accumulation, DistContext(), fresh=False, steps_per_epoch=5)
        set_lr(state.optimizer, 1e-4)
        take_step(state, plan_micro_batches(state, 0, batches))
        rng = Rng((0, "step"), batches[0].rows, rows)
        preprocessed = [state.model.preprocess(x.raw, rng, x.present, x.side_inputs) for x in batches]
        with mock.patch.object(state.model, "preprocess", side_effect=preprocessed), record_function(STEP):
            take_step(state, plan_micro_batches(state, 1, batches))
    if again:  # what is computed twice is no operation of the model
        return {"bytes": _most(profiler)}
    counter = FlopCounterMode(display=False)
    with (
        mock.patch.object(state.model, "preprocess", side_effect=preprocessed),
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.mkldnn.flags(enabled=False),
        counter,
    ):
        take_step(state, plan_micro_batches(state, 2, batches))
    return {"bytes": _most(profiler), "flops": counter.get_total_flops()}


def _most(profiler: Any) -> int:
    """Bytes that the allocator had given and not taken back, at most during the step that counts."""
    events = list(profiler.profiler.kineto_results.events())
    (step,) = [event for event in events if event.name() == STEP]
    begin, end = step.start_ns(), step.start_ns() + step.duration_ns()
    held = most = 0
    for event in sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        held += event.nbytes()
        if begin <= event.start_ns() <= end:
            most = max(most, held)
    return most


def compared(name: str, again: bool) -> dict[str, Any]:
    """Both, and how far the estimate is off."""
    said, real = estimated(name, again), measured(name, again)
    row: dict[str, Any] = {}
    for key, unit, name_of in (("bytes", 1e6, "MB"), ("flops", 1e9, "GFLOP")):
        if key in real:
            row[name_of] = {"estimated": round(said[key] / unit, 2), "measured": round(real[key] / unit, 2)}
            row[name_of]["off_percent"] = round(100 * (said[key] / real[key] - 1), 2)
    return row


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    rows: dict[str, dict[str, Any]] = {}
    if args.out is not None and args.out.exists():
        rows = json.loads(args.out.read_text())["rows"]
    for name in args.cases:
        recipe, batch, changes = CASES[name]
        rows[name] = {"recipe": recipe, "batch": batch, **changes}
        for key, again in (("kept", False), ("activation_checkpointing", True)):
            rows[name][key] = compared(name, again)
            print(f"{name:28} {key:25}", rows[name][key], flush=True)
        if args.out is not None:
            args.out.write_text(json.dumps({"about": about(), "rows": rows}, indent=1) + "\n")
    return {"about": about(), "rows": rows}


if __name__ == "__main__":
    main()
