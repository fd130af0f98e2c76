"""A first step that is skipped leaves every optimiser as if it had not been, whatever memory torch hands out."""

import copy

import pytest
import torch
from torch import nn

from maemm import registry
from maemm.train.optim import make_optimizer, make_phase_optimizer, set_lr, step_unless

CASES = {
    **{name: {"type": name} for name in registry.names("optimizers")},
    "sgd, no momentum": {"type": "sgd", "momentum": 0.0},
    "sgd, decay": {"type": "sgd", "weight_decay": 0.1},
    "lars, decay": {"type": "lars", "weight_decay": 0.1},
    "adam, decay": {"type": "adam", "weight_decay": 0.1},
}


@pytest.fixture(autouse=True)
def memory_is_never_clean(monkeypatch):
    """What is not initialised is NaN, and not by chance 0."""
    empty_like, empty = torch.empty_like, torch.empty
    spoil = lambda x: x.fill_(float("nan")) if x.is_floating_point() else x  # noqa: E731
    monkeypatch.setattr(torch, "empty_like", lambda *a, **o: spoil(empty_like(*a, **o)))
    monkeypatch.setattr(torch, "empty", lambda *a, **o: spoil(empty(*a, **o)))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))


def gradients(net, seed, of=None):
    torch.manual_seed(seed)
    for number, parameter in enumerate(net.parameters()):
        parameter.grad = torch.randn_like(parameter) if of is None or number in of else None


def steps(net, optimizer, plan):
    """``plan``: (seed of the gradient, whether the step is bad, numbers of the parameters with a gradient) each."""
    for seed, bad, of in plan:
        gradients(net, seed, of)
        if bad:
            for parameter in net.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(float("nan"))
        set_lr(optimizer, 0.1)
        step_unless(optimizer, torch.tensor(bad))
        optimizer.zero_grad(set_to_none=True)
    return [parameter.detach().clone() for parameter in net.parameters()]


def optimizer_of(net, case):
    return make_optimizer(net, {"optimizer": dict(CASES[case])})


@pytest.mark.parametrize("skipped", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_skipped_first_steps_change_nothing(case, skipped):
    good = [(seed, False, None) for seed in (1, 2, 3)]
    net = network()
    expected = steps(net, optimizer_of(net, case), good)
    net = network()
    start = [parameter.detach().clone() for parameter in net.parameters()]
    optimizer = optimizer_of(net, case)
    after = steps(net, optimizer, [(9, True, None)] * skipped)
    assert all(torch.equal(a, b) for a, b in zip(after, start, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(steps(net, optimizer, good), expected, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_a_parameter_whose_first_gradient_comes_late(case):
    """As with data sets that take turns; its first step may be a skipped one too."""
    plan = [(1, False, {0, 1}), (2, False, None), (3, False, None)]
    net = network()
    expected = steps(net, optimizer_of(net, case), plan)
    net = network()
    with_skipped = [plan[0], (9, True, None), (9, True, {2}), *plan[1:]]
    assert all(
        torch.equal(a, b) for a, b in zip(steps(net, optimizer_of(net, case), with_skipped), expected, strict=True)
    )


@pytest.mark.parametrize("case", CASES)
def test_the_first_good_step_is_that_of_torch(case):
    """The same bits as the optimiser by itself, without anything around it."""
    net = network()
    alone = copy.deepcopy(net)
    ours, theirs = optimizer_of(net, case), optimizer_of(alone, case)
    for seed in (1, 2):
        for model, optimizer in ((net, ours), (alone, theirs)):
            gradients(model, seed)
            set_lr(optimizer, 0.1)
        step_unless(ours, torch.tensor(False))
        theirs.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), alone.parameters(), strict=True))


def test_a_plugins_sgd_with_dampening_is_right_too():
    """Its first step is not dampened, so that momentum which is there from the start would change it."""

    def plain(net):
        return torch.optim.SGD(
            [{"params": list(net.parameters()), "lr_scale": 1.0}], lr=0.1, momentum=0.9, dampening=0.5, fused=True
        )

    good = [(seed, False, None) for seed in (1, 2)]
    net = network()
    expected = []
    optimizer = plain(net)
    for seed, _, _ in good:
        gradients(net, seed)
        optimizer.step()
        expected = [parameter.detach().clone() for parameter in net.parameters()]
    net = network()
    after = steps(net, plain(net), [(9, True, None), *good])
    assert all(torch.equal(a, b) for a, b in zip(after, expected, strict=True))


@pytest.mark.parametrize("name", registry.names("optimizers"))
def test_phases_use_the_same(name):
    from maemm.contract import Phase

    results = []
    for bad in (False, True):
        net = network()
        optimizer = make_phase_optimizer(Phase("p", list(net.parameters()), {"type": name}), "here")
        results.append(steps(net, optimizer, [(9, True, None)] * bad + [(1, False, None), (2, False, None)]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", registry.names("optimizers"))
def test_a_run_whose_first_step_is_not_finite(toys, name):
    """The samples of step 1 are not finite; all later steps are, and so is every weight."""
    from maemm.data.order import permutation

    nan = [int(index) for index in permutation(64, 0, 0)[:16]]
    toys.train(
        train__epochs=1, train__warmup_epochs=0, train__optimizer={"type": name}, train__lr=1e-3, data__source__nan=nan
    )
    assert sum("skipped" in line for line in toys.lines) == 1
    assert all(bool(value.isfinite().all()) for value in toys.weights().values())
    assert all(row["loss"] < 10 for row in toys.metrics()[1:])
