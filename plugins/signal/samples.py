"""The signal sample set: what a three-axis sensor feels when the procedural objects are knocked, as CSV files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from maemm.contract import Source
from maemm.contract.options import NonNegativeInt, PositiveInt

from .._objects.objects import COUNT, Object
from .._objects.store import default_root, write_objects
from .sources import open_signals

RATE, LENGTH = 50, 128  # samples per second, samples
SLOWER = 400  # the vibration is this many times slower than the sound
VERSION = 1  # raise it whenever a number changes: an old folder is then refused instead of mixed up


def write(root: Path, *, count: PositiveInt = COUNT, seed: NonNegativeInt = 0) -> None:
    """Write ``count`` recordings (x, y, z; 2.56 s at 50 Hz) as ``root/SHAPE/0007.csv``; a second call does nothing.

    The label is the folder's name, and the number is the object's index, the same in every modality.
    """
    write_objects(
        root, "signal", VERSION, count, seed,
        lambda path, thing: _write_csv(path, vibration(thing, seed)), ".csv",
        parameters=False, length=LENGTH, rate=RATE,
    )  # fmt: skip


def open_samples(root: str | None, list: str | None = None, *, name: str = "signal") -> Source:
    """The source of recipes that work without data: without ``data.root`` the sample set, written on first use.

    With ``data.root`` or ``data.list`` it is the ordinary source of signals. Raises :class:`MaemmError`.

    Options
        name: the modality that the signals are for
    """
    return open_signals(root if root or list else default_root("signal", write), list, name=name)


def vibration(thing: Object, seed: int = 0) -> np.ndarray:
    """(3, LENGTH) float64: knocks at even times, each a tone with overtones that dies away; some noise.

    The overtones follow from the shape, the tone and the time between knocks from the size; the rotation sets how much
    of the movement each axis gets.
    """
    rng = np.random.default_rng([seed, thing.index, 1])
    time = np.arange(LENGTH) / RATE
    period = 1.0 + thing.size
    first = -period * rng.random()
    tone = thing.pitch / SLOWER
    turn, tilt, _ = thing.rotation
    axes = np.array([abs(math.cos(turn)), abs(math.sin(turn)), math.sin(tilt) + 0.5]) + 0.1
    signal = 0.02 * rng.standard_normal((3, LENGTH))
    for knock in np.arange(first, LENGTH / RATE, period):
        after = np.maximum(time - knock, 0)
        ringing = (time >= knock) * np.exp(-after / thing.decay)
        for k, strength in enumerate((1.0, *thing.harmonics[:2]), start=1):
            for axis in range(3):  # overtones lag from axis to axis
                phase = 2 * math.pi * k * tone * after + axis * (k - 1) * 0.6
                signal[axis] += axes[axis] * strength * ringing * np.exp(-after * (k - 1)) * np.sin(phase)
    return signal


def _write_csv(path: Path, signal: np.ndarray) -> None:
    """(3, LENGTH) as a table of seconds, x, y and z."""
    table = np.column_stack([np.arange(LENGTH) / RATE, signal.T])
    np.savetxt(path, table, fmt="%.4f", delimiter=",", header="time,x,y,z", comments="")
