"""Muon and the guard against loss spikes in whole steps: the host waits for nothing, and a jump changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maemm.train.distributed import DistContext
from maemm.train.optim import set_lr
from maemm.train.setup import make_train_state
from maemm.train.step import plan_micro_batches, take_step

from .allowed import IN_STEPS, is_allowed
from .device import gpu
from .recipes import shrunk

STEPS = 6


def results_of(recipe, samples, dist_context, seen=None):
    """(losses, spikes, weights before the last step, and after it); the weights of the loss jump before that."""
    state = make_train_state(recipe, 10, 1, dist_context)
    losses, spikes, before = [], [], {}
    for step in range(STEPS):
        batch = samples.batch(recipe, 0)
        if seen is not None:
            batch = batch.pin_memory()
        if step == STEPS - 1:  # the loss of a wild prediction; undone right after the step
            before = {name: value.clone() for name, value in state.model.state_dict().items()}
            with torch.no_grad():
                for head in state.model.decoder.heads.values():
                    head.bias += 100.0
        if seen is not None:
            seen.clear()
        set_lr(state.optimizer, 1e-5)
        result = take_step(state, plan_micro_batches(state, step, [replace(batch, step=step)]))
        losses.append(result.total.detach())
        spikes.append(result.verdict.spike)
    with torch.no_grad():
        for head in state.model.decoder.heads.values():
            head.bias -= 100.0
    return losses, spikes, before, state.model.state_dict()


@pytest.mark.parametrize(
    "name", ["image/mae_tiny_cpu", pytest.param("pointcloud/point_mae_tiny_cpu", marks=pytest.mark.slow)]
)
def test_steps_wait_for_nothing_and_a_jump_is_skipped(samples, name):
    overrides = {"train.precision": "fp32", "train.optimizer": {"type": "muon", "precision": "fp32"}}
    recipe = shrunk(name, {**overrides, "train.spikes": {"window": 8, "factor": 20.0}})
    expected, jumps, *_ = results_of(recipe, samples, DistContext())
    assert [bool(jump) for jump in jumps] == [False] * (STEPS - 1) + [True]
    with gpu() as seen:
        losses, jumps, before, after = results_of(recipe, samples, DistContext(device=torch.device("cuda", 0)), seen)
        waits = [event for event in seen.waits if not is_allowed(event, IN_STEPS)]
        copies = list(seen.blocking_copies)
        received = [float(loss.cpu()) for loss in losses]
        assert bool(jumps[-1].cpu())
        moved = [key for key in before if not torch.allclose(before[key].cpu(), after[key].cpu(), atol=1e-4)]
        exact = [key for key in before if "heads" not in key and not torch.equal(before[key].cpu(), after[key].cpu())]
    assert [*map(str, waits)] == [] and [*map(str, copies)] == []
    assert received == pytest.approx([float(loss) for loss in expected], rel=2e-3)
    assert moved == [] and exact == []
