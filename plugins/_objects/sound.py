"""Sounds of the sample objects: each is struck and rings, a sum of decaying partials (modal synthesis)."""

from __future__ import annotations

import math

import numpy as np

from .objects import Object

#: Frequencies of the partials relative to the lowest, by shape: strings and pipes (1, 2, 3...), bars (1, 2.76,
#: 5.40...), rings (1, 2.83, 5.42...), membranes (Fletcher and Rossing, "The Physics of Musical Instruments").
PARTIALS: dict[str, tuple[float, ...]] = {
    "sphere": (1.0, 1.5, 1.93, 2.3, 2.7, 3.1),
    "torus": (1.0, 2.83, 5.42, 8.77, 12.9, 17.7),
    "cylinder": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
    "cone": (1.0, 1.59, 2.14, 2.30, 2.65, 2.92),
    "cube": (1.0, 2.76, 5.40, 8.93, 13.34, 18.64),
    "pyramid": (1.0, 1.41, 2.0, 2.83, 4.0, 5.66),
}
_ATTACK = 0.002  # seconds
_LOUD = 0.5  # peak, full scale is 1


def ring(thing: Object, seconds: float = 1.0, rate: int = 16000) -> np.ndarray:
    """(samples,) float32, -1 .. 1: two blows, the second softer. The same bits for the same input.

    The light's angle sets when it is struck, the spin how it wavers.
    """
    samples = round(seconds * rate)
    time = np.arange(samples) / rate
    first = 0.03 + 0.12 * (0.5 + 0.5 * math.sin(7.0 * thing.light))
    second = first + 0.25 + 0.2 * (0.5 + 0.5 * math.cos(11.0 * thing.light))
    sound = _blow(thing, time - first, rate) + 0.5 * _blow(thing, time - second, rate)
    sound *= 1 + 0.3 * np.sin(2 * math.pi * (2 + abs(thing.spin)) * time)  # it turns, so it wavers
    # A room is never still: some noise, far below the blows.
    rng = np.random.default_rng([8, thing.index])
    sound = sound / max(np.abs(sound).max(), 1e-9) * _LOUD + 2e-4 * rng.standard_normal(samples)
    return sound.clip(-1, 1).astype(np.float32)


def _blow(thing: Object, time: np.ndarray, rate: int) -> np.ndarray:
    """One blow at time 0."""
    after = np.maximum(time, 0.0)
    sound = np.zeros_like(time)
    for strength, ratio in zip((1.0, *thing.harmonics), PARTIALS[thing.shape], strict=False):
        frequency = thing.pitch * ratio
        if frequency < 0.45 * rate:  # high partials die sooner
            sound += strength * np.exp(-after * ratio**0.5 / thing.decay) * np.sin(2 * math.pi * frequency * after)
    return np.where(time > 0, sound * np.minimum(after / _ATTACK, 1.0), 0.0)
