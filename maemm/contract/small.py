"""Small tensors of numbers that the host knows, on the device without a wait."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def small_tensor(
    values: float | Sequence[float], device: torch.device | str, dtype: torch.dtype | None = None
) -> Tensor:
    """``torch.tensor(values)`` on the device: lengths, counts, a mean for each channel.

    ``torch.tensor(values, device=device)`` would make the host wait until the device has finished all earlier work.
    """
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
