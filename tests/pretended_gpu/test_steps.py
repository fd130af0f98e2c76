"""A step on a GPU is that of a CPU and lets the host wait for nothing: every packaged recipe, on the pretended GPU."""

from __future__ import annotations

import pytest
import torch

from maemm.contract.rng import Rng
from maemm.model.build import build_model
from maemm.train.distributed import DistContext

from .allowed import IN_STEPS, is_allowed
from .device import gpu
from .recipes import RAGGED, RECIPES, Samples, shrunk, two_steps

FP32 = {"train.precision": "fp32"}
#: a recipe of each kind in the default tests, the others behind ``slow``
QUICK = [name for name in RECIPES if "tiny_cpu" in name] + ["image/probe/mae_base", "video/omnimae_base"]
QUICK_RAGGED = ["audio/audiomae_tiny_cpu", "pointcloud/point_mae_tiny_cpu", "signal/tiny_cpu"]


def check(name: str, samples: Samples, **overrides) -> None:
    recipe = shrunk(name, {**FP32, **overrides})
    expected = [float(loss) for loss in two_steps(recipe, samples, DistContext())]
    with gpu() as seen:
        losses = two_steps(recipe, samples, DistContext(device=torch.device("cuda", 0)), seen)
        waits = [event for event in seen.waits if not is_allowed(event, IN_STEPS)]
        copies = list(seen.blocking_copies)
        losses = [float(loss.cpu()) for loss in losses]
    assert [*map(str, waits)] == [] and [*map(str, copies)] == []
    assert losses == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("name", QUICK)
def test_a_step_waits_for_nothing(name, samples):
    check(name, samples)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in QUICK])
def test_a_step_of_every_recipe_waits_for_nothing(name, samples):
    check(name, samples)


@pytest.mark.parametrize("name", QUICK_RAGGED)
def test_a_step_on_samples_of_different_sizes(name, samples):
    check(name, Samples(samples.folder, uneven=True), **RAGGED[name])


@pytest.mark.parametrize("name", QUICK_RAGGED)
def test_rotary_positions_of_any_tokens_wait_for_nothing(name, samples):
    check(name, Samples(samples.folder, uneven=True), **RAGGED[name], **{"encoder.rotary": "pairs"})


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RAGGED if name not in QUICK_RAGGED])
def test_a_step_of_every_recipe_on_samples_of_different_sizes(name, samples):
    check(name, Samples(samples.folder, uneven=True), **RAGGED[name])


def test_such_samples_are_padded(samples):
    for name in ("audio/audiomae_tiny_cpu", "pointcloud/point_mae_tiny_cpu", "signal/tiny_cpu"):
        recipe = shrunk(name, RAGGED[name])
        batch = Samples(samples.folder, uneven=True).batch(recipe, 0)
        for modality, x in build_model(recipe).preprocess(batch.raw, Rng((0,), range(4), 4)).items():
            assert x.valid is not None and len(set(x.valid.flatten(1).sum(1).tolist())) == 4, modality


def test_several_targets_and_a_teacher_wait_for_nothing(samples):
    objectives = {
        "reconstruct": {},
        "hog": {"type": "predict", "target": {"type": "hog", "cell": 4}, "weight": 0.5},
        "features": {"type": "predict", "target": {"type": "teacher", "loss": "cosine"}, "weight": 0.2},
        "words": {"type": "predict", "target": {"type": "codebook", "vocab": 32}, "weight": 0.1},
        "spectrum": {"type": "predict", "target": "frequency", "layer": "shared", "weight": 0.1},
        "watched": {"type": "predict", "target": {"type": "teacher", "seed": 1}, "weight": 0.0},
    }
    check("image/mae_tiny_cpu", samples, objectives=objectives)


# ----------------------------------------------------------------------------------------------- the pretence itself
def test_waits_and_copies_are_seen():
    with gpu() as seen:
        x = torch.ones(3).to("cuda", non_blocking=True)
        assert not seen.waits and len(seen.copies) == 1 and not seen.blocking_copies
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        assert x.sum().item() == 3 and bool((x > 0).all()) and x[x > 0].shape == (3,)
        assert len(seen.waits) == 3
        assert torch.equal(x.cpu(), torch.ones(3)) and len(seen.waits) == 4
        torch.tensor([1.0, 2.0], device="cuda")
        x[torch.tensor([0, 1])]
        assert len(seen.blocking_copies) == 3  # to the host, of the numbers, of the index
        torch.cuda.synchronize()
        assert len(seen.waits) == 5 and "synchronize" in seen.waits[-1].kind


def test_gradients_are_those_of_the_cpu():
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.LayerNorm(8), torch.nn.Linear(8, 1))
    x = torch.randn(5, 4)
    net(x).square().mean().backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    with gpu():
        net.to("cuda")
        net(x.to("cuda", non_blocking=True)).square().mean().backward()
        gradients = [p.grad.cpu() for p in net.parameters()]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (lambda x: x.mean().item(), "item()"),
        (lambda x: torch.tensor(2.0, device=x.device), "cpu -> cuda"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.cpu(), "copy to the host"),
        (lambda x: torch.linalg.inv(torch.eye(3, device=x.device)), "linalg"),
    ],
)
def test_planted_faults_are_seen(fault, what, samples, monkeypatch):
    """In the masking of a recipe that has none."""
    from maemm.model.masking.random import Random

    plan = Random.plan

    def faulty(self, name, tokens, rng):
        fault(tokens.values)
        return plan(self, name, tokens, rng)

    monkeypatch.setattr(Random, "plan", faulty)
    with pytest.raises(AssertionError, match="assert"):
        check("image/mae_tiny_cpu", samples)
    recipe = shrunk("image/mae_tiny_cpu", FP32)
    with gpu() as seen:
        two_steps(recipe, samples, DistContext(device=torch.device("cuda", 0)), seen)
        assert any(what in str(event) for event in [*seen.waits, *seen.blocking_copies])
