"""Objectives beside the reconstruction, at once and with micro-batches: the host waits for nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from maemm.train.distributed import DistContext
from maemm.train.optim import set_lr
from maemm.train.setup import make_train_state
from maemm.train.step import plan_micro_batches, take_step

from .allowed import IN_STEPS, is_allowed
from .device import PretendedGpu, gpu
from .recipes import BATCH, Samples, shrunk

NET = "test_convnext"  # without batch normalisation, which the pretended GPU does not have


def losses_of(
    recipe: dict[str, Any], samples: Samples, dist_context: DistContext, seen: PretendedGpu | None = None
) -> list[Tensor]:
    """Two steps of two micro-batches; ``seen`` is cleared before the second."""
    state = make_train_state(recipe, 10, 2, dist_context)
    losses = []
    for step in range(2):
        batches = [
            replace(samples.batch(recipe, 2 * step + micro), rows=[*range(micro * BATCH, (micro + 1) * BATCH)])
            for micro in range(2)
        ]
        if seen is not None:
            batches = [batch.pin_memory() for batch in batches]
            if step:
                seen.clear()
        set_lr(state.optimizer, 1e-3)
        losses.append(take_step(state, plan_micro_batches(state, step, batches)).total.detach())
    return losses


def test_all_objectives_with_micro_batches_wait_for_nothing(samples, tmp_path):
    torch.manual_seed(0)
    save_file(timm.create_model(NET, pretrained=False, num_classes=0).state_dict(), tmp_path / "net.safetensors")
    network = {"type": "picture_teacher", "model": NET, "weights": str(tmp_path / "net.safetensors"), "size": 64}
    objectives = {
        "reconstruct": {},
        "uniformity": {"weight": 0.5},
        "means": {"type": "uniformity", "pool": "mean", "norm": "own"},
        "denoise": {"noise": 0.5},
        "views": {"hidden": 8, "per_micro_batch": True},
        "regions": {"count": 3, "dim": 16, "heads": 2, "memory_depth": 1},
        "looks": {"type": "perceptual", "target": network, "layers": [0, 2]},
        "looks_to_itself": {"type": "perceptual", "target": "teacher", "loss": "cosine"},
    }
    overrides = {"objectives": objectives, "data.aug_repeats": 2, "train.batch": 2 * BATCH, "train.micro_batch": BATCH}
    recipe = shrunk("image/rmae_tiny_cpu", {"train.precision": "fp32", **overrides})
    expected = [float(loss) for loss in losses_of(recipe, samples, DistContext())]
    with gpu() as seen:
        losses = losses_of(recipe, samples, DistContext(device=torch.device("cuda", 0)), seen)
        waits = [event for event in seen.waits if not is_allowed(event, IN_STEPS)]
        copies = list(seen.blocking_copies)
        received = [float(loss.cpu()) for loss in losses]
    assert [*map(str, waits)] == [] and [*map(str, copies)] == []
    assert received == pytest.approx(expected, rel=2e-3)
