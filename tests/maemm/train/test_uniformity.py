"""Uniformity: the published values, and ranks and micro-batches that equal one batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from maemm.contract import Latents, MaemmError, Output, Plan
from maemm.contract.data import ModalityInput, Preprocessed, Tokens
from maemm.data.loader import Batch
from maemm.model.objectives.uniformity import Uniformity
from maemm.train.distributed import DistContext
from maemm.train.setup import make_train_state
from maemm.train.step import plan_micro_batches, take_step

GOLDEN = Path(__file__).parents[2] / "golden" / "variants" / "umae_uniformity.safetensors"


# ------------------------------------------------------------------------------------------------ published values
def out_of(features, valid=None):
    """An output whose rows see one token each, with these features (R, D)."""
    rows = len(features)
    index = torch.zeros(rows, 1, dtype=torch.int64)
    plan = Plan(index, index + 1, visible_valid=valid)
    tokens = Tokens(torch.zeros(rows, 2, 1), torch.zeros(1, 2, 1))
    x = ModalityInput(tokens, plan, Preprocessed(torch.zeros(rows, 2)))
    encoded = {"x": features[:, None]}
    return Output({"x": plan}, {}, {}, {}, encoded, {}, {}, inputs={"x": x})


class Bare(nn.Module):
    """What the objective needs of a model."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Identity()
        self.encoder.norm_of = lambda name: nn.Identity()


def loss_of(features, **rest):
    objective = Uniformity("uniformity", pool="mean", norm="none", weight=1.0)
    return objective(out_of(features, **rest), Bare())["uniformity.x"]


def test_published_values_and_gradient():
    golden = load_file(GOLDEN)
    features = golden["features"].requires_grad_()
    loss = loss_of(features).mean
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss"].item(), abs=1e-6)
    assert (features.grad - golden["grad"]).abs().max() < 1e-6
    cases = {
        "small_dim": golden["features_small_dim"],
        "collapsed": golden["features"][:1].detach().expand(12, -1),
        "orthogonal": torch.eye(12),
    }
    for name, x in cases.items():
        assert loss_of(x).mean.item() == pytest.approx(golden[f"loss_{name}"].item(), abs=1e-6), name


def test_rows_that_see_nothing_are_in_no_pair():
    features = load_file(GOLDEN)["features"]
    valid = torch.ones(12, 1, dtype=torch.bool)
    valid[8:] = False
    term = loss_of(features, valid=valid)
    assert term.count.item() == 8
    assert term.mean.item() == pytest.approx(loss_of(features[:8]).mean.item(), abs=1e-6)


# --------------------------------------------------------------------------------------------------------- training
def recipe_of(toys, out=None, **overrides):
    options = {"weight": 0.5, **overrides.pop("uniformity", {})}
    return toys.recipe(out, objectives={"reconstruct": {}, "uniformity": options}, **overrides)


def steps_of(recipe, micro_batches, count=2):
    """(terms and norms of the gradient of each step, weights at the end)."""
    state = make_train_state(recipe, 8, micro_batches, DistContext())
    state.optimizer.param_groups[0]["lr"] = 1e-2
    rows = []
    for number in range(count):
        torch.manual_seed(number)
        x, size = torch.randn(16, 1, 8, 8), 16 // micro_batches
        batches = [
            Batch(
                {"toy": {"x": x[start : start + size]}}, [""] * size, None, [*range(start, start + size)], [], number, 0
            )
            for start in range(0, 16, size)
        ]
        result = take_step(state, plan_micro_batches(state, number, batches))
        assert not bool(result.bad)
        rows.append({**{key: value.item() for key, value in result.terms.items()}, "norm": result.grad_norm.item()})
    return rows, state.model.state_dict()


