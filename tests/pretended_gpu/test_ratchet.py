"""A step launches no more, and moves and keeps no more bytes, than is on record in ``launches.json``."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maemm.model.decoders.full import Full

from .device import gpu
from .ratchet import MORE, RECORD, needed
from .recipes import RECIPES, Samples, counted_step, shrunk
from .work import LAUNCH, PEAK, RATES, counted

ON_RECORD = json.loads(RECORD.read_text())
QUICK = [
    "image/mae_tiny_cpu", "audio/audiomae_tiny_cpu", "pointcloud/point_mae_tiny_cpu", "cav/cav_mae_tiny_cpu",
    "signal/tiny_cpu", "image/ijepa_tiny_cpu", "image/finetune/mae_tiny_cpu",
]  # fmt: skip
HOW = "python -m tests.pretended_gpu.ratchet --record writes new numbers, if they are worth it"


def check(name: str, samples: Samples) -> None:
    step, before = needed(name, samples), ON_RECORD[name]
    more = {key: (step[key], before[key]) for key in step if step[key] > MORE * before[key]}
    assert not more, f"{name} needs more than before: {more}; {HOW}"


def test_every_recipe_is_on_record():
    assert set(ON_RECORD) >= set(RECIPES), HOW


@pytest.mark.parametrize("name", QUICK)
def test_a_step_needs_no_more(name, samples):
    check(name, samples)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in QUICK])
def test_a_step_of_every_recipe_needs_no_more(name, samples):
    check(name, samples)


@pytest.mark.parametrize("fault", ["launches", "bytes", "kept"])
def test_planted_faults_are_seen(fault, samples, monkeypatch):
    forward = Full.forward
    held = []

    def faulty(self, latents, *args):
        pred = forward(self, latents, *args)
        x = next(iter(pred.values()))
        if fault == "launches":
            for _ in range(12):
                x.sum()
        elif fault == "bytes":
            torch.zeros(1 << 20, device=x.device)
        else:
            held.append(torch.zeros(1 << 18, device=x.device))
        return pred

    monkeypatch.setattr(Full, "forward", faulty)
    with pytest.raises(AssertionError, match=fault):
        check("image/mae_tiny_cpu", samples)


# ------------------------------------------------------------------------------------------------ the counting itself
def test_a_layer_is_counted():
    net = nn.Linear(256, 512)
    with gpu(values=False) as seen, counted(seen) as work:
        net.to("cuda")
        x = torch.randn(64, 256).to("cuda")
        held = work.held
        assert not work.launches and held >= 4 * (256 * 512 + 512 + 64 * 256)  # copies of the host are not counted
        y = net(x)
        product = work.kinds["product"]
        assert (product.launches, product.flops) == (1, 2 * 64 * 256 * 512)
        assert product.bytes == 4 * (256 * 512 + 512 + 64 * 256 + 64 * 512)
        assert product.seconds == pytest.approx(max(LAUNCH, product.flops / RATES["tf32"] / 0.75))
        assert work.held - held == y.numel() * 4
        y.sum().backward()
        assert (product.launches, product.flops) == (2, 2 * 2 * 64 * 256 * 512)  # and the gradient of the weights
        del y
        assert work.share() == pytest.approx(work.flops / work.seconds() / PEAK)


def test_attention_is_one_kernel():
    with gpu(values=False) as seen, counted(seen) as work:
        q, k, v = (torch.empty(2, 4, 128, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in "qkv")
        F.scaled_dot_product_attention(q, k, v).sum().backward()
        attention = work.kinds["attention"]
        assert attention.launches == 4 and attention.flops == 2 * 4 * 2 * 128 * 128 * 64 * (2 + 5)
        mask = torch.ones(2, 1, 1, 128, dtype=torch.bool, device="cuda")
        assert F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask).shape == q.shape
        assert attention.launches == 5


def test_activations_that_are_computed_again_are_not_kept(samples):
    kept = []
    for again in (False, True):
        changes = {"train.activation_checkpointing": again, "encoder.depth": 6, "decoder.depth": 6}
        recipe = shrunk("image/mae_tiny_cpu", changes)
        with gpu(values=False) as seen, counted(seen) as work:
            kept.append(counted_step(recipe, samples, seen, work)["kept"])
    assert kept[1] < kept[0] / 2
