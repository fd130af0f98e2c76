"""Training with masks that the encoder guides: micro-batches, ranks, kill and resume, precision."""

from __future__ import annotations

import pytest
import torch

ATTENTION = {
    "modalities__toy__masking": {"type": "attention", "ratio": 0.5, "num_per_query": 4,
                                 "share": {"start": 0.0, "end": 1.0, "over": 0.5}},
    "train__epochs": 3,
    "train__save_every": 3,
}  # fmt: skip
CLUSTERS = {**ATTENTION, "modalities__toy__masking": {"type": "clusters", "ratio": 0.5, "begin": 0.25, "hints": 0.2}}


def close(toys, one, other):
    for a, b in zip(toys.metrics(one), toys.metrics(other), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["grad_norm"] == pytest.approx(
            b["grad_norm"], rel=1e-4
        )


@pytest.mark.parametrize("options", [ATTENTION, CLUSTERS], ids=["attention", "clusters"])
def test_micro_batches_equal_one_batch(toys, options):
    one = toys.train(toys.recipe(toys.out / "one", **options))
    close(toys, one, toys.train(toys.recipe(toys.out / "micro", **options, train__micro_batch=4)))
    plain = toys.train(
        toys.recipe(toys.out / "plain", **{**options, "modalities__toy__masking": {"type": "random", "ratio": 0.5}})
    )
    ours, theirs = ([row["loss"] for row in toys.metrics(run)] for run in (one, plain))
    begin = 1 if options is ATTENTION else 3  # steps of 12 before guidance
    assert ours[:begin] == theirs[:begin] and all(a != b for a, b in zip(ours[begin:], theirs[begin:], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("options", [ATTENTION, CLUSTERS], ids=["attention", "clusters"])
def test_two_processes_equal_one(toys, options):
    one = toys.train(toys.recipe(toys.out / "one", **options))
    pair = toys.start(toys.recipe(toys.out / "two", **options), 2)
    assert [rank.wait() for rank in pair] == [0, 0], pair[0].said()
    close(toys, one, toys.out / "two")


def test_a_killed_run_goes_on_bit_for_bit(toys):
    whole = toys.train(toys.recipe(toys.out / "whole", **ATTENTION))
    broken = toys.recipe(toys.out / "broken", **ATTENTION, data__source__delay=0.002)
    other = toys.start(broken)
    other.until("step 7 ")
    other.kill()
    toys.train(broken)
    assert toys.metrics(whole) == toys.metrics(toys.out / "broken")
    ours, theirs = toys.weights(whole), toys.weights(toys.out / "broken")
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_guidance_in_bf16(toys):
    """The encoder computes in the precision of the forward pass, the masking in full."""
    run = toys.train(toys.recipe(**{**CLUSTERS, "train__precision": "bf16"}))
    losses = [row["loss"] for row in toys.metrics(run)]
    assert len(losses) == 12 and losses[-1] < losses[0]
