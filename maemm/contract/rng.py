"""Counter-based random numbers: each is a function of (seed, step or sample, purpose), never of a stream's state.

A run therefore resumes from its step number alone, and n ranks together draw what a single rank would draw.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RNG_VERSION = 2  # of the numbers that a key gives; 1: torch's generator, seeded for each purpose


def derive(*key: int | str) -> int:
    """A 63-bit seed from a key; the same on every machine and Python version."""
    text = "\x1f".join(str(part) for part in key).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


# ------------------------------------------------------------------- the hash: the finaliser of splitmix64 (Vigna 2015)
# A row begins at the hash of seed + (row + 1) * _ROW_STEP; its k-th number is the hash of that + k * _PLACE_STEP, from
# k = 1, of which the upper 24 bits are used. Three forms of it, each where it is fastest: integers of Python for a few
# numbers, NumPy's unsigned words on the CPU, and on a device tensors, which know signed words alone.
_ROW_STEP, _PLACE_STEP = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95  # odd, with no pattern in their bits
_FACTOR_1, _FACTOR_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 2**64 - 1
_FEW = 64


def _floats(seed: int, row: int, count: int) -> list[float]:
    word, state, values = ((row + 1) * _ROW_STEP + seed) & _WORD, 0, []
    for number in range(count + 1):
        if number:
            word = (state + number * _PLACE_STEP) & _WORD
        word = ((word ^ (word >> 30)) * _FACTOR_1) & _WORD
        word = ((word ^ (word >> 27)) * _FACTOR_2) & _WORD
        word ^= word >> 31
        if number:
            values.append((word >> 40) * 2.0**-24)
        else:
            state = word
    return values


def _on_cpu(seed: int, rows: Sequence[int], size: int) -> Tensor:
    def mixed(words: np.ndarray) -> np.ndarray:
        shifted = words >> 30
        words ^= shifted
        words *= np.uint64(_FACTOR_1)
        words ^= np.right_shift(words, 27, out=shifted)
        words *= np.uint64(_FACTOR_2)
        words ^= np.right_shift(words, 31, out=shifted)
        return words

    state = mixed((np.asarray(rows, np.uint64) + np.uint64(1)) * np.uint64(_ROW_STEP) + np.uint64(seed))
    places = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(_PLACE_STEP)
    words = mixed(state[:, None] + places)
    words >>= np.uint64(40)
    return torch.from_numpy(words.astype(np.float32)).mul_(2.0**-24)


def _on_device(seed: int, rows: Sequence[int], size: int, device: torch.device | str) -> Tensor:
    def signed(word: int) -> int:
        return word - 2**64 if word >> 63 else word

    def mixed(words: Tensor) -> Tensor:  # the masks make shifts bring in zeros, as those of unsigned words do
        words ^= (words >> 30) & (2**34 - 1)
        words *= signed(_FACTOR_1)
        words ^= (words >> 27) & (2**37 - 1)
        words *= signed(_FACTOR_2)
        words ^= (words >> 31) & (2**33 - 1)
        return words

    if rows and list(rows) == list(range(rows[0], rows[0] + len(rows))):  # the usual ones, counted there
        row = torch.arange(rows[0] + 1, rows[0] + 1 + len(rows), device=device)
    else:
        row = torch.tensor([row + 1 for row in rows], dtype=torch.long).to(device, non_blocking=True)
    state = mixed(row * signed(_ROW_STEP) + seed)
    words = mixed(state[:, None] + torch.arange(1, size + 1, device=device) * signed(_PLACE_STEP))
    return ((words >> 40) & (2**24 - 1)).float().mul_(2.0**-24)


# ------------------------------------------------------------------------------------------------------------ the draws
@dataclass(frozen=True)
class Rng:
    """Random numbers for the rows of a batch.

    On the device the key is (seed, step), ``total`` the size of the global batch and ``rows`` the rows of this rank and
    micro-batch. In a worker the key is (seed, epoch, sample, repeat) and there is one row.
    """

    key: tuple[int | str, ...]
    rows: Sequence[int] = range(1)
    total: int = 1
    progress: float = 0.0  # fraction of the training that is done, for schedules of maskings and augmentations

    def seed(self, purpose: str) -> int:
        """A 63-bit integer to seed third-party random code with; see :func:`seeded`."""
        return derive(*self.key, purpose)

    def uniform(self, purpose: str, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """(rows, *shape) uniform in [0, 1), float32: the same bits on every device and machine.

        Each number is a hash of the key, the purpose, its row and its place in the row: a rank computes its own rows
        alone, nothing is copied between host and device, and a longer draw begins with a shorter one.
        """
        seed, size = self.seed(purpose), math.prod(shape)
        if torch.device(device).type != "cpu":
            values = _on_device(seed, self.rows, size, device)
        elif len(self.rows) * size <= _FEW:
            values = torch.tensor([_floats(seed, row, size) for row in self.rows], dtype=torch.float32)
        else:
            values = _on_cpu(seed, self.rows, size)
        return values.view(len(self.rows), *shape)

    def floats(self, purpose: str, count: int) -> list[float]:
        """What :meth:`uniform` gives to the first row, as numbers of Python: for the few draws of a worker."""
        return _floats(self.seed(purpose), self.rows[0], count)

    def numpy(self, purpose: str) -> np.random.Generator:
        """A NumPy generator for one sample in a worker."""
        return np.random.default_rng(self.seed(purpose))

    def fold_in(self, *more: int | str) -> Rng:
        """The same rows with a longer key."""
        return Rng((*self.key, *more), self.rows, self.total, self.progress)


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch (CPU and CUDA) from a key within the block, then restore
    them: for third-party random code, such as dropout or timm's augmentations."""
    seed = derive(*key)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
