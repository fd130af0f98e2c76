"""The discriminator that shares the encoder: what it reads, what it is asked, whom its gradients reach."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import logsigmoid

from maemm import config
from maemm.contract import MaemmError, Phase, Plan, Preprocessed, Rng, Term
from maemm.model.build import build_model
from maemm.model.objectives.adversarial import real_and_made
from maemm.train.distributed import DistContext
from maemm.train.optim import make_phase_optimizer, set_lr
from maemm.train.setup import make_train_state
from maemm.train.state import MicroBatches, PhaseState
from maemm.train.step import counts_of_sets, take_step

ROWS = 4
BASE = {
    "modalities": {"toy": {"normalize": "patch", "masking": {"type": "random", "ratio": 0.5}}},
    "encoder": {"type": "vit", "dim": 16, "depth": 2, "heads": 2},
    "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
    "objectives": {"reconstruct": {}, "adversarial": {"weight": 0.5}},
    "data": {"workers": 0, "source": {"type": "toy"}},
    "train": {"epochs": 2, "batch": ROWS, "lr": 1e-2, "warmup_epochs": 0},
    "out": "unused",
}


def recipe(**overrides):
    return config.load(BASE, {key.replace("__", "."): value for key, value in overrides.items()}, training=True)


def model(**overrides):
    torch.manual_seed(0)
    return build_model(recipe(**overrides)).train()


def planned(net, step=0):
    torch.manual_seed(1 + step)
    batch = {"toy": Preprocessed(torch.randn(ROWS, 1, 8, 8))}
    return net.plan(batch, Rng((0, step), range(ROWS), ROWS))


def detached(out):
    return replace(out, pred={name: x.detach() for name, x in out.pred.items()}, parts={})


def state(**overrides):
    train_state = make_train_state(recipe(**overrides), 4, 1, DistContext())
    set_lr(train_state.optimizer, 1e-2)
    return train_state


def step(train_state, number=0, nan=False):
    inputs = planned(train_state.model, number)
    if nan:
        tokens = inputs["toy"].tokens
        inputs["toy"] = replace(inputs["toy"], tokens=replace(tokens, values=tokens.values * torch.nan))
    counts = counts_of_sets(train_state.model, [inputs])
    return take_step(train_state, MicroBatches(number, [inputs], counts, [list("abcd")], [None]))


def named(net, parameters):
    ids = {id(parameter) for parameter in parameters}
    return {name for name, parameter in net.named_parameters() if id(parameter) in ids}


# ------------------------------------------------------------------------------------------------ what it is asked
def test_labels_are_1_exactly_on_visible_tokens(toys):
    net = model()
    inputs = planned(net)
    out = net(inputs)
    verdict = net.objectives["adversarial"].verdicts(out, out.pred, net)["toy"]
    expected = torch.zeros(ROWS, 16)
    for row, visible in zip(expected, inputs["toy"].plan.visible, strict=True):
        row[visible] = 1
    assert torch.equal(verdict.real, expected) and torch.equal(verdict.made, 1 - expected)
    assert torch.equal(verdict.asked, torch.ones(ROWS, 16))


def test_labels_of_ragged_and_overlapping_plans():
    visible, predict = torch.tensor([[0, 2, 5], [1, 3, 3]]), torch.tensor([[1, 2, 4], [0, 4, 4]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    plan = Plan(visible, predict, visible_valid=valid, predict_valid=valid)
    real, made = real_and_made(plan, 7)
    assert real.tolist() == [[1, 0, 1, 0, 0, 1, 0], [0, 1, 0, 1, 0, 0, 0]]
    assert made.tolist() == [[0, 1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 1, 0, 0]]  # 2 is visible too


def test_counts_and_losses_are_of_what_is_asked(toys):
    net = model()
    inputs = planned(net)
    plan = inputs["toy"].plan
    third = replace(plan, predict=plan.predict[:, :3], counted=plan.counted[:, :3])  # five tokens are neither
    inputs["toy"] = replace(inputs["toy"], plan=third)
    out = net(inputs)
    counts = net.counts(inputs)
    assert counts["adversarial.toy"] == ROWS and counts["adversarial_discriminator.toy"] == ROWS * (8 + 3)
    verdict = net.objectives["adversarial"].verdicts(out, out.pred, net)["toy"]
    d = verdict.logits.sigmoid()
    likelihood = torch.where(verdict.real > 0, d, 1 - d).log()
    mean = -sum(likelihood[r, list(range(16))][verdict.asked[r] > 0].sum() for r in range(ROWS)) / (ROWS * 11)
    torch.testing.assert_close(out.terms["adversarial_discriminator.toy"], mean)
    torch.testing.assert_close(net.objectives["adversarial"].phase_loss("discriminator", detached(out), net).mean, mean)


# ------------------------------------------------------------------------------------------------- what it reads
def test_it_reads_visible_tokens_as_they_are_and_predictions_in_their_place(toys):
    net = model()
    inputs = planned(net)
    out = net(inputs)
    seen = []
    net.encoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]["toy"]))
    objective, tokens, plan = net.objectives["adversarial"], inputs["toy"].tokens, inputs["toy"].plan
    objective.verdicts(out, out.target, net)  # perfect predictions, with their normalisation by patch
    torch.testing.assert_close(seen[0].tokens.values, tokens.values)
    objective.verdicts(out, {"toy": torch.zeros_like(out.pred["toy"])}, net)
    values = seen[1].tokens.values
    assert torch.equal(seen[1].tokens.gather(plan.visible), tokens.gather(plan.visible))
    mean = tokens.gather(plan.predict).mean(-1, keepdim=True)  # 0 is the mean of a patch
    torch.testing.assert_close(seen[1].tokens.gather(plan.predict), mean.expand(-1, -1, 4))
    assert values.shape == tokens.values.shape and seen[1].plan.predict.shape == (ROWS, 0)


# ------------------------------------------------------------------------------------------------- who learns
def test_no_gradient_of_the_discriminator_in_the_decoder(toys):
    net = model()
    out = net(planned(net))
    (phase,) = net.objectives["adversarial"].phases(net)
    loss = net.objectives["adversarial"].phase_loss(phase.name, out, net).sum  # also with predictions that have a graph
    names, parameters = zip(*net.named_parameters(), strict=True)
    trained = [p if p.requires_grad else None for p in parameters]
    gradients = torch.autograd.grad(loss, [p for p in trained if p is not None], allow_unused=True)
    reached = {
        n
        for n, g in zip([n for n, p in zip(names, trained, strict=True) if p is not None], gradients, strict=True)
        if g is not None
    }
    assert not [name for name in reached if "decoder" in name]
    assert reached == named(net, [*phase.parameters, *phase.shared])
    assert {"encoder.blocks.0.mlp.fc1.weight", "modalities.toy.embedding.weight"} <= reached


def reference(net, out, generator):
    """The term by its formula, with the discriminator's weights as constants; differentiated as usual."""
    tokens, plan, objective = out.inputs["toy"].tokens, out.inputs["toy"].plan, net.objectives["adversarial"]

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.modalities, self.head = net.encoder, net.modalities, objective.heads["toy"]

        def forward(self, values):
            every = replace(tokens, values=values)
            x = replace(out.inputs["toy"], tokens=every, plan=Plan.all_visible(every))
            return self.head(self.encoder({"toy": x}, self.modalities).tokens["toy"]).squeeze(-1)

    made = net.modalities["toy"].denormalize_target(out.pred["toy"], tokens, plan.predict)
    rows = torch.arange(ROWS)[:, None]
    values = tokens.values.clone().index_put((rows, plan.predict), made)
    whole = Whole()
    constants = {name: parameter.detach() for name, parameter in whole.named_parameters()}
    z = functional_call(whole, constants, (values,))
    real, hidden = z.gather(1, plan.visible), z.gather(1, plan.predict)
    if generator == "minimax":
        return logsigmoid(real).mean() + logsigmoid(-hidden).mean()
    return -logsigmoid(-real).mean() - logsigmoid(hidden).mean()