@pytest.mark.parametrize("options", [{}, {"pool": "mean", "norm": "own"}], ids=["class tokens", "means"])
@pytest.mark.parametrize("more", [{}, {"modalities__toy__masking": {"type": "sizes"}}], ids=["", "two sets of plans"])
def test_micro_batches_are_one_batch(toys, options, more):
    recipe = recipe_of(toys, uniformity=options, train__optimizer="sgd", train__precision="fp32", **masked(more))
    (one, weights), (four, others) = steps_of(recipe, 1), steps_of(recipe, 4)
    for row, other in zip(one, four, strict=True):
        assert row == pytest.approx(other, abs=1e-5) and row["uniformity.toy"] > 0.05
    assert all(torch.allclose(value, others[key], atol=1e-6) for key, value in weights.items())
    alone, _ = steps_of(recipe_of(toys, uniformity={**options, "per_micro_batch": True}, **masked(more)), 4, 1)
    assert alone[0]["uniformity.toy"] > one[0]["uniformity.toy"] + 1e-3  # fewer pairs: more of them are of one row


def masked(more):
    return {"masking" if key == "modalities__toy__masking" else key: value for key, value in more.items()}


def test_micro_batches_in_bf16_reach_every_weight(toys):
    """Autocast keeps weights that it has cast: those of the first pass, which has no gradient, are not among them."""
    recipe = recipe_of(toys, train__optimizer="sgd", train__precision="bf16")
    (one, weights), (four, others) = steps_of(recipe, 1), steps_of(recipe, 4)
    for row, other in zip(one, four, strict=True):
        assert row == pytest.approx(other, rel=0.02)
    before = make_train_state(recipe, 8, 1, DistContext()).model.state_dict()
    for key, value in others.items():
        if key.endswith("weight"):
            assert not torch.equal(value, before[key]), key
            assert torch.allclose(value, weights[key], atol=2e-3), key


def test_layers_that_draw_random_numbers_are_refused_with_micro_batches(toys):
    recipe = recipe_of(toys, encoder__drop_path=0.5)
    with pytest.raises(MaemmError, match=r"objectives\.uniformity.*DropPath.*per_micro_batch=true"):
        steps_of(recipe, 4)
    steps_of(recipe, 1, 1)
    steps_of(recipe_of(toys, encoder__drop_path=0.5, uniformity={"per_micro_batch": True}), 4, 1)


def test_class_tokens_are_needed(toys):
    with pytest.raises(MaemmError, match=r"encoder\.prefix.*uniformity\.pool=mean"):
        make_train_state(recipe_of(toys, encoder__prefix=0), 8, 1, DistContext())


def test_two_processes_with_micro_batches_train_as_one(toys):
    settings = {"train__epochs": 2, "train__optimizer": "sgd", "train__lr": 0.05}
    one = toys.train(recipe_of(toys, toys.out / "one", **settings))
    pair = toys.start(recipe_of(toys, toys.out / "two", train__micro_batch=4, **settings), 2)
    assert [process.wait() for process in pair] == [0, 0], pair[0].said()
    for row, other in zip(toys.metrics(one), toys.metrics(toys.out / "two"), strict=True):
        assert row["terms"] == pytest.approx(other["terms"], abs=2e-5)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], abs=2e-4)
    weights, others = toys.weights(one), toys.weights(toys.out / "two")
    assert all(torch.allclose(value, others[key], atol=1e-5) for key, value in weights.items())


def test_latents_are_what_the_encoder_gives(toys):
    """The pass beforehand sees what the forward pass sees."""
    state = make_train_state(recipe_of(toys), 8, 1, DistContext())
    x = torch.randn(4, 1, 8, 8)
    planned = plan_micro_batches(state, 0, [Batch({"toy": {"x": x}}, [""] * 4, None, [*range(4)], [], 0, 0)])
    latents = state.model.encode_rows(planned.inputs[0])
    assert isinstance(latents, Latents)
    assert torch.equal(latents.tokens["toy"], state.model.predict(planned.inputs[0]).encoded["toy"])
