"""From one rate to another, by stretches that fit together."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from maemm.contract.errors import MaemmError

_WIDTH = 6  # zero crossings of the filter, torchaudio's default


def ratio(old: float, new: float) -> Fraction:
    """``new / old`` as a fraction of small numbers. Raises :class:`MaemmError` where there is none."""
    found = Fraction(new / old).limit_denominator(2000)
    if not found or found.numerator > 20_000 or abs(float(found) * old / new - 1) > 1e-4:
        raise MaemmError(f"cannot resample from {old:g} to {new:g} per second (data.source.rate); choose a nearer rate")
    return found


def length_after(length: int, by: Fraction) -> int:
    """Samples that ``length`` samples become."""
    return max(1, int(length * by))


def source_span(start: int, stop: int, by: Fraction, length: int) -> tuple[int, int, int]:
    """What must be read to make the samples ``start`` .. ``stop`` - 1: (from, to, samples to leave out in front).

    Stretches begin where both rates meet and are as much wider as the filter is, so that they equal what a resampling
    of the whole recording gives.
    """
    if by == 1:
        return start, min(stop, length), 0
    old, new = by.denominator, by.numerator
    wide = -(-_WIDTH * old // min(old, new)) + 2 * old
    first = max(0, (start * old // new - wide) // old * old)
    last = min(length, -(-stop * old // new) + wide)
    return first, last, start - first // old * new


def resampled(x: np.ndarray, by: Fraction, skip: int, count: int) -> np.ndarray:
    """(L,) -> ``count`` samples at the new rate, without the first ``skip``."""
    if by == 1:
        return x[skip : skip + count]
    import torch

    signal = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    return _filter(by.denominator, by.numerator)(signal)[skip : skip + count].numpy()


@lru_cache(maxsize=8)
def _filter(old: int, new: int) -> Any:
    from torchaudio.transforms import Resample

    return Resample(old, new, lowpass_filter_width=_WIDTH)