@pytest.mark.parametrize("generator", ["minimax", "non_saturating"])
def test_the_term_moves_predictions_alone(toys, generator):
    """Value and gradient are those of the formula, through a discriminator whose weights are constants."""
    net = model(objectives__adversarial={"weight": 0.5, "adaptive": False, "generator": generator})
    out = net(planned(net))
    expected = reference(net, out, generator)
    torch.testing.assert_close(out.terms["adversarial.toy"], expected)
    parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
    theirs = torch.autograd.grad(expected, list(parameters.values()), allow_unused=True, retain_graph=True)
    ours = torch.autograd.grad(out.terms["adversarial.toy"], list(parameters.values()), allow_unused=True)
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        assert (a is None) == (b is None) == name.startswith("objectives."), name
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7, msg=name)


def test_adaptive_pulls_as_hard_as_the_reconstruction(toys):
    """By the predictions of each sample, whatever else is in the batch."""
    net = model(objectives__adversarial={"weight": 1.0})
    out = net(planned(net))
    pred = out.pred["toy"]
    (of_term,) = torch.autograd.grad(out.terms["adversarial.toy"], pred, retain_graph=True)
    (of_loss,) = torch.autograd.grad(out.terms["reconstruct.toy"], pred, retain_graph=True)
    torch.testing.assert_close(of_term.flatten(1).norm(dim=1), of_loss.flatten(1).norm(dim=1), rtol=2e-2, atol=0)


