"""Two views of a sample told from others, and noise that is predicted: CAN."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from maemm.contract import MaemmError
from maemm.data.loader import Batch
from maemm.model.objectives.views import Views
from maemm.train.distributed import DistContext
from maemm.train.setup import make_train_state
from maemm.train.step import plan_micro_batches, take_step

ROWS = 8


def recipe_of(toys, objectives, out=None, **overrides):
    return toys.recipe(out, objectives={"reconstruct": {}, **objectives}, **overrides)


def planned(toys, objectives, step=0, rows=ROWS, **overrides):
    """(the state of a training, its micro-batch of a step)."""
    state = make_train_state(recipe_of(toys, objectives, **overrides), 8, 1, DistContext())
    torch.manual_seed(step)
    x = torch.randn(rows, 1, 8, 8)
    batch = Batch({"toy": {"x": x}}, [""] * rows, None, [*range(rows)], [], step, 0)
    return state, plan_micro_batches(state, step, [batch])


# ------------------------------------------------------------------------------------------------------------- views
def by_hand(vectors, samples, temperature):
    """InfoNCE as it is written down: for each row and each other row of its sample, against the rows of others."""
    scores, losses = (vectors @ vectors.T / temperature).tolist(), []
    for a, own in enumerate(samples):
        rest = sum(math.exp(scores[a][b]) for b, other in enumerate(samples) if other != own)
        of_row = [
            -math.log(math.exp(scores[a][b]) / (math.exp(scores[a][b]) + rest))
            for b, other in enumerate(samples)
            if other == own and b != a
        ]
        losses.append(sum(of_row) / len(of_row))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("repeats", [2, 4])
def test_the_loss_is_that_of_pairs(toys, repeats):
    views = {"type": "views", "hidden": 0, "temperature": 0.3}
    state, micro = planned(toys, {"views": views}, data__aug_repeats=repeats)
    out = state.model(micro.inputs[0])
    vectors = F.normalize(out.encoded["toy"].mean(1), dim=-1)
    expected = by_hand(vectors, [row // repeats for row in range(ROWS)], 0.3)
    assert out.terms["views.toy"].item() == pytest.approx(expected, rel=1e-5)
    best = (vectors @ vectors.T - 9 * torch.eye(ROWS)).argmax(1)
    hits = (best // repeats == torch.arange(ROWS) // repeats).float().mean()
    assert out.terms["views.toy_accuracy"].item() == pytest.approx(hits.item())


def test_equal_views_of_different_samples_are_told_apart():
    """Of rows that are equal in a sample and at right angles to others the loss is near 0, of equal rows log(n)."""
    views = Views("views", hidden=0, temperature=0.01)
    vectors, sample = torch.eye(4).repeat_interleave(2, 0), torch.arange(8) // 2
    loss, hits = views._compare(vectors, sample, torch.ones_like(sample))
    assert loss.item() == pytest.approx(0.0, abs=1e-5) and hits.item() == 8
    loss, _ = views._compare(torch.ones(8, 4) / 2, sample, torch.ones_like(sample))
    assert loss.item() / 8 == pytest.approx(math.log(7), rel=1e-5)  # one positive and six others


def test_a_view_that_is_not_there_is_in_no_pair():
    views = Views("views", hidden=0)
    vectors, sample = F.normalize(torch.randn(8, 4), dim=-1), torch.arange(8) // 2
    present = torch.tensor([1, 1, 1, 0, 1, 1, 0, 0])
    vectors = vectors.requires_grad_()
    loss, _ = views._compare(vectors, sample, present)
    loss.backward()
    rows = [0, 1, 2, 4, 5]
    again, _ = views._compare(vectors.detach()[rows], sample[rows], torch.ones(5, dtype=torch.int64))
    assert loss.item() == pytest.approx(again.item(), rel=1e-5)
    assert vectors.grad.isfinite().all() and not vectors.grad[[3, 6, 7]].any() and vectors.grad[0].any()
    assert int(views._with_partner(sample, present).sum()) == 4


def test_one_view_is_refused_and_masks_are_views(toys):
    with pytest.raises(MaemmError, match=r"data\.aug_repeats.*set it to 2"):
        planned(toys, {"views": {"hidden": 8}})
    masks = {"type": "multi_mask", "masks_per_sample": 2, "masking": {"type": "random", "ratio": 0.5}}
    state, micro = planned(toys, {"views": {"hidden": 8}}, masking=masks)
    out = state.model(micro.inputs[0])
    assert out.parts["views.toy"].count.item() == 2 * ROWS and out.terms["views.toy"].item() > 0
    with pytest.raises(MaemmError, match="compares samples.*per_micro_batch=true"):
        make_train_state(recipe_of(toys, {"views": {}}, data__aug_repeats=2), 8, 2, DistContext())


def test_two_processes_train_as_one(toys):
    """Both objectives of CAN at once."""
    objectives = {"views": {"hidden": 16, "dim": 8, "weight": 0.5}, "denoise": {"noise": 0.5, "weight": 0.5}}
    settings = {"train__epochs": 1, "train__optimizer": "sgd", "train__lr": 0.05, "data__aug_repeats": 2}
    one = toys.train(recipe_of(toys, objectives, toys.out / "one", **settings))
    pair = toys.start(recipe_of(toys, objectives, toys.out / "two", **settings), 2)
    assert [process.wait() for process in pair] == [0, 0], pair[0].said()
    for row, other in zip(toys.metrics(one), toys.metrics(toys.out / "two"), strict=True):
        assert row["terms"].keys() >= {"views.toy", "views.toy_accuracy", "denoise.toy", "reconstruct.toy"}
        assert row["terms"] == pytest.approx(other["terms"], abs=2e-5)
    weights, others = toys.weights(one), toys.weights(toys.out / "two")
    assert all(torch.allclose(value, others[key], atol=1e-5) for key, value in weights.items())


def test_baselines_are_those_of_knowing_nothing(toys):
    objectives = {"views": {"hidden": 8}, "denoise": {"noise": 0.5}, "uniformity": {}}
    state, micro = planned(toys, objectives, data__aug_repeats=2)
    noise = micro.inputs[0]["toy"].drawn_by["denoise"][1]
    result = take_step(state, micro, baseline=True)
    assert result.baselines["views.toy"].item() == pytest.approx(math.log(ROWS - 1), rel=1e-5)
    assert result.baselines["uniformity.toy"].item() == pytest.approx(1.0)
    visible = torch.stack([noise[row, index] for row, index in enumerate(micro.inputs[0]["toy"].plan.visible)])
    assert result.baselines["denoise.toy"].item() == pytest.approx(visible.square().mean().item(), rel=1e-5)
    assert result.baselines.keys() == {*result.terms} - {"reconstruct.toy"} | {"toy"}


# ------------------------------------------------------------------------------------------------------------- noise
NOISE = {"denoise": {"noise": 0.5}}


def test_the_encoder_alone_sees_the_noise(toys):
    state, micro = planned(toys, NOISE)
    x = micro.inputs[0]["toy"]
    level, noise = x.drawn_by["denoise"]
    assert torch.equal(x.seen.values, x.tokens.values + noise)
    assert level.shape == (ROWS,) and level.min() > 0 and level.max() < 0.5 and len(level.unique()) == ROWS
    assert (noise.flatten(1).std(1) / level - 1).abs().max() < 0.35  # 64 values of a sample
    model = state.model.eval()
    clean = make_train_state(recipe_of(toys, {}), 8, 1, DistContext()).model.eval()
    clean.load_state_dict(model.state_dict(), strict=False)
    out = model(micro.inputs[0])
    noisy = clean.encoder({"toy": type(x)(x.seen, x.plan, x.preprocessed)}, clean.modalities)
    assert torch.equal(out.encoded["toy"], noisy.tokens["toy"])
    assert torch.equal(out.target["toy"], model.modalities["toy"].target(x.tokens, x.plan.predict))
    assert "denoise.toy" not in out.parts  # validation has no such term


def test_the_term_is_the_error_of_the_noise_at_visible_tokens(toys):
    state, micro = planned(toys, NOISE)
    model, x = state.model, micro.inputs[0]["toy"]
    out = model(micro.inputs[0])
    assert out.decoded_visible["toy"].shape == (*x.plan.visible.shape, model.decoder.decoded_dim)
    noise = x.drawn_by["denoise"][1]
    target = torch.stack([noise[row, index] for row, index in enumerate(x.plan.visible)])
    pred = model.objectives["denoise"].layers["toy"](out.decoded_visible["toy"])
    assert out.terms["denoise.toy"].item() == pytest.approx((pred - target).square().mean().item(), rel=1e-5)
    out.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.objectives["denoise"].parameters())


def test_the_decoder_knows_the_level(toys):
    """Predictions differ by the level alone; without ``level`` they do not."""
    for options, differs in (({}, True), ({"level": False}, False)):
        state, micro = planned(toys, {"denoise": {"noise": 0.5, **options}})
        model, x = state.model.eval(), micro.inputs[0]["toy"]
        level, noise = x.drawn_by["denoise"]
        other = type(x)(x.tokens, x.plan, x.preprocessed, drawn_by={"denoise": (level / 2, noise)}, seen=x.seen)
        first, second = (model.predict({"toy": y}).pred["toy"] for y in (x, other))
        assert (not torch.equal(first, second)) == differs


def test_noise_belongs_to_the_step_and_the_sample(toys):
    """Equal for equal steps, whatever the micro-batches; other in each step and for each sample."""
    _, micro = planned(toys, NOISE)
    _, again = planned(toys, NOISE)
    noise = micro.inputs[0]["toy"].drawn_by["denoise"][1]
    assert torch.equal(noise, again.inputs[0]["toy"].drawn_by["denoise"][1])
    _, other = planned(toys, NOISE, step=1)
    assert not torch.equal(noise, other.inputs[0]["toy"].drawn_by["denoise"][1])
    state = make_train_state(recipe_of(toys, NOISE), 8, 2, DistContext())
    torch.manual_seed(0)
    x = torch.randn(ROWS, 1, 8, 8)
    batches = [Batch({"toy": {"x": x[r]}}, [""] * 4, None, r, [], 0, 0) for r in ([0, 1, 2, 3], [4, 5, 6, 7])]
    halves = plan_micro_batches(state, 0, batches).inputs
    assert torch.equal(noise, torch.cat([half["toy"].drawn_by["denoise"][1] for half in halves]))


def test_noise_is_learned(toys):
    """With much noise the network soon predicts better than 0."""
    denoise = {"denoise": {"noise": 3.0, "weight": 1.0}}
    state = make_train_state(recipe_of(toys, denoise), 60, 1, DistContext())
    state.optimizer.param_groups[0]["lr"] = 5e-3
    torch.manual_seed(0)
    x, ratios = 0.1 * torch.randn(ROWS, 1, 8, 8), []
    for step in range(60):
        micro = plan_micro_batches(
            state, step, [Batch({"toy": {"x": x}}, [""] * ROWS, None, [*range(ROWS)], [], step, 0)]
        )
        noise = micro.inputs[0]["toy"].drawn_by["denoise"][1]
        ratios.append(take_step(state, micro).terms["denoise.toy"].item() / noise.square().mean().item())
    assert sum(ratios[-10:]) / 10 < 0.9 < sum(ratios[:3]) / 3


def test_first_predictions_are_as_small_as_the_noise(toys):
    for noise in (0.5, 0.01):
        state, micro = planned(toys, {"denoise": {"noise": noise}})
        result = take_step(state, micro, baseline=True)
        ratio = result.terms["denoise.toy"].item() / result.baselines["denoise.toy"].item()
        assert 1.0 < ratio < 20.0, noise


def test_decoders_that_do_not_give_visible_tokens_are_refused(toys):
    with pytest.raises(MaemmError, match=r"objectives\.denoise needs a decoder.*decoder\.type=full"):
        make_train_state(recipe_of(toys, NOISE, decoder={"type": "conv", "dim": 8, "groups": 2}), 8, 1, DistContext())
