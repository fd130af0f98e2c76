"""In which precision a network computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from maemm.contract import Latents

Tree = TypeVar("Tree")


@contextmanager
def tf32(device: str) -> Iterator[None]:
    """Within the block, matrix products that stay in float32 are in TF32 on CUDA: for a network, forward and backward.

    It stands nowhere else; what must not be rounded is in :mod:`maemm.contract.exact`.
    """
    before = torch.get_float32_matmul_precision()
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def under_autocast(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """``x`` in ``dtype`` where autocast is on; None: as it is."""
    return x if dtype is None or not torch.is_autocast_enabled(x.device.type) else x.to(dtype)


def float32(tree: Tree) -> Tree:
    """Nested dicts and lists of tensors, or latents: those in bf16 in float32, the others as they are."""
    if isinstance(tree, Latents):
        fields = (
            "tokens", "prefix", "streams", "positions", "layers", "prefix_layers", "hidden", "decoded",
            "decoded_visible", "latent_tokens",
        )  # fmt: skip
        latents: Any = replace(tree, **{name: float32(getattr(tree, name)) for name in fields})
        return latents
    widened: Tree = tree_map(lambda x: x.float() if isinstance(x, Tensor) and x.dtype is torch.bfloat16 else x, tree)
    return widened
