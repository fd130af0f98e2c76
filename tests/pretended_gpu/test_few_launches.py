"""What a step does once, not once a micro-batch or once a parameter."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maemm.model.model import Model
from maemm.train.distributed import DistContext
from maemm.train.ema import Ema
from maemm.train.optim import set_lr
from maemm.train.setup import make_train_state
from maemm.train.step import plan_micro_batches, take_step

from .device import gpu
from .recipes import BATCH, Samples, shrunk
from .verbs import model_of

IMAGE = "image/mae_tiny_cpu"


class Casts(TorchDispatchMode):
    """How many tensors are cast from float32 to bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].dtype is torch.float32:
            self.count += (kwargs or {}).get("dtype") is torch.bfloat16
        return func(*args, **(kwargs or {}))


def steps(name: str, samples: Samples, micro_batches: int, device: torch.device) -> tuple[int, list[Tensor]]:
    """(casts to bfloat16 of the second of two steps under autocast, the parameters after them)."""
    batch = micro_batches * BATCH
    recipe = shrunk(name, {"train.precision": "bf16", "train.batch": batch, "train.micro_batch": BATCH})
    state = make_train_state(recipe, 10, micro_batches, DistContext(device=device), steps_per_epoch=5)
    set_lr(state.optimizer, 1e-3)
    for step in range(2):
        batches = [
            replace(samples.batch(recipe, number), rows=list(range(BATCH * number, BATCH * (number + 1))))
            for number in range(micro_batches)
        ]
        planned = plan_micro_batches(state, step, batches)
        with Casts() as casts:
            take_step(state, planned)
    return casts.count, list(state.model.parameters())


@pytest.mark.parametrize("name", [IMAGE, "image/ijepa_tiny_cpu"])
def test_weights_are_cast_once_a_step(name, samples, monkeypatch):
    cpu = torch.device("cpu")
    few, many = (steps(name, samples, count, cpu)[0] for count in (1, 3))
    weights = sum(p.ndim == 2 for p in make_train_state(shrunk(name), 10, 1, DistContext()).model.parameters())
    assert weights < few and many - few < weights  # what enters the network is cast in each
    casts, parameters = steps(name, samples, 3, cpu)
    forward = Model.forward

    def casts_again(self, *args, **kwargs):
        torch.clear_autocast_cache()
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Model, "forward", casts_again)
    more, same = steps(name, samples, 3, cpu)
    assert more - casts >= 2 * weights
    assert all(torch.equal(a, b) for a, b in zip(parameters, same, strict=True))


def test_an_average_moves_in_few_launches():
    model = model_of(IMAGE)
    before = [p.detach().clone() for p in model.parameters()]
    averages = []
    for device in ("cpu", "cuda"):
        with gpu() as seen:
            moved = model_of(IMAGE).to(device)
            ema = Ema(moved, 0.75)
            with torch.no_grad():
                for parameter in moved.parameters():
                    parameter.add_(1.0)
            bad, good = (torch.zeros((), device=device) == x for x in (0, 1))
            seen.clear()
            ema.update(bad, 0)
            assert not seen.waits and not seen.copies
            unmoved = [p.cpu() for p in ema.model.parameters()]
            assert all(torch.equal(a, b) for a, b in zip(unmoved, before, strict=True))
            seen.clear()
            ema.update(good, 1)
            launches = Counter({key: n for key, n in seen.launches.items() if "detach" not in key})
            averages.append([p.cpu() for p in ema.model.parameters()])
    assert sum(launches.values()) < 12, launches
    for average, same, start in zip(*averages, before, strict=True):
        torch.testing.assert_close(average, same, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(average, start + 0.25)
