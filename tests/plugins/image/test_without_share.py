"""With a weight or a share of zero every masking, target and objective of the family leaves plain MAE bit for bit as it
is: the weights it begins with, losses, gradients, and the weights after some steps."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import maemm
from maemm import config
from maemm.data.loader import Batch
from maemm.train.distributed import DistContext
from maemm.train.setup import make_train_state
from maemm.train.step import plan_micro_batches, take_step

ROWS, STEPS = 8, 3
BASE = {
    "modalities": {
        "image": {"size": 16, "patch": 4, "crop": "center", "flip": False, "masking": {"type": "random", "ratio": 0.6}}
    },
    "encoder": {"type": "vit", "dim": 16, "depth": 2, "heads": 2},
    "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
    "data": {"workers": 0, "source": "image_samples"},
    "train": {"epochs": 4, "batch": ROWS, "lr": 1e-2, "warmup_epochs": 1, "clip_grad": 0.5},
    "out": "unused",
}

MASKINGS = {
    "attention": {"type": "attention", "share": 0.0},
    "attention of class tokens": {"type": "attention", "share": 0.0, "queries": "prefix", "heads": "random"},
    "a subset by attention": {"type": "attention", "share": 0.0, "noise": "subset"},
    "clusters that begin later": {"type": "clusters", "begin": 1.0},
    "clusters that are all hints": {"type": "clusters", "begin": 0.0, "hints": 1.0},
    "a range of one ratio": {"type": "random", "ratio": [0.6, 0.6]},
    "a normal distribution of one ratio": {
        "type": "random", "ratio": {"mean": 0.6, "std": 0.1, "low": 0.6, "high": 0.6},
    },
    "blocks of one token": {"type": "random", "mask_block": 1},
}  # fmt: skip

OBJECTIVES = {
    "hog": {"type": "predict", "target": {"type": "hog", "cell": 2, "window": 4}},
    "frequency": {"type": "predict", "target": {"type": "frequency", "gamma": 1.5}},
    "frequency of the same prediction": {"type": "predict", "target": "frequency", "layer": "shared"},
    "teacher": {"type": "predict", "target": {"type": "teacher"}},
    "ema": {"type": "predict", "target": {"type": "ema", "momentum": 0.9, "layers": 2, "instance_norm": True}},
    "codes": {"type": "predict", "target": {"type": "codes", "vocab": 5}},
    "codebook": {"type": "predict", "target": {"type": "codebook", "vocab": 6}},
    "pooled": {"type": "pooled"},
    "uniformity": {"type": "uniformity"},
    "uniformity of means": {"type": "uniformity", "pool": "mean", "norm": "own"},
    "denoise": {"type": "denoise", "noise": 0.5},
    "views": {"type": "views", "hidden": 8, "dim": 4},
    "perceptual": {"type": "perceptual", "target": "teacher"},
    "perceptual of a layer": {"type": "perceptual", "target": "teacher", "layers": [0], "loss": "cosine"},
    "regions": {"type": "regions", "count": 3, "dim": 8, "heads": 2, "memory_depth": 1},
    "adversarial": {"type": "adversarial"},
}

# Of maskings whose ratio may be drawn for each batch: what the ratio alone says.
RATIOS = ["random", "scan", "block", "blocks", "inverse_block", "scattered_blocks", "attention", "clusters"]


def steps(micro_batches=1, **overrides):
    """(weights at the start, [(losses, norm of the gradient, gradients)], weights at the end)."""
    recipe = config.load(BASE, {key.replace("__", "."): value for key, value in overrides.items()}, training=True)
    state = make_train_state(recipe, STEPS, micro_batches, DistContext())
    state.optimizer.param_groups[0]["lr"] = 1e-2
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    gradients, seen = {}, []
    for name, parameter in state.model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=name: gradients.__setitem__(name, p.grad.clone())
            )
    generator = np.random.default_rng(0)
    for number in range(STEPS):
        x = torch.from_numpy(generator.integers(0, 256, (ROWS, 3, 16, 16), np.uint8))
        codes = torch.from_numpy(generator.integers(0, 5, (ROWS, 16)))
        regions = torch.arange(4, dtype=torch.uint8).view(1, 1, 4, 1).expand(ROWS, 1, 4, 4)
        regions = regions.repeat_interleave(4, 2).repeat_interleave(4, 3)
        size = ROWS // micro_batches
        batches = []
        for rows in torch.arange(ROWS).split(size):
            sides = {"image": {"codes": codes[rows], "regions": regions[rows]}}
            ids, places = list(map(str, rows.tolist())), rows.tolist()
            batches.append(Batch({"image": {"x": x[rows]}}, ids, None, places, [], number, 0, side_inputs=sides))
        result = take_step(state, plan_micro_batches(state, number, batches))
        assert not bool(result.bad)
        seen.append(({**result.terms, "total": result.total, "norm": result.grad_norm}, dict(gradients)))
        gradients.clear()
    return before, seen, state.model.state_dict()


plain = cache(steps)


def same(expected, received):
    """Everything that the plain model has."""
    (before, seen, after), (our_before, ours, our_after) = expected, received
    assert all(torch.equal(our_before[key], value) for key, value in before.items())
    for (losses, gradients), (our_losses, our_gradients) in zip(seen, ours, strict=True):
        assert all(torch.equal(our_losses[key], value) for key, value in losses.items())
        assert gradients and all(torch.equal(our_gradients[key], value) for key, value in gradients.items())
    assert all(torch.equal(our_after[key], value) for key, value in after.items())
    assert not torch.equal(after["encoder.blocks.0.mlp.fc1.weight"], before["encoder.blocks.0.mlp.fc1.weight"])


@pytest.mark.parametrize("name", MASKINGS)
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_maskings_without_a_share(name, micro_batches):
    spec = {"ratio": 0.6, **MASKINGS[name]}
    same(plain(micro_batches), steps(micro_batches, modalities__image__masking=spec))


def test_no_noise_is_none():
    same(plain(1), steps(objectives={"reconstruct": {}, "more": {"type": "denoise", "noise": 0.0}}))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("order", ["behind", "before"])
def test_targets_without_a_weight(name, order, tmp_path):
    spec = dict(OBJECTIVES[name], weight=0.0)
    if name == "teacher":
        small = config.load(BASE, {"encoder.depth": 1, "encoder.dim": 12})
        maemm.save(maemm.build(small), tmp_path / "teacher.safetensors")
        spec["target"] = {**spec["target"], "model": str(tmp_path / "teacher.safetensors")}
    views = {"data__aug_repeats": 2} if name == "views" else {}
    objectives = {"reconstruct": {}, "more": spec}
    if order == "before":
        objectives = dict(reversed(objectives.items()))
    ours = steps(objectives=objectives, **views)
    assert any("more" in key for key in ours[1][0][0])  # it is computed, and logged
    same(plain(1), ours)


def test_a_second_pass_of_the_encoder_draws_no_random_number():
    """Where something is dropped, the second micro-batch would get other numbers."""
    objectives = {"reconstruct": {}, "more": {"type": "adversarial", "weight": 0.0}}
    expected = steps(2, encoder__drop_path=0.3)
    same(expected, steps(2, encoder__drop_path=0.3, objectives=objectives))
    with pytest.raises(AssertionError):
        same(expected, steps(2, encoder__drop_path=0.3, objectives={**objectives, "more": {"type": "adversarial"}}))


def test_everything_at_once_without_a_share():
    """As a user tries it: a recipe with all of them, switched off."""
    objectives = {"reconstruct": {}}
    objectives |= {name.replace(" ", "_"): dict(x, weight=0.0) for name, x in OBJECTIVES.items() if name != "teacher"}
    objectives["views"]["per_micro_batch"] = True
    masking = {"type": "attention", "ratio": 0.6, "share": 0}
    same(plain(2), steps(2, objectives=objectives, modalities__image__masking=masking, data__aug_repeats=2))


@pytest.mark.parametrize("name", RATIOS)
def test_a_range_of_one_ratio_is_that_ratio(name):
    options = {"begin": 0.0} if name == "clusters" else {}
    constant, drawn = (
        steps(modalities__image__masking={"type": name, "ratio": ratio, **options}) for ratio in (0.7, [0.7, 0.7])
    )
    same(constant, drawn)


def test_the_comparison_sees_a_share():
    """What is compared differs where there is a weight or a share, however small."""
    for overrides in (
        {"modalities__image__masking": {"type": "attention", "ratio": 0.6, "share": 0.2}},
        {"modalities__image__masking": {"type": "clusters", "ratio": 0.6, "begin": 0.5}},
        {"objectives": {"reconstruct": {}, "more": dict(OBJECTIVES["hog"], weight=1e-3)}},
        {"objectives": {"reconstruct": {}, "more": dict(OBJECTIVES["uniformity"], weight=1e-3)}},
        {"objectives": {"reconstruct": {}, "more": dict(OBJECTIVES["denoise"], weight=1e-3)}},
        {"objectives": {"reconstruct": {}, "more": dict(OBJECTIVES["views"], weight=1e-3)}, "data__aug_repeats": 2},
    ):
        with pytest.raises(AssertionError):
            same(plain(1), steps(**overrides))
