"""Pictures of spectrograms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LOW, HIGH = -2.2, 2.6  # colour range in z-scores of the log-mel: one scale, so that pictures can be compared
SIZE = 4.5  # of the labels in points; they are drawn inside, because pictures stand close to each other


def draw_spectrogram(axes: Any, scores: Tensor, seconds_per_frame: float) -> None:
    """(T, F) z-scores on matplotlib axes: seconds to the right, mel bands upwards, grey where there is NaN."""
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator

    frames, mels = scores.shape
    seconds = frames * seconds_per_frame
    axes.set_facecolor("0.6")
    axes.imshow(
        torch.where(scores.isfinite(), scores, torch.nan).T.numpy(),
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=LOW,
        vmax=HIGH,
        interpolation="nearest",
        extent=(0, seconds, 0, mels),
    )
    edge = [withStroke(linewidth=1.2, foreground="black")]
    sides = ((axes.xaxis, seconds, (1, 2, 2.5, 5, 10), "s"), (axes.yaxis, mels, (1, 1.6, 3.2, 8, 10), "mel"))
    for axis, end, steps, unit in sides:
        ticks = MaxNLocator(5, steps=steps).tick_values(0, end)
        ticks = [tick for tick in ticks if 0.08 * end < tick < 0.92 * end]  # the corners stay free
        axis.set_ticks(ticks, [f"{tick:g}{' ' + unit if tick == ticks[-1] else ''}" for tick in ticks])
        axis.set_tick_params(direction="in", length=2, width=0.5, color="white", labelsize=SIZE, labelcolor="white")
        for label in axis.get_ticklabels():
            label.set_path_effects(edge)
    axes.tick_params(axis="x", pad=-7)
    axes.tick_params(axis="y", pad=-4)
    for label in axes.get_yticklabels():
        label.set_horizontalalignment("left")
