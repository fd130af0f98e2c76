"""Pictures of spectrograms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LOW, HIGH = -2.2, 2.6  # z-scores of the log-mel that are black and white; one scale, so that columns compare
SIZE = 4.5  # points of the labels, which stand inside: pictures lie close to each other


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
        places = MaxNLocator(5, steps=steps).tick_values(0, end)
        places = [place for place in places if 0.08 * end < place < 0.92 * end]  # corners belong to the units
        axis.set_ticks(places, [f"{place:g}{' ' + unit if place == places[-1] else ''}" for place in places])
        axis.set_tick_params(direction="in", length=2, width=0.5, color="white", labelsize=SIZE, labelcolor="white")
        for label in axis.get_ticklabels():
            label.set_path_effects(edge)
    axes.tick_params(axis="x", pad=-7)
    axes.tick_params(axis="y", pad=-4)
    for label in axes.get_yticklabels():
        label.set_horizontalalignment("left")
