"""Batched work on the device besides the filter bank: augmentation, padding, normalisation constants."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from maemm.contract.rng import Rng
from maemm.contract.small import small_tensor

BETA = 10  # both parameters of the Beta distribution of gains and mixing fractions, as published


class Constants(NamedTuple):
    """(x - mean) / (std_scale * std) of the log-mel of a data set."""

    mean: float
    std: float
    std_scale: float


#: Published constants: AudioMAE's dataset options, and CAV-MAE's for AudioSet and VGGSound.
CONSTANTS = {
    "audioset": Constants(-4.2677393, 4.5689974, 2.0),
    "esc50": Constants(-6.6268077, 5.358466, 2.0),
    "speechcommands": Constants(-6.845978, 5.5654526, 2.0),
    "cavmae": Constants(-5.081, 4.4849, 1.0),
}


def inside(samples: Tensor, length: int) -> Tensor:
    """(B,) lengths -> (B, length) bool, True before the end."""
    return torch.arange(length, device=samples.device) < samples[:, None]


def without_mean(wave: Tensor, samples: Tensor) -> Tensor:
    """(B, S) minus the mean of each clip; padding stays zero."""
    mean = wave.sum(1, keepdim=True) / samples[:, None]
    return (wave - mean) * inside(samples, wave.shape[1])


def beta(uniform: Tensor) -> Tensor:
    """(B, 2 * BETA - 1) uniform numbers -> (B,) from Beta(BETA, BETA), the distribution of their median."""
    return uniform.sort(1).values[:, BETA - 1]


def gain(wave: Tensor, rng: Rng) -> Tensor:
    """Times Beta(10, 10) + 0.5, as in AudioMAE's roll_mag_aug."""
    factor = beta(rng.uniform("gain", 2 * BETA - 1, device=wave.device)) + 0.5
    return wave * factor[:, None]


def roll(wave: Tensor, samples: Tensor, rng: Rng) -> Tensor:
    """Roll each clip by a uniform fraction of its own length (in AudioMAE's code the shift is always 0)."""
    shift = (rng.uniform("roll", device=wave.device) * samples).long()[:, None]
    index = torch.arange(wave.shape[1], device=wave.device)
    rolled = torch.where(index < samples[:, None], (index + shift) % samples[:, None], index)
    return wave.gather(1, rolled)


class Mix(NamedTuple):
    """What each clip was mixed with, for its labels."""

    partner: Tensor  # (B,) int64 row of this batch
    fraction: Tensor  # (B,) float weight of the clip itself; 1 where it was not mixed


def mixup(wave: Tensor, samples: Tensor, rng: Rng, probability: float) -> tuple[Tensor, Mix]:
    """Mix clips with their neighbours in the global batch (0 with 1, 2 with 3, ...), fraction ~ Beta(10, 10).

    The partner is padded or cropped to the clip. Neighbours, so that micro-batches and ranks of even size mix the
    same clips as a single process would; a clip whose neighbour is on another rank is not mixed.
    """
    local = {number: row for row, number in enumerate(rng.rows)}  # row in the global batch -> in this one
    partners = [local.get(number ^ 1, row) for number, row in local.items()]
    partner = small_tensor(partners, wave.device)
    uniform = rng.uniform("mixup", 2 * BETA, device=wave.device)
    fraction = torch.where(uniform[:, 0] < probability, beta(uniform[:, 1:]), 1.0)
    fraction = torch.where(partner == torch.arange(len(partners), device=wave.device), 1.0, fraction)
    mixed = fraction[:, None] * wave + (1 - fraction)[:, None] * wave[partner]
    return without_mean(mixed * inside(samples, wave.shape[1]), samples), Mix(partner, fraction)


def fit(logmel: Tensor, frames: int) -> Tensor:
    """(B, T, F) cropped, or padded with zeros at the end, to ``frames``."""
    missing = frames - logmel.shape[1]
    if missing <= 0:
        return logmel[:, :frames]
    return torch.nn.functional.pad(logmel, (0, 0, 0, missing))


def spec_augment(logmel: Tensor, rng: Rng, frequency: int, time: int) -> Tensor:
    """Zero one band of fewer than ``frequency`` mels and one of fewer than ``time`` frames, on the raw log-mel.

    Width and position are uniform (Park et al. 2019, as in torchaudio); 0 is louder than most values, as published.
    """
    for axis, widest in ((2, frequency), (1, time)):
        side = logmel.shape[axis]
        uniform = rng.uniform(f"spec_augment/{axis}", 2, device=logmel.device)
        width = uniform[:, 0] * min(widest, side)
        first = (uniform[:, 1] * (side - width)).long()[:, None]
        position = torch.arange(side, device=logmel.device)
        hidden = (position >= first) & (position < first + width.long()[:, None])
        logmel = logmel.masked_fill(hidden.unsqueeze(3 - axis), 0.0)
    return logmel


def noise(x: Tensor, rng: Rng, strength: float) -> Tensor:
    """Add U * U' * ``strength``, U per value and U' per clip (CAV-MAE: 0.1, with every recipe)."""
    level = rng.uniform("noise/level", device=x.device)
    return x + strength * level[:, None, None] * rng.uniform("noise", *x.shape[1:], device=x.device)
