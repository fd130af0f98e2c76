"""Resampling of parts of a recording, which equal the parts of the resampled recording."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from maemm.contract.errors import MaemmError

_WIDTH = 6  # zero crossings of the filter, torchaudio's default


def ratio(old: float, new: float) -> Fraction:
    """``new / old`` as a fraction of small numbers. Raises :class:`MaemmError` where there is none."""
    fraction = Fraction(new / old).limit_denominator(2000)
    if not fraction or fraction.numerator > 20_000 or abs(float(fraction) * old / new - 1) > 1e-4:
        raise MaemmError(f"cannot resample from {old:g} to {new:g} per second (data.source.rate); choose a nearer rate")
    return fraction


def length_after(length: int, by: Fraction) -> int:
    """Number of samples that ``length`` samples are resampled to."""
    return max(1, int(length * by))


def source_span(start: int, stop: int, by: Fraction, length: int) -> tuple[int, int, int]:
    """What to read for the resampled samples ``start`` .. ``stop`` - 1: (from, to, resampled samples to skip).

    The part begins where the sample times of both rates coincide and is wider by the filter's length, so that the
    result equals that of resampling the whole recording.
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
