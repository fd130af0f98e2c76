"""A recording -> the waveform of one sample: which part is read, one channel, the model's rate."""

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

RATES = (1000, 768000)  # lowest and highest, in Hz
MOST_CHANNELS = 64
LOUDEST = 100.0  # full scale is 1; larger values are no waveform (integers stored as floats, broken files)
CANCELLED = 1e-3  # channels cancel when the std of their mean is below this fraction of their own std
SILENT_TRIES = 5  # crops that are tried before a recording counts as silent


class Sound(Protocol):
    """What :meth:`Audio.load` accepts: a recording that is read in parts."""

    @property
    def rate(self) -> int:
        """Samples per second."""
        ...

    @property
    def length(self) -> int:
        """Samples."""
        ...

    def read(self, start: int, count: int) -> np.ndarray:
        """(count, channels) float32, -1 .. 1; fewer at the end. Raises ValueError or OSError with the reason."""
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
    """How a sample is cut out of a recording. ``most`` and ``least`` are samples at ``rate``."""

    rate: int  # of the sample
    most: int
    least: int
    channel: Literal["mean"] | int = "mean"
    crop: Literal["random", "head", "center"] = "random"
    silent: Literal["refuse", "keep"] = "refuse"


def load_wave(sound: Sound, cut: Cut, rng: Rng | None) -> Tensor:
    """(samples,) float32 at ``cut.rate``. Raises ValueError with the reason where the recording cannot be used."""
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
        # Recordings often end with digital silence, and a crop may hold nothing else: try another.
        if cut.silent == "keep" or np.ptp(wave) > 0:
            break
    else:
        raise ValueError(f"silent: all samples of {len(part) / sound.rate:.3g} s are equal (modalities.audio.silent)")
    resampled = resample(torch.from_numpy(wave), sound.rate, cut.rate)[: cut.most]
    if len(resampled) < cut.least:
        seconds = len(resampled) / cut.rate
        raise ValueError(f"{seconds:.3g} s are too short; one patch takes {cut.least / cut.rate:.3g} s")
    return resampled


def _start(spare: int, cut: Cut, rng: Rng | None, attempt: int) -> int:
    if spare <= 0 or cut.crop == "head":
        return 0
    if cut.crop == "center":
        return spare // 2
    if rng is None:  # evaluation: the beginning; after silence, fixed positions further on
        return spare * attempt // (SILENT_TRIES - 1)
    return int(rng.floats(f"crop/{attempt}", 1)[0] * (spare + 1))


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
    """(S,) at ``old`` Hz -> at ``new`` Hz, torchaudio's sinc filter. Ratios are rounded by less than 1e-6."""
    if old == new:
        return wave
    ratio = Fraction(new, old)
    if ratio.numerator > _FINEST or ratio.denominator > _FINEST:  # otherwise the resampling filters take gigabytes
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
