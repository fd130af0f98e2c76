"""Pictures of signals: a trace per channel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maemm.data.encodable import encodable

_INK, _HIDDEN = "#14507a", "#d9d4cb"
_MOST = 16  # channels in a picture
_LARGEST = 1e30  # that is drawn: matplotlib multiplies


def traces(axes: Any, signal: Tensor, names: Sequence[str] | None = None) -> None:
    """Draw (C, L) on matplotlib axes, the first channel on top, NaN as shaded spans.

    Each trace is centred on its median; all share one scale, a power of two that most values fit, so that input,
    visible part and reconstruction of a sample mostly have the same scale. Of many channels an even selection is drawn.
    """
    signal = encodable(signal.detach().float().cpu(), -_LARGEST, _LARGEST, math.nan)
    chosen = torch.linspace(0, len(signal) - 1, min(_MOST, len(signal))).round().long()
    signal = signal[chosen]
    signal = signal - signal.nanmedian(-1, keepdim=True).values.nan_to_num(0.0)
    finite = signal[signal.isfinite()].abs()
    largest = float(finite.quantile(0.99)) if 0 < finite.numel() < 10_000_000 else 1.0
    half = 2.0 ** math.ceil(math.log2(max(largest, 1e-6)))
    axes.set_facecolor("white")
    axes.set_xlim(0, signal.shape[1])
    axes.set_ylim(-(len(signal) - 0.5) * 2 * half, half)
    for row, trace in enumerate(signal):
        _trace(axes, trace, -row * 2 * half, half)
        if names is not None and len(signal) > 1:
            axes.text(
                0.01 * signal.shape[1], (0.55 - 2 * row) * half, names[int(chosen[row])], fontsize=3.6, color="0.35"
            )


def _trace(axes: Any, trace: Tensor, base: float, half: float) -> None:
    missing = trace.isnan()
    edges = torch.diff(missing.int(), prepend=torch.zeros(1), append=torch.zeros(1)).nonzero()[:, 0].tolist()
    spans = [(start, stop - start) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
    if spans:
        axes.broken_barh(spans, (base - half, 2 * half), facecolors=_HIDDEN, linewidth=0)
    axes.plot((trace.clamp(-half, half) + base).numpy(), linewidth=0.7, color=_INK)
