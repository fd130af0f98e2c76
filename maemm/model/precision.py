"""In which precision a network computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
