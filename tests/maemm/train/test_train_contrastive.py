"""Losses in which samples meet: n processes equal one."""

import pytest
import torch

from maemm.contract.errors import MaemmError

PAIR = {
    "modalities": {"toy": {"type": "toy"}, "other": {"type": "toy"}},
    "encoder": {
        "type": "streams", "dim": 16, "depth": 1, "joint_depth": 1, "heads": 2, "streams": ["toy", "other"],
    },
    "decoder__prefix": "none",
    "train__epochs": 2,
    "train__optimizer": "sgd",  # its steps are the gradients; Adam magnifies rounding
    "train__lr": 0.02,
    "objectives": {"reconstruct": {}, "contrastive": {"pair": ["toy", "other"], "weight": 0.5, "both": True}},
}  # fmt: skip


def test_two_processes_contrast_as_one(toys):
    """The first process draws pictures alone, without waiting for the other."""
    one = toys.train(toys.recipe(toys.out / "one", **PAIR))
    pair = toys.start(toys.recipe(toys.out / "two", **PAIR), 2)
    assert [process.wait() for process in pair] == [0, 0], pair[0].said()
    for row, other in zip(toys.metrics(one), toys.metrics(toys.out / "two"), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=2e-5)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], abs=2e-4)
        assert row["terms"].keys() >= {"reconstruct.toy", "contrastive", "contrastive_accuracy"}
        for name, value in row["terms"].items():
            assert value == pytest.approx(other["terms"][name], abs=2e-5), name
    weights, others = toys.weights(one), toys.weights(toys.out / "two")
    assert all(torch.allclose(value, others[key], atol=1e-5) for key, value in weights.items())


def test_micro_batches_are_refused_unless_asked_for(toys):
    with pytest.raises(MaemmError, match="compares samples.*per_micro_batch=true"):
        toys.train(**{**PAIR, "train__micro_batch": 8})
    contrastive = {**PAIR["objectives"]["contrastive"], "per_micro_batch": True}
    toys.train(**{**PAIR, "objectives": {"contrastive": contrastive}, "train__micro_batch": 8})
