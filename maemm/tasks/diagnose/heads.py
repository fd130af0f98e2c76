"""Attention distance and entropy of every head, by layer, as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from maemm.tasks.diagnose.attention import Attention

_COLOURS = ("#0f6fb5", "#b4572a")


def draw_heads(found: Mapping[str, Attention]) -> bytes:
    """A PNG with two panels; {network: its attention}, the first one in front."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    first = next(iter(found.values()))
    _panel(left, {kind: one.distance for kind, one in found.items()}, first.even_distance, "distance of attention")
    _panel(right, {kind: one.entropy for kind, one in found.items()}, first.even_entropy, "entropy of attention, nats")
    for axes in (left, right):
        _ticks(axes, first.layers)
    left.legend(frameon=False, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})  # the same bytes for the same picture
    return file.getvalue()


def _panel(axes: Any, found: Mapping[str, np.ndarray], even: float, title: str) -> None:
    for number, (kind, values) in reversed(list(enumerate(found.items()))):
        layers, heads = values.shape
        shift = 0.12 * number
        places = np.repeat(np.arange(layers), heads) + shift
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(places, values.ravel(), "o", color=colour, markersize=4, alpha=0.75, label=kind, markeredgewidth=0)
    axes.axhline(even, color="#8a8f94", linestyle=":", linewidth=1.2, label="everywhere alike")
    axes.set_ylim(0, 1.1 * max(even, *(float(np.nanmax(values)) for values in found.values())))
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(axis="y", color="#e2e0db", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _ticks(axes: Any, layers: list[str]) -> None:
    """Layer numbers; names, where they do not only count."""
    short = [one.replace(".attn", "").removeprefix("blocks.") for one in layers]
    axes.set_xticks(range(len(layers)), short, fontsize=8)
    if any(not one.isdigit() for one in short):
        axes.tick_params(axis="x", rotation=60)
    axes.set_xlabel("block", fontsize=9)
