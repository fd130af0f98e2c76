"""Numbers that the host knows, on the device without a wait."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_STAGED = 64 * 1024  # bytes of pageable memory that CUDA takes along with a copy; for more it may wait


def small_tensor(
    values: float | Sequence[float], device: torch.device | str, dtype: torch.dtype | None = None
) -> Tensor:
    """``torch.tensor(values)`` on the device: lengths, counts, a mean for each channel.

    ``torch.tensor(values, device=device)`` would make the host wait until the device has finished all earlier work.
    """
    return to_device(torch.tensor(values, dtype=dtype), device)


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on the device; the host never waits, however large it is."""
    if tensor.nbytes > _STAGED and tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
