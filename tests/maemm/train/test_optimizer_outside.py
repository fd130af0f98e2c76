"""Optimisers from outside: Lion of docs/training.md, and one of a library that knows nothing of skipped steps."""

import re
import shutil
from pathlib import Path

import pytest
import timm.optim
import torch
from torch import nn

from maemm.train.optim import make_optimizer, set_lr, step_unless

PAGE = Path(__file__).parents[3] / "docs/training.md"
LIBRARY = '''
"""Lion of timm, which does not know of steps that must not be done."""
import timm.optim
from maemm.contract.options import NonNegative, Rate

def lion(groups, *, betas: tuple[Rate, Rate] = (0.9, 0.99), weight_decay: NonNegative = 0.5):
    return timm.optim.Lion(groups, lr=0.0, betas=betas, foreach=False)
'''
MATRICES = '''
"""Wants to know of hidden matrices."""
import torch

def lion(groups, matrices, *, weight_decay: float = 0.0):
    for group in groups:
        group["hidden"] = [name for name in group["names"] if name in matrices]
    return torch.optim.SGD(groups, lr=0.0)
'''


def of_docs():
    """{file: text} of the plugin in the docs."""
    blocks = re.findall(r"^```python\n# file: lion/(\S+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert [name for name, _ in blocks] == ["__init__.py", "optimizer.py"]
    return dict(blocks)


@pytest.fixture(params=["docs", "library"])
def lion(request, toys, make_plugin):
    """The plugin is found, beside the toys, as ``--plugin lion`` finds it."""
    make_plugin("lion", **of_docs() | ({} if request.param == "docs" else {"optimizer.py": LIBRARY}))


def trained(make, plan):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))
    optimizer = make(net)
    for seed, bad in plan:
        torch.manual_seed(seed)
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter) * (float("nan") if bad else 1.0)
        set_lr(optimizer, 0.01)
        step_unless(optimizer, torch.tensor(bad))
    return [parameter.detach().clone() for parameter in net.parameters()], optimizer


def from_recipe(net):
    return make_optimizer(net, {"optimizer": {"type": "lion", "weight_decay": 0.1}})


def test_it_is_that_of_timm(lion):
    plan = [(seed, False) for seed in range(4)]

    def of_timm(net):
        groups = [
            {"params": [p for p in net.parameters() if (p.ndim > 1) == many], "weight_decay": decay, "lr_scale": 1.0}
            for many, decay in ((True, 0.1), (False, 0.0))
        ]
        return timm.optim.Lion(groups, lr=0.0, betas=(0.9, 0.99), foreach=False)

    for ours, other in zip(trained(from_recipe, plan)[0], trained(of_timm, plan)[0], strict=True):
        torch.testing.assert_close(ours, other, atol=1e-6, rtol=0)


def test_skipped_steps_leave_no_trace(lion):
    good, optimizer = trained(from_recipe, [(1, False), (2, False)])
    skipped, other = trained(from_recipe, [(9, True), (1, False), (8, True), (9, True), (2, False)])
    assert all(torch.equal(a, b) for a, b in zip(good, skipped, strict=True))
    assert str(optimizer.state_dict()) == str(other.state_dict())


def test_a_run_skips_and_resumes_bit_for_bit(lion, toys):
    options = {
        "train__epochs": 4, "train__optimizer": {"type": "lion", "weight_decay": 0.1}, "train__lr": 1e-4,
        "train__final_weight_decay": 0.3, "train__layer_decay": 0.9, "data__source__nan": [5], "train__keep": 9,
        "train__save_every": 7, "train__spikes": {"window": 8}, "train__warmup_epochs": 0,
    }  # fmt: skip
    whole = toys.train(toys.recipe(toys.out / "whole", **options))
    assert sum("skipped: loss not finite" in line for line in toys.lines) == 4
    shutil.copytree(whole, toys.out / "parts")
    for path in (toys.out / "parts/checkpoints").glob("step-*"):
        if path.name != "step-000007":
            shutil.rmtree(path)
    parts = toys.train(toys.recipe(toys.out / "parts", **options))
    assert any("resuming from step 7" in line for line in toys.lines)
    assert toys.metrics(whole) == toys.metrics(parts)
    first, second = toys.weights(whole), toys.weights(parts)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_that_of_the_docs_does_not_wait(toys, make_plugin):
    from tests.pretended_gpu.device import gpu

    make_plugin("lion", **of_docs())
    with gpu() as seen:
        net = nn.Linear(4, 8).to("cuda")
        optimizer, bad = from_recipe(net), torch.tensor(False).to("cuda")
        for _ in range(2):
            for parameter in net.parameters():
                parameter.grad = torch.ones_like(parameter)
            set_lr(optimizer, 0.01)
            seen.clear()
            step_unless(optimizer, bad)
        assert [*map(str, seen.waits)] == [] and [*map(str, seen.blocking_copies)] == []


def test_one_may_ask_for_hidden_matrices(toys, make_plugin):
    from maemm.model.build import build_model
    from maemm.model.matrices import hidden_matrices

    make_plugin("lion", **of_docs() | {"optimizer.py": MATRICES})
    model = build_model(toys.recipe())
    optimizer = make_optimizer(model, {"optimizer": "lion"})
    asked = {name for group in optimizer.param_groups for name in group["hidden"]}
    assert asked == hidden_matrices(model).keys() != set()
