"""Full single precision, where a number must not be rounded to that of a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor


@contextmanager
def full_float32(device: torch.device | str) -> Iterator[None]:
    """Within the block float32 is float32: no autocast, and nothing like TF32 in matrix products and convolutions.

    TF32 keeps 10 bits of a number, bf16 7; positions, resampled pixels, spectra and similarities need the 23 of
    float32. ``Model.preprocess`` and ``Model.plan`` run in such a block, so that augmentations, front ends, maskings
    and targets that are computed ahead need none of their own. It is for what is computed in it, not for the backward
    pass, and not in a compiled graph: see :func:`exact_matmul` for products that a loss depends on.
    """
    kind = torch.device(device).type
    off = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
    with off:
        if torch.compiler.is_compiling():
            yield
            return
        before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
            torch.backends.cudnn.allow_tf32 = convolutions


def exact_matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of matrices (N, D) and (D, M) in float32 without TF32, and so its gradient, compiled or not.

    For scores that a loss compares, such as those of a contrastive one.
    """
    a, b = a.float(), b.float()
    if a.device.type == "cuda":
        product: Tensor = _exact_matmul(a, b)
        return product
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


@torch.library.custom_op("maemm::exact_matmul", mutates_args=())
def _exact_matmul(a: Tensor, b: Tensor) -> Tensor:
    """One operation, which the compiler leaves as it is."""
    with full_float32(a.device):
        return a @ b


@_exact_matmul.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def _keep(ctx: object, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)  # type: ignore[attr-defined]


def _gradient(ctx: object, gradient: Tensor) -> tuple[Tensor, Tensor]:
    a, b = ctx.saved_tensors  # type: ignore[attr-defined]
    return _exact_matmul(gradient, b.T), _exact_matmul(a.T, gradient)


_exact_matmul.register_autograd(_gradient, setup_context=_keep)