def test_two_optimisers_train_the_encoder_one_the_decoder(toys):
    train_state = state()
    (phase,) = train_state.phases
    own, shared = set(map(id, phase.phase.parameters)), set(map(id, phase.phase.shared))
    main = {id(p) for group in train_state.optimizer.param_groups for p in group["params"]}
    assert not own & main and shared < main
    assert {group["weight_decay"] for group in phase.optimizer.param_groups} == {0.0, 0.05}
    before = {name: p.detach().clone() for name, p in train_state.model.named_parameters()}
    set_lr(train_state.optimizer, 0.0)  # both: the phase follows the main one
    step(train_state)
    assert all(torch.equal(p, before[name]) for name, p in train_state.model.named_parameters())
    set_lr(train_state.optimizer, 1e-2)
    step(train_state, 1)
    moved = {name for name, p in train_state.model.named_parameters() if not torch.equal(p, before[name])}
    assert {"objectives.adversarial.heads.toy.weight", "decoder.blocks.0.mlp.fc1.weight", "encoder.norm.weight"} < moved


# ------------------------------------------------------------------------------------------------ bad steps
def test_a_bad_step_moves_neither(toys):
    train_state = state()
    step(train_state)
    before = {name: x.clone() for name, x in train_state.model.state_dict().items()}
    moments = [x.clone() for s in train_state.phases[0].optimizer.state.values() for x in s.values()]
    assert step(train_state, 1, nan=True).bad
    assert all(torch.equal(x, before[name]) for name, x in train_state.model.state_dict().items())
    after = [x for s in train_state.phases[0].optimizer.state.values() for x in s.values()]
    assert moments and all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))


