"""Pictures of spectrograms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LOW, HIGH = -2.2, 2.6  # z-scores of the log-mel that are black and white; one scale, so that columns compare


def draw_spectrogram(axes: Any, scores: Tensor, seconds_per_frame: float) -> None:
    """(T, F) z-scores on matplotlib axes, with the time in seconds below and the mel band on the left."""
    frames, mels = scores.shape
    axes.set_facecolor("0.6")
    axes.imshow(
        torch.where(scores.isfinite(), scores, torch.nan).T.numpy(),
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=LOW,
        vmax=HIGH,
        interpolation="nearest",
        extent=(0, frames * seconds_per_frame, 0, mels),
    )
    style = {"fontsize": 4.5, "color": "white", "transform": axes.transAxes}
    axes.text(0.985, 0.02, f"{frames * seconds_per_frame:.2g} s", ha="right", va="bottom", **style)
    axes.text(0.015, 0.975, f"mel {mels}", ha="left", va="top", **style)
