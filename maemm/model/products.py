"""Linear layers whose products on a CPU are those of oneDNN."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

_FEWEST = 2**18  # multiplications of a product that is worth the longer way


class Linear(nn.Linear):
    """``nn.Linear`` that computes in float32 on a CPU with oneDNN, which comes with torch, instead of MKL.

    MKL does not use the wide registers of processors that are not Intel's: there oneDNN takes half the time, elsewhere
    as long. Sums are in another order, so that results differ in the last bits. On a GPU, under autocast, in a compiled
    graph and where products are small it is ``nn.Linear``.
    """

    def forward(self, x: Tensor) -> Tensor:
        if _suits(x, self.weight):
            y: Tensor = _Product.apply(x.reshape(-1, self.in_features), self.weight, self.bias)
            return y.view(*x.shape[:-1], self.out_features)
        return super().forward(x)


def use_onednn(model: nn.Module) -> None:
    """Make every ``nn.Linear`` of a model a :class:`Linear`, in place; names and weights stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


class _Product(torch.autograd.Function):
    """x (M, K), weight (N, K), bias (N,) or None -> x @ weight.T + bias, (M, N)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (x, weight), (grad,) = ctx.saved_tensors, grads
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if of_x else None,
            _product(grad.t(), x.t()) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and type(x) is Tensor  # no fake tensor, whose operations are counted
        and x.dtype == weight.dtype == torch.float32
        and math.prod(x.shape) * weight.shape[0] >= _FEWEST
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
