"""Linear layers by oneDNN on a CPU: the same numbers as nn.Linear but for their last bits, and nn.Linear elsewhere."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from maemm.model import products
from maemm.model.products import Linear


def pair(width=96, out=200, bias=True):
    torch.manual_seed(0)
    own = Linear(width, out, bias=bias)
    plain = nn.Linear(width, out, bias=bias)
    plain.load_state_dict(own.state_dict())
    return own, plain


@pytest.fixture
def calls(monkeypatch):
    """The products that oneDNN computes."""
    made, product = [], products._product
    monkeypatch.setattr(products, "_product", lambda *args: made.append(args[0].shape) or product(*args))
    return made


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64, 96), (4, 32, 96), (2, 4, 8, 2, 96)])
def test_values_and_gradients_are_those_of_a_linear_layer(shape, bias, calls):
    own, plain = pair(bias=bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    gradients = []
    for layer in (own, plain):
        inputs = x.clone().requires_grad_()
        y = layer(inputs)
        direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
        (y * direction).sum().backward()
        gradients.append([y, inputs.grad, *(parameter.grad for parameter in layer.parameters())])
    assert len(calls) == 3
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * float(theirs.detach().abs().max()))


def test_strided_inputs_and_gradients(calls):
    own, plain = pair()
    x = torch.randn(2, 96, 64).transpose(1, 2)
    turned = [layer(x).transpose(1, 2).contiguous() for layer in (own, plain)]
    torch.testing.assert_close(*turned, rtol=0, atol=1e-5)
    weights = []
    for layer in (own, plain):
        layer.zero_grad()
        (layer(x).transpose(1, 2)[:, ::2] ** 2).sum().backward()
        weights.append(layer.weight.grad)
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-3)
    assert calls


def test_the_same_bits_each_time():
    own, _ = pair()
    x = torch.randn(64, 96)
    assert torch.equal(own(x), own(x)) and torch.equal(own(x), copy.deepcopy(own)(x))


def test_what_is_not_asked_for_is_not_computed(calls):
    own, _ = pair()
    own.weight.requires_grad_(False)
    own(torch.randn(64, 96)).sum().backward()  # the bias alone
    assert len(calls) == 1
    with torch.no_grad():
        assert not own(torch.randn(64, 96)).requires_grad


@pytest.mark.parametrize("case", ["small", "double", "bf16", "autocast", "empty", "compiled", "off"])
def test_everything_else_is_a_plain_linear_layer(case, calls, monkeypatch):
    own, plain = pair()
    x = torch.randn(4 if case == "small" else 0 if case == "empty" else 64, 96)
    if case in ("double", "bf16"):
        kind = torch.float64 if case == "double" else torch.bfloat16
        own, plain, x = own.to(kind), plain.to(kind), x.to(kind)
    if case == "compiled":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    if case == "off":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert torch.equal(own(x), plain(x))
    assert not calls


def test_operations_are_counted():
    """As training counts them: of fake tensors, in which no product is hidden."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    own, _ = pair()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, FlopCounterMode(display=False) as counter:
        own(mode.from_tensor(torch.randn(64, 96)))
    assert counter.get_total_flops() == 2 * 64 * 96 * 200


def test_a_run_may_use_it_everywhere(calls, monkeypatch):
    """train.cpu_products=onednn: every linear layer, the same losses but for the last bits, the same weights' names."""
    from maemm import config
    from maemm.contract.rng import Rng
    from maemm.train.distributed import DistContext
    from maemm.train.setup import make_train_state

    monkeypatch.setattr(products, "_FEWEST", 1)
    losses, states = [], []
    for how in ("blas", "onednn"):
        recipe = config.load("image/mae_tiny_cpu", {"train.cpu_products": how, "encoder.depth": 2})
        state = make_train_state(recipe, 10, 1, DistContext())
        batch = {"image": torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))}
        out = state.model(batch, rng=Rng((0,), range(4), 4))
        out.total.backward()
        losses.append(out.total.item())
        states.append(state.model)
        linear = [module for module in state.model.modules() if isinstance(module, nn.Linear)]
        assert all(type(module) is (Linear if how == "onednn" else nn.Linear) for module in linear)
        # Two products backward and one forward, of some layers more than once; pixels need no gradient.
        assert not calls if how == "blas" else len(calls) >= 3 * len(linear) - 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert states[0].state_dict().keys() == states[1].state_dict().keys()
    for (name, ours), theirs in zip(states[1].named_parameters(), states[0].parameters(), strict=True):
        if ours.grad is not None and ".qkv.bias" not in name:  # those of keys are rounding errors alone
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-5 * float(theirs.grad.abs().max()))