def test_a_phase_that_is_not_finite_skips_alone(toys, monkeypatch):
    train_state = state()
    objective = train_state.model.objectives["adversarial"]
    honest = objective.phase_loss

    def broken(phase, out, net):
        term = honest(phase, out, net)
        return Term(term.sum * math.nan, term.count)

    monkeypatch.setattr(objective, "phase_loss", broken)
    before = {name: x.clone() for name, x in train_state.model.state_dict().items()}
    assert not step(train_state).bad
    after = train_state.model.state_dict()
    assert torch.equal(
        after["objectives.adversarial.heads.toy.weight"], before["objectives.adversarial.heads.toy.weight"]
    )
    assert not torch.equal(after["encoder.norm.bias"], before["encoder.norm.bias"])  # by the main optimiser alone
    plain = state()
    plain.phases = []
    step(plain)
    assert all(torch.equal(x, after[name]) for name, x in plain.model.state_dict().items())
    assert all(not s["step"] for s in train_state.phases[0].optimizer.state.values())
    monkeypatch.setattr(objective, "phase_loss", honest)
    step(train_state, 1)
    assert all(s["step"] == 1 for s in train_state.phases[0].optimizer.state.values())


def test_micro_batches_of_a_phase_add_up(toys):
    """Also where they have unequal counts: gradients of sums, over one count."""
    net = nn.Linear(3, 1, bias=False)
    x = torch.randn(6, 3)

    class Fit:
        def phase_loss(self, phase, rows, model):
            return Term((net(rows) - 1).square().sum(), torch.tensor(float(len(rows))))

    results = []
    for split in ([6], [1, 5], [2, 2, 2]):
        torch.manual_seed(0)
        net.reset_parameters()
        train_state = replace(state(), model=SimpleNamespace(objectives={"fit": Fit()}))
        phase = Phase("p", list(net.parameters()), {"type": "sgd", "momentum": 0.0})
        phase_state = PhaseState("fit", phase, make_phase_optimizer(phase, "here"))
        phase_state.step(train_state, x.split(split), torch.tensor(False), 0)
        results.append(net.weight.detach().clone())
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-6, atol=1e-7)


# ----------------------------------------------------------------------------------------------------- whole runs
OPTIONS = {
    "objectives": {"reconstruct": {}, "adversarial": {"weight": 0.5}},
    "modalities__toy__normalize": "patch", "train__epochs": 4, "train__save_every": 3,
}  # fmt: skip


def test_it_resumes_exactly(toys):
    """Killed in the middle; drop path is on: the discriminator's pass has random numbers of its own."""
    dropping = {**OPTIONS, "encoder__drop_path": 0.2}
    whole = toys.train(toys.recipe(toys.out / "whole", **dropping))
    broken = toys.recipe(toys.out / "broken", **dropping, data__source__delay=0.002)
    other = toys.start(broken)
    other.until("step 8 ")
    other.kill()
    toys.train(broken)
    ours, theirs = toys.weights(whole), toys.weights(toys.out / "broken")
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    assert toys.metrics(whole)[-1] == toys.metrics(toys.out / "broken")[-1]


@pytest.mark.slow
def test_two_processes_equal_one(toys):
    one = toys.train(toys.recipe(toys.out / "one", **OPTIONS))
    pair = toys.start(toys.recipe(toys.out / "two", **OPTIONS), 2)
    assert [rank.wait() for rank in pair] == [0, 0], pair[0].said()
    for a, b in zip(toys.metrics(one), toys.metrics(toys.out / "two"), strict=True):
        for key, value in a["terms"].items():
            assert value == pytest.approx(b["terms"][key], rel=1e-4)
    theirs = toys.weights(toys.out / "two")
    for key, value in toys.weights(one).items():
        if not key.endswith("qkv.bias"):  # the gradient of biases of keys is nothing but rounding errors
            torch.testing.assert_close(theirs[key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_what_it_cannot_read_is_refused(toys):
    with pytest.raises(MaemmError, match=r"no picture can be put together .*modalities.toy.target.*; leave one"):
        model(modalities__toy__target={"type": "frequency", "gamma": 1.0})
    net = model()
    net.modalities["toy"].denormalize_target = lambda pred, tokens, index: pred[..., :2]
    with pytest.raises(MaemmError, match=r"no picture can be put together .*objectives.adversarial, toy.*; leave"):
        net(planned(net))
