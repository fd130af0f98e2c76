"""Targets of clips: the normalisation of VideoMAE, OmniMAE and MAE-ST, and MAE-ST's choice of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maemm.contract.errors import MaemmError
from maemm.contract.small import small_tensor


@dataclass(frozen=True)
class Normaliser:
    """(x - mean) / std of the values of a token, over all of them or per colour; unbiased variance.

    ``eps_on``: "std": sqrt(var) + eps (VideoMAE); "var": sqrt(var + eps) (MAE, MAE-ST, OmniMAE).
    """

    colours: int  # groups of values with statistics of their own: the channels, or 1
    eps: float
    eps_on: str

    def apply(self, values: Tensor) -> Tensor:
        """(..., P) -> (..., P), colour fastest."""
        grouped = values.unflatten(-1, (-1, self.colours))
        mean, std = self._statistics(grouped)
        return ((grouped - mean) / std).flatten(-2)

    def undo(self, values: Tensor, reference: Tensor) -> Tensor:
        """The inverse, with the statistics of the token values ``reference``; both (..., P)."""
        mean, std = self._statistics(reference.unflatten(-1, (-1, self.colours)))
        return (values.unflatten(-1, (-1, self.colours)) * std + mean).flatten(-2)

    def _statistics(self, grouped: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = grouped.mean(-2, keepdim=True), grouped.var(-2, keepdim=True)
        std = variance.sqrt() + self.eps if self.eps_on == "std" else (variance + self.eps).sqrt()
        return mean, std


class FrameChoice:
    """The frames of a clip that are predicted: ``count`` of ``frames``, evenly spaced (MAE-ST's ``pred_t_dim``).

    Predicted frame i is frame floor(i (frames - 1) / (count - 1)); of each slot of ``tubelet`` frames, ``per_slot`` are
    predicted.
    """

    def __init__(self, frames: int, tubelet: int, count: int):
        if count < 1 or tubelet * count % frames or count > frames:
            valid = [str(n) for n in range(1, frames + 1) if tubelet * n % frames == 0]
            raise MaemmError(
                f"{count} of {frames} frames cannot be predicted with {tubelet} frames per token "
                f"(predict_frames); use {' or '.join(valid)}"
            )
        self.tubelet, self.per_slot = tubelet, tubelet * count // frames

    def select(self, values: Tensor, slot: Tensor, slots: int) -> Tensor:
        """(R, M, P) values of tokens in the time slots ``slot`` (R, M) -> (R, M, O), of their predicted frames."""
        frames = values.unflatten(-1, (self.tubelet, -1))
        index = self._offsets(slots, values.device)[slot]
        return frames.gather(-2, index[..., None].expand(*index.shape, frames.shape[-1])).flatten(-2)

    def expand(self, values: Tensor, slot: Tensor, slots: int) -> Tensor:
        """(R, M, O) -> (R, M, P): frames that are not predicted repeat the nearest predicted one."""
        frames = values.unflatten(-1, (self.per_slot, -1))
        offsets = self._offsets(slots, values.device).float()
        distance = (offsets[:, None] - torch.arange(self.tubelet, device=values.device)[:, None]).abs()
        index = distance.argmin(-1)[slot]
        return frames.gather(-2, index[..., None].expand(*index.shape, frames.shape[-1])).flatten(-2)

    def _offsets(self, slots: int, device: torch.device) -> Tensor:
        """(slots, per_slot) int64: which frames of each slot are predicted."""
        count = slots * self.per_slot
        chosen = torch.linspace(0, slots * self.tubelet - 1, count).long().reshape(slots, self.per_slot)
        return (chosen - torch.arange(slots)[:, None] * self.tubelet).to(device, non_blocking=True)


def per_colour(values: Tensor, numbers: Sequence[float]) -> Tensor:
    """One number per colour -> (P,), to broadcast with values (..., P), colour fastest."""
    return small_tensor(numbers, values.device, values.dtype).repeat(values.shape[-1] // len(numbers))
