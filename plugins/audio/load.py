"""From a recording to the waveform of one sample: the part that is read, one channel, the right rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng

RATES = (1000, 768000)  # Hz that a file may have
MOST_CHANNELS = 64
LOUDEST = 100.0  # full scale is 1; beyond this the numbers are no waveform (whole numbers, noise read as floats)
CANCELLED = 1e-3  # the mean of the channels below this share of their own spread
SILENT_TRIES = 5  # parts of a recording that are looked at before it counts as silent


class Sound(Protocol):
    """What :meth:`Audio.load` takes: a recording that is read in parts."""

    rate: int  # samples a second
    length: int  # samples

    def read(self, start: int, count: int) -> np.ndarray:
        """(count, channels) float32, -1 .. 1; fewer at the end. Whatever is wrong with it is an exception."""
        ...


@dataclass(frozen=True)
class Wave:
    """A recording in memory: (samples, channels) or (samples,) float, -1 .. 1."""

    samples: np.ndarray
    rate: int

    @property
    def length(self) -> int:
        return len(self.samples)

    def read(self, start: int, count: int) -> np.ndarray:
        part = np.asarray(self.samples[start : start + count], np.float32)
        return part[:, None] if part.ndim == 1 else part


@dataclass(frozen=True)
class Cut:
    """How a sample is made of a recording."""

    rate: int  # of the sample
    most: int  # samples at that rate
    least: int
    channel: Literal["mean"] | int = "mean"
    crop: Literal["random", "head", "center"] = "random"
    silent: Literal["refuse", "keep"] = "refuse"


def load_wave(sound: Sound, cut: Cut, rng: Rng | None) -> Tensor:
    """(samples,) float32 at ``cut.rate``. Raises ValueError with the reason for what cannot be used."""
    if not RATES[0] <= sound.rate <= RATES[1]:
        raise ValueError(f"a rate of {sound.rate} Hz is not between {RATES[0]} and {RATES[1]}")
    most = math.ceil(cut.most * sound.rate / cut.rate)
    spare = sound.length - most
    tries = SILENT_TRIES if cut.crop == "random" and spare > 0 else 1
    for attempt in range(tries):
        part = sound.read(_start(spare, cut, rng, attempt), most)
        _check(part, sound.rate)
        wave = _one_channel(part, cut.channel)
        if wave.std() < CANCELLED * part.std():
            raise ValueError(
                f"the {part.shape[1]} channels cancel each other (modalities.audio.channel); choose one, such as 0"
            )
        # A cut may leave nothing but the digital silence that recordings often end with: look elsewhere.
        if cut.silent == "keep" or np.ptp(wave) > 0:
            break
    else:
        raise ValueError(f"silent: all samples of {len(part) / sound.rate:.3g} s are equal (modalities.audio.silent)")
    wave = resample(torch.from_numpy(wave), sound.rate, cut.rate)[: cut.most]
    if len(wave) < cut.least:
        raise ValueError(f"{len(wave) / cut.rate:.3g} s are too short; one patch takes {cut.least / cut.rate:.3g} s")
    return wave


def _start(spare: int, cut: Cut, rng: Rng | None, attempt: int) -> int:
    if spare <= 0 or cut.crop == "head":
        return 0
    if cut.crop == "center":
        return spare // 2
    if rng is None:  # where nothing is drawn the beginning; after silence a fixed part further on
        return spare * attempt // (SILENT_TRIES - 1)
    return int(rng.uniform(f"crop/{attempt}").item() * (spare + 1))


def _check(part: np.ndarray, rate: int) -> None:
    if not len(part):
        raise ValueError("no samples")
    if part.shape[1] > MOST_CHANNELS:
        raise ValueError(f"{part.shape[1]} channels are more than {MOST_CHANNELS}")
    finite = np.isfinite(part)
    if not finite.all():
        raise ValueError(f"{int((~finite).sum())} samples are not finite numbers")
    loudest = np.abs(part).max()
    if loudest > LOUDEST:
        raise ValueError(f"samples reach {loudest:.3g} and full scale is 1; store -1 to 1, or whole numbers")


def _one_channel(part: np.ndarray, channel: Literal["mean"] | int) -> np.ndarray:
    if part.shape[1] == 1:
        return part[:, 0]
    if channel == "mean":
        return part.mean(1)
    if not 0 <= channel < part.shape[1]:
        raise ValueError(f"there is no channel {channel}, only {part.shape[1]} (modalities.audio.channel)")
    return np.ascontiguousarray(part[:, channel])


def resample(wave: Tensor, old: int, new: int) -> Tensor:
    """(S,) at ``old`` Hz -> at ``new`` Hz, torchaudio's sinc filter. Odd ratios are rounded by less than 1e-6."""
    if old == new:
        return wave
    ratio = Fraction(new, old)
    if ratio.numerator > _FINEST or ratio.denominator > _FINEST:  # the filter bank would take gigabytes
        ratio = ratio.limit_denominator(_FINEST) if new < old else 1 / (1 / ratio).limit_denominator(_FINEST)
    return _resampler(ratio.denominator, ratio.numerator)(wave)


_FINEST = 1000


@lru_cache(maxsize=16)
def _resampler(old: int, new: int) -> Any:
    try:
        from torchaudio.transforms import Resample
    except ImportError as error:
        raise MaemmError(f"torchaudio cannot be imported ({error}); run: pip install torchaudio") from error
    return Resample(old, new)
