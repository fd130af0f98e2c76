"""What the first contract could not say, each with the smallest user that needs it (tests/toy_plugin/contract2.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from maemm import config
from maemm.contract import MaemmError, ModalityInput, Preprocessed, Rng
from maemm.model.build import build_model
from maemm.train.optim import set_lr
from maemm.train.step import plan_micro_batches, take_step

BASE = {
    "modalities": {"toy": {"masking": {"type": "random", "ratio": 0.5}}},
    "encoder": {"type": "vit", "dim": 16, "depth": 2, "heads": 2},
    "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
}


def recipe(**overrides):
    return config.load(BASE, {key.replace("__", "."): value for key, value in overrides.items()})


def model(**overrides):
    torch.manual_seed(0)
    return build_model(recipe(**overrides))


def pictures(names=("toy",), batch=3, size=8):
    torch.manual_seed(1)
    return {name: Preprocessed(torch.randn(batch, 1, size, size)) for name in names}


def rng(rows=3, step=0):
    return Rng((0, step), range(rows), rows)


def counted(module, calls):
    """Count the calls of a module and the tokens that its blocks see."""
    module.register_forward_pre_hook(lambda _, arguments, options: calls.append(arguments), with_kwargs=True)
    return module


# -------------------------------------------------------------------------------------------------- targets
def test_one_pass_of_a_teacher_serves_all_plans_and_modalities(toys):
    both = {"toy": {"target": {"type": "average"}}, "other": {"type": "toy", "target": {"type": "average"}}}
    net = build_model(
        config.load({**BASE, "modalities": both}, {"masking": {"type": "multi_mask", "masks_per_sample": 3}})
    )
    teacher = net.targets["toy"]
    assert net.targets["other"] is teacher and teacher.names == ["toy", "other"]
    out = net(pictures(("toy", "other")), rng=rng())
    assert teacher.calls == 1 and out.pred["toy"].shape == (9, 12, 16) == out.target["other"].shape
    plans = {name: replace(plan, rows=torch.arange(3).repeat(3)) for name, plan in out.plans.items()}
    again = net(pictures(("toy", "other")), plans=plans)
    torch.testing.assert_close(again.total, out.total, rtol=0, atol=0)


def test_a_teacher_embeds_with_its_own_weights(toys):
    net = model(modalities__toy__target={"type": "average"})
    before = net(pictures(), rng=rng()).target["toy"]
    with torch.no_grad():
        for parameter in (*net.encoder.parameters(), *net.modalities.parameters()):
            parameter.add_(1.0)
    torch.testing.assert_close(net(pictures(), rng=rng()).target["toy"], before, rtol=0, atol=0)


def test_targets_of_several_levels_and_codes(toys):
    assert model(modalities__toy__target="levels")(pictures(), rng=rng()).pred["toy"].shape == (3, 8, 32)
    out = model(modalities__toy__target="bright")(pictures(), rng=rng())
    assert out.pred["toy"].shape == (3, 8, 2) and 0.3 < float(out.total.detach()) < 1.5


AVERAGE = {"modalities__toy__target": {"type": "average", "decay": 0.9}, "train__save_every": 3, "train__epochs": 4}


def test_the_state_of_a_teacher_survives_a_kill(toys):
    whole = toys.train(toys.recipe(toys.out / "whole", **AVERAGE))
    broken = toys.recipe(toys.out / "broken", **AVERAGE, data__source__delay=0.002)
    other = toys.start(broken)
    other.until("step 8 ")
    other.kill()
    last = toys.start(broken)
    assert last.wait() == 0, last.said()
    assert toys.metrics(whole) == toys.metrics(toys.out / "broken")
    ours, theirs = toys.weights(whole), toys.weights(toys.out / "broken")
    assert any(key.startswith("targets.toy.encoder.") for key in ours)
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_two_processes_with_a_teacher_equal_one(toys):
    one = toys.train(toys.recipe(toys.out / "one", **AVERAGE))
    pair = toys.start(toys.recipe(toys.out / "two", **AVERAGE), 2)
    assert [rank.wait() for rank in pair] == [0, 0], pair[0].said()
    equal_within_rounding(toys, one, toys.out / "two")


def equal_within_rounding(toys, one, other):
    """Losses, and weights but for biases of keys, whose gradient is nothing but rounding errors."""
    for a, b in zip(toys.metrics(one), toys.metrics(other), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    theirs = toys.weights(other)
    for key, value in toys.weights(one).items():
        if not key.endswith("qkv.bias"):
            torch.testing.assert_close(theirs[key], value, rtol=1e-3, atol=1e-4)


def test_a_skipped_step_moves_no_average(toys):
    state = train_state(toys, modalities__toy__target={"type": "average"})
    before = {key: value.clone() for key, value in state.model.targets.state_dict().items()}
    assert step(state, nan=True).bad
    assert all(torch.equal(value, before[key]) for key, value in state.model.targets.state_dict().items())
    assert not step(state).bad
    assert not all(torch.equal(value, before[key]) for key, value in state.model.targets.state_dict().items())


def train_state(toys, **overrides):
    from maemm.train.distributed import DistContext
    from maemm.train.setup import make_train_state

    return make_train_state(toys.recipe(**overrides), 8, 1, DistContext())


def step(state, number=0, nan=False, names=("toy",)):
    return take_step(state, planned_step(state, number, nan, names), baseline=True)


def planned_step(state, number=0, nan=False, names=("toy",)):
    from maemm.data.loader import Batch

    raw = {name: {"x": pictures((name,), batch=16)[name].x} for name in names}
    if nan:
        raw["toy"]["x"][0] = float("nan")
    batch = Batch(raw, [str(i) for i in range(16)], None, list(range(16)), [], number, 0)
    set_lr(state.optimizer, 1e-2)
    return plan_micro_batches(state, number, [batch])


# ---------------------------------------------------------------------------------------- several predicted sets
def test_four_predicted_sets_cost_one_pass_and_change_nothing(toys):
    net = model(modalities__toy__masking="four")
    inputs = net.plan(pictures(), rng())
    calls = []
    counted(net.encoder, calls)
    out = net(inputs)
    assert len(calls) == 1 and calls[0][0]["toy"].plan.visible.shape == (3, 8)
    alone = {name: replace(x, plan=replace(x.plan, passes=None, first=None)) for name, x in inputs.items()}
    four = net(alone)
    assert calls[1][0]["toy"].plan.visible.shape == (12, 8)
    assert float((out.pred["toy"] - four.pred["toy"]).detach().abs().max()) == 0.0
    assert out.encoded["toy"].shape == (12, 8, 16)


def test_an_encoder_that_reads_predictions_refuses_shared_passes(toys):
    with pytest.raises(MaemmError, match="needs its own pass"):
        model(modalities__toy__masking="four", encoder__hidden="replace")(pictures(), rng=rng())


def test_plans_of_different_size_count_alike(toys):
    state = train_state(toys, modalities__toy__masking={"type": "random"}, masking="sizes")
    micro_batches = planned_step(state)
    assert [x["toy"].plan.predict.shape[1] for x in micro_batches.inputs] == [4, 12]
    small, large = (float(state.model(inputs).total.detach()) for inputs in micro_batches.inputs)
    result = take_step(state, micro_batches)
    assert result.terms.keys() == {"reconstruct.toy"}
    assert float(result.total) == pytest.approx((small + large) / 2, rel=1e-5)
    assert float(result.total) != pytest.approx((4 * small + 12 * large) / 16, rel=1e-5)


def test_sets_of_plans_add_up_over_micro_batches(toys):
    options = {"masking": "sizes", "modalities__toy__masking": "random", "train__epochs": 2}
    one = toys.train(toys.recipe(toys.out / "one", **options))
    other = toys.train(toys.recipe(toys.out / "other", **options, train__micro_batch=4))
    for a, b in zip(toys.metrics(one), toys.metrics(other), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    with pytest.raises(MaemmError, match="makes 2 plans of each sample"):
        model(masking="sizes")(pictures(), rng=rng())


# ----------------------------------------------------------------------------------------------------- budgets
def three(**overrides):
    names = {name: {"type": "toy", "size": 28, "patch": 2} for name in ("a", "b", "c")}
    base = {**BASE, "modalities": names, "encoder": {"type": "vit", "dim": 64, "depth": 4, "heads": 4}}
    torch.manual_seed(0)
    return build_model(config.load(base, {key.replace("__", "."): value for key, value in overrides.items()}))


def test_a_joint_budget_costs_what_its_tokens_cost(toys):
    net = three(masking={"type": "budget", "budget": 98}).eval()
    batch = pictures("abc", batch=2, size=28)
    inputs = net.plan(batch, rng(2))
    valid = torch.cat([x.plan.visible_valid for x in inputs.values()], 1)
    assert valid.sum(1).tolist() == [98, 98]
    lengths = []
    for block in net.encoder.blocks:
        block.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].shape[1]))
    with FlopCounterMode(display=False) as joint:
        out = net.encoder(inputs, net.modalities)
    assert set(lengths) == {99}  # and the class token
    single = net.plan({"a": batch["a"]}, rng(2))["a"]
    index = single.tokens.all_indices()[:, :98]
    alone = ModalityInput(
        single.tokens, replace(single.plan, visible=index, visible_valid=None, budget=None), batch["a"]
    )
    with FlopCounterMode(display=False) as plain:
        net.encoder({"a": alone}, net.modalities)
    assert joint.get_total_flops() <= 1.05 * plain.get_total_flops()
    # Each row alone, with just its own tokens, gives the same latents.
    for row in range(2):
        own = {}
        for name, x in inputs.items():
            kept = x.plan.visible[row, x.plan.visible_valid[row]][None]
            plan = replace(x.plan, visible=kept, visible_valid=None, budget=None, rows=torch.tensor([row]),
                           predict=kept[:, :0], predict_valid=None, counted=kept[:, :0].float())  # fmt: skip
            own[name] = ModalityInput(x.tokens, plan, x.preprocessed)
        exact = net.encoder(own, net.modalities)
        for name, x in inputs.items():
            ours = out.tokens[name][row, x.plan.visible_valid[row]]
            torch.testing.assert_close(ours, exact.tokens[name][0], rtol=1e-4, atol=1e-5)


def test_a_budget_trains(toys):
    names = {"toy": {"type": "toy"}, "other": {"type": "toy"}}
    torch.manual_seed(0)
    net = build_model(config.load({**BASE, "modalities": names}, {"masking": {"type": "budget", "budget": 8}}))
    net(pictures(("toy", "other")), rng=rng()).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)


# ------------------------------------------------------------------- modalities that are only encoded or decoded
def test_modalities_that_are_only_encoded_or_only_decoded(toys):
    names = {
        "toy": {"type": "toy", "masking": {"type": "random", "ratio": 0.0}},
        "other": {"type": "toy", "masking": {"type": "random", "ratio": 1.0}},
    }
    net = build_model(config.load({**BASE, "modalities": names}, {}))
    out = net(pictures(("toy", "other")), rng=rng())
    assert out.pred["toy"].shape == (3, 0, 4) and out.pred["other"].shape == (3, 16, 4)
    assert out.encoded["other"].shape == (3, 0, 16) and float(out.terms["reconstruct.toy"].detach()) == 0.0
    out.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    with pytest.raises(MaemmError, match="no token of any modality is visible"):
        model(modalities__toy__masking={"type": "random", "ratio": 1.0})


def test_training_on_nothing_is_refused(toys):
    with pytest.raises(MaemmError, match="no token is hidden"):
        toys.train(toys.recipe(toys.out / "nothing", modalities__toy__masking={"type": "random", "ratio": 0.0}))


def test_a_row_with_nothing_to_predict_counts_nothing(toys):
    net = model(modalities__toy__masking={"type": "random", "ratio": 0.0})
    out = net(pictures(), rng=rng())
    out.total.backward()
    assert float(out.total.detach()) == 0.0
    assert all(p.grad is None or not p.grad.isnan().any() for p in net.parameters())


# -------------------------------------------------------------------------------------------------- co-registered
def test_aligned_modalities_get_one_crop_and_one_flip(toys):
    names = {"toy": {"type": "toy"}, "other": {"type": "toy", "align": "toy"}}
    net = build_model(config.load({**BASE, "modalities": names}, {}))
    assert net.modalities["other"].aligned_with == "toy"
    x = pictures(batch=16)["toy"].x
    made = net.preprocess({name: {"x": x} for name in names}, rng(16))
    assert torch.equal(made["toy"].x, made["other"].x) and not torch.equal(made["toy"].x, x)
    apart = build_model(config.load({**BASE, "modalities": {"toy": {"type": "toy"}, "other": {"type": "toy"}}}, {}))
    made = apart.preprocess({name: {"x": x} for name in names}, rng(16))
    assert not torch.equal(made["toy"].x, made["other"].x)
    with pytest.raises(MaemmError, match="modalities.other.align is 'tov'.*did you mean 'toy'"):
        config.load({**BASE, "modalities": {"toy": {"type": "toy"}, "other": {"type": "toy", "align": "tov"}}}, {})


# ------------------------------------------------------------------------------------------ hidden tokens that stay
def test_hidden_tokens_may_stay_in_the_sequence(toys):
    net = model(encoder__hidden="replace", decoder={"type": "linear"})
    inputs = net.plan(pictures(), rng())
    out = net(inputs)
    assert out.pred["toy"].shape == (3, 8, 4) and out.encoded["toy"].shape == (3, 8, 16)
    values = inputs["toy"].tokens.values.clone()
    values[torch.arange(3)[:, None], inputs["toy"].plan.predict] = 7.0  # what is hidden
    other = {"toy": replace(inputs["toy"], tokens=replace(inputs["toy"].tokens, values=values))}
    assert torch.equal(net(other).pred["toy"], out.pred["toy"])
    out.total.backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    assert net.encoder.layer_of("hidden_token") == 0  # layer decay: an input, like prefix tokens
    with pytest.raises(MaemmError, match="set encoder.hidden=replace"):
        model(decoder={"type": "linear"})(pictures(), rng=rng())


# ------------------------------------------------------------------------------------------------ what is missing
def test_missing_values_are_in_no_loss_statistic_or_picture(toys):
    net = model(modalities__toy__gaps=True)
    torch.manual_seed(2)
    x = torch.randn(4, 1, 8, 8)
    known = torch.rand(4, 1, 8, 8) > 0.2
    known[0, 0, :2, :2] = False  # a whole token
    outs = []
    for filler in (0.0, 1e6, float("nan")):
        batch = {"toy": Preprocessed(torch.where(known, x, filler), known)}
        out = net(net.plan(batch, rng(4)))
        outs.append(out)
        net.zero_grad()
        out.total.backward()
        assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
        tokens = out.inputs["toy"].tokens
        picture = net.modalities["toy"].untokenize(tokens.values, tokens)
        assert torch.equal(picture.isnan(), ~known)
    assert len({float(out.total.detach()) for out in outs}) == 1
    assert torch.equal(outs[0].target["toy"], outs[2].target["toy"])
    baselines = {float(net.modalities["toy"].baseline(
        out.target["toy"], out.plans["toy"].counted, out.inputs["toy"].tokens.gather_known(out.plans["toy"].predict)
    ).sum()) for out in outs}  # fmt: skip
    assert len(baselines) == 1
    tokens = outs[0].inputs["toy"].tokens
    assert not tokens.valid[0, 0] and tokens.valid[1:].all()


# ------------------------------------------------------------------------------------------------------- guides
@pytest.mark.parametrize("kind", ["attention", "features"])
def test_the_encoder_guides_a_masking(toys, kind):
    net = model(masking={"type": "guided", "guide": kind})
    net.plan(pictures(), rng())
    told = net.masking.seen["toy"]
    assert told.shape == ((3, 16) if kind == "attention" else (3, 16, 16)) and not told.requires_grad
    if kind == "attention":  # weights over all tokens and the class token
        assert (told.sum(1) < 1).all() and (told > 0).all()


def test_guides_come_in_the_order_of_tokens(toys):
    net = model(masking={"type": "guided", "guide": "features"}, encoder__drop_path=0.5).train()
    net.plan(pictures(), rng())
    expected = net.eval().embed(pictures(), tokens=True)["toy"]
    torch.testing.assert_close(net.masking.seen["toy"], expected)
    assert net.encoder.training is False


# --------------------------------------------------------------------------------------------------- side inputs
def test_workers_make_what_an_objective_asks_for(toys):
    options = {"objectives": {"reconstruct": {}, "columns": {}}, "train__epochs": 2, "data__workers": 1}
    folder = toys.train(toys.recipe(**options))
    rows = toys.metrics(folder)
    assert all("columns" in row["terms"] for row in rows)
    with pytest.raises(MaemmError, match="makes no side input"):
        net = model(objectives={"reconstruct": {}, "columns": {}})
        super(type(net.modalities["toy"]), net.modalities["toy"]).side_input("colour", {}, None)


# -------------------------------------------------------------------------------------------------------- phases
def test_a_phase_trains_its_own_parameters(toys):
    state = train_state(toys, objectives={"adversary": {}})
    critic = {id(p) for p in state.model.objectives["adversary"].critic.parameters()}
    assert not critic & {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    before = {name: p.clone() for name, p in state.model.named_parameters()}
    assert step(state, nan=True).bad
    assert all(torch.equal(p, before[name]) for name, p in state.model.named_parameters())
    assert not step(state).bad
    moved = {name for name, p in state.model.named_parameters() if not torch.equal(p, before[name])}
    assert any("critic" in name for name in moved) and any("encoder" in name for name in moved)


def test_phases_resume_exactly_and_add_up_over_processes(toys):
    options = {"objectives": {"adversary": {}}, "train__epochs": 4, "train__save_every": 3}
    whole = toys.train(toys.recipe(toys.out / "whole", **options))
    broken = toys.recipe(toys.out / "broken", **options, data__source__delay=0.002)
    other = toys.start(broken)
    other.until("step 8 ")
    other.kill()
    assert toys.start(broken).wait() == 0
    ours, theirs = toys.weights(whole), toys.weights(toys.out / "broken")
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    pair = toys.start(toys.recipe(toys.out / "two", **options), 2)
    assert [rank.wait() for rank in pair] == [0, 0], pair[0].said()
    equal_within_rounding(toys, whole, toys.out / "two")


# ----------------------------------------------------------------------------------------------------- baselines
def test_the_baseline_is_that_of_the_loss(toys):
    state = train_state(toys, modalities__toy__target="bright")
    baseline = float(step(state).baselines["toy"])
    assert 0.5 < baseline <= 0.6932  # entropy of the classes, at most log 2
    assert "toy" not in step(train_state(toys, modalities__toy__target="average")).baselines  # it does not say
