"""The audio sample set: sounds of the procedural objects as ordinary WAV files in one folder per shape."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import torch

from maemm.contract import Source
from maemm.contract.options import NonNegativeInt, PositiveInt
from maemm.data.encodable import encodable

from .._objects.objects import COUNT
from .._objects.sound import ring
from .._objects.store import default_root, write_objects
from .sources import open_audio

RATE, SECONDS = 16000, 1.0
VERSION = 1  # raise it whenever a sample changes: an old folder is then refused instead of mixed up


def write(root: Path, *, count: PositiveInt = COUNT, seed: NonNegativeInt = 0) -> None:
    """Write ``count`` sounds (1 s, 16 kHz, 16 bits, mono) as ``root/SHAPE/0007.wav``; a second call does nothing.

    The label is the folder's name, and the number is the object's index, the same in every modality.
    ``.objects.json`` holds all parameters.
    """
    write_objects(
        root, "audio", VERSION, count, seed,
        lambda path, thing: write_wav(path, ring(thing, SECONDS, RATE), RATE), ".wav", rate=RATE, seconds=SECONDS,
    )  # fmt: skip


def open_samples(root: str | None, list: str | None = None, *, name: str = "audio") -> Source:
    """The source of recipes that work without data: without ``data.root`` the sample set, written on first use.

    With ``data.root`` or ``data.list`` it is the ordinary source of sounds. Raises :class:`MaemmError`.

    Options
        name: the modality that the sounds are for
    """
    return open_audio(root if root or list else default_root("audio", write), list, name=name)


def write_wav(path: Path, sound: np.ndarray, rate: int) -> None:
    """(samples,) float -1 .. 1 as a 16-bit mono WAV file; louder samples are clipped, NaN is silence."""
    sound = encodable(torch.from_numpy(np.asarray(sound)), -1.0, 1.0).numpy()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((sound * 32767).round().astype("<i2").tobytes())
