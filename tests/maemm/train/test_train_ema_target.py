"""Training with the target ema: kill and resume, ranks, micro-batches."""

from __future__ import annotations

import pytest
import torch

OPTIONS = {
    "modalities__toy__target": {"type": "ema", "momentum": 0.8, "momentum_end": 1.0, "layers": 2},
    "decoder": {"type": "predictor", "dim": 16, "depth": 1, "heads": 2},
    "train__final_weight_decay": 0.4,
    "train__lr_per": "next_step",
    "train__save_every": 3,
    "train__epochs": 4,
}

IJEPA = {**OPTIONS, "modalities__toy__masking": {"type": "multi_block", "min_keep": 0}, "encoder__prefix": 0}
VJEPA2 = {
    **IJEPA,
    "modalities__toy__target": {"type": "ema", "momentum": 0.8, "loss": "l1"},
    "modalities__toy__position": "none",
    "modalities__toy__masking": {
        "type": "multi_block",
        "generators": [{"blocks": 3}, {"blocks": 2, "scale": [0.5, 0.5]}],
    },
    "encoder__rotary": "vjepa2",
    "decoder": {**OPTIONS["decoder"], "rotary": "vjepa2", "mask_tokens": 3, "init": "normal_by_depth"},
}
DATA2VEC = {
    **OPTIONS,
    "modalities__toy__target": {"type": "ema", "momentum": 0.8, "layers": 2, "features": "ffn", "instance_norm": True,
                                "loss": "mse", "reduction": "sum_by_root"},
    "modalities__toy__masking": None,
    "masking": {"type": "multi_mask", "masks_per_sample": 3, "masking": {"type": "scattered_blocks", "side": 2}},
    "encoder": {"type": "vit", "dim": 16, "depth": 3, "heads": 2, "block_norm": "post", "input_norm": True,
                "final_norm": False},
    "decoder": {"type": "conv", "dim": 16, "depth": 2, "groups": 2, "noise": 0.1},
    "objectives": {"reconstruct": {}, "pooled": {"weight": 0.1}},
}  # fmt: skip


def same_weights(toys, one, other):
    ours, theirs = toys.weights(one), toys.weights(other)
    assert any(key.startswith("targets.toy.encoder.") for key in ours)
    return [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def close_weights(toys, one, other):
    """Losses, and weights but for biases of keys, whose gradient is nothing but rounding errors."""
    for a, b in zip(toys.metrics(one), toys.metrics(other), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    theirs = toys.weights(other)
    for key, value in toys.weights(one).items():
        if not key.endswith("qkv.bias"):
            torch.testing.assert_close(theirs[key], value, rtol=1e-3, atol=1e-4)


def test_a_killed_run_goes_on_bit_for_bit(toys):
    whole = toys.train(toys.recipe(toys.out / "whole", **OPTIONS))
    broken = toys.recipe(toys.out / "broken", **OPTIONS, data__source__delay=0.002)
    other = toys.start(broken)
    other.until("step 8 ")
    other.kill()
    last = toys.start(broken)
    assert last.wait() == 0, last.said()
    assert toys.metrics(whole) == toys.metrics(toys.out / "broken")
    assert same_weights(toys, whole, toys.out / "broken")


@pytest.mark.parametrize("options", [IJEPA, VJEPA2, DATA2VEC], ids=["ijepa", "vjepa2", "data2vec"])
def test_ranks_and_micro_batches_equal_one(toys, options):
    one = toys.train(toys.recipe(toys.out / "one", **options))
    pair = toys.start(toys.recipe(toys.out / "two", **options), 2)
    micro = toys.train(toys.recipe(toys.out / "micro", **options, train__micro_batch=4))
    assert [rank.wait() for rank in pair] == [0, 0], pair[0].said()
    for other in (toys.out / "two", micro):
        close_weights(toys, one, other)


def test_the_schedules_reach_their_ends(toys):
    from maemm.train.distributed import DistContext
    from maemm.train.setup import make_train_state

    state = make_train_state(toys.recipe(**OPTIONS), 16, 1, DistContext())
    target = state.model.targets["toy"]
    assert target.momentum_at(0) == 0.8 and target.momentum_at(8) == pytest.approx(0.9)
    state.weight_decay.set(state.optimizer, 15)
    assert {group["weight_decay"] for group in state.optimizer.param_groups} == {0.0, 0.4}
