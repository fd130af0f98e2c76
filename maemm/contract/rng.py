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

from maemm.contract.small import to_device

RNG_VERSION = 2  # of the numbers that a key gives; 1: torch's generator, seeded for each purpose


def derive(*key: int | str) -> int:
    """A 63-bit seed from a key; the same on every machine and Python version."""
    text = "\x1f".join(str(part) for part in key).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


# ------------------------------------------------------------------- the hash: the finaliser of splitmix64 (Vigna 2015)
# A row begins at the hash of seed + (row + 1) * _ROW_STEP; its k-th number is the hash of that + k * _PLACE_STEP, from
# k = 1, of which the upper 24 bits are used, so the hash's last step, which changes only lower ones, is left out there.
# Three forms of it, each where it is fastest: integers of Python for a few numbers, NumPy's unsigned words on the CPU,
# and on a device tensors, which know signed words alone.
_ROW_STEP, _PLACE_STEP = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95  # odd, with no pattern in their bits
_FACTOR_1, _FACTOR_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 2**64 - 1
_FEW = 40  # hashes for which Python is faster than NumPy
_BLOCK = 2**15  # words that NumPy hashes at a time
_NARROW, _MOST = 32, 2**14  # numbers of a row, and of all, for which a copy is faster than a hash on the device


def _state(seed: int, row: int) -> int:
    word = ((row + 1) * _ROW_STEP + seed) & _WORD
    word = ((word ^ (word >> 30)) * _FACTOR_1) & _WORD
    word = ((word ^ (word >> 27)) * _FACTOR_2) & _WORD
    return word ^ (word >> 31)


def _floats(state: int, count: int) -> list[float]:
    values = []
    for _ in range(count):
        state = (state + _PLACE_STEP) & _WORD
        word = ((state ^ (state >> 30)) * _FACTOR_1) & _WORD
        values.append(((((word ^ (word >> 27)) * _FACTOR_2) & _WORD) >> 40) * 2.0**-24)
    return values


def _hashed(words: np.ndarray) -> np.ndarray:
    """In place, but for the last step."""
    shifted = words >> 30
    words ^= shifted
    words *= np.uint64(_FACTOR_1)
    words ^= np.right_shift(words, 27, out=shifted)
    words *= np.uint64(_FACTOR_2)
    return words


def _upper_bits(words: np.ndarray) -> Tensor:
    """Hash contiguous words in place, a block at a time, which stays in the cache: their upper bits as numbers."""
    values = np.empty(words.shape, np.float32)
    flat_words, flat_values = words.reshape(-1), values.reshape(-1)
    for start in range(0, words.size, _BLOCK):
        block = _hashed(flat_words[start : start + _BLOCK])
        block >>= np.uint64(40)
        flat_values[start : start + _BLOCK] = block.view(np.int64)  # signed: processors have an instruction for these
    return torch.from_numpy(values).mul_(2.0**-24)


def _signed(word: int) -> int:
    return word - 2**64 if word >> 63 else word


def _words_on_device(words: list[int] | np.ndarray, device: torch.device | str) -> Tensor:
    return to_device(torch.from_numpy(np.asarray(words, np.uint64).view(np.int64)), device)


def _upper_bits_on_device(words: Tensor) -> Tensor:
    """Hash signed words in place, and the same of them. Masks make shifts bring in zeros, as of unsigned words."""
    words ^= (words >> 30).bitwise_and_(2**34 - 1)
    words *= _signed(_FACTOR_1)
    words ^= (words >> 27).bitwise_and_(2**37 - 1)
    words *= _signed(_FACTOR_2)
    return (words >> 40).bitwise_and_(2**24 - 1).float().mul_(2.0**-24)


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

    def row_states(self, purpose: str) -> list[int] | np.ndarray:
        """(rows,) words of 64 bits, where the numbers of each row begin. A subclass may have rows of another kind."""
        seed = self.seed(purpose)
        if len(self.rows) <= _FEW // 4:
            return [_state(seed, row) for row in self.rows]
        words = _hashed((np.asarray(self.rows, np.uint64) + np.uint64(1)) * np.uint64(_ROW_STEP) + np.uint64(seed))
        return words ^ (words >> np.uint64(31))

    def uniform(self, purpose: str, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """(rows, *shape) uniform in [0, 1), float32: the same bits on every device and machine.

        Each number is a hash of the key, the purpose, its row and its place in the row: a rank computes its own rows
        alone, the host never waits, and a longer draw begins with a shorter one. Of a draw with many numbers in a row a
        word for each row is copied to a device; of another the numbers, as a copy costs no more than a single launch.
        """
        states, size = self.row_states(purpose), math.prod(shape)
        count, on_host = len(states) * size, torch.device(device).type == "cpu"
        if count <= _FEW and isinstance(states, list):
            values = torch.tensor([_floats(state, size) for state in states], dtype=torch.float32)
        elif on_host or (size <= _NARROW and count <= _MOST):
            places = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(_PLACE_STEP)
            values = _upper_bits(np.asarray(states, np.uint64)[:, None] + places)
        else:
            words = _words_on_device(states, device)[:, None]
            number = torch.arange(1, size + 1, device=device)
            values = _upper_bits_on_device(torch.add(words, number, alpha=_signed(_PLACE_STEP)))
            return values.view(len(states), *shape)
        return (values if on_host else to_device(values, device)).view(len(states), *shape)

    def uniform_at(self, purpose: str, rows: Tensor, places: Tensor) -> Tensor:
        """(..., n), float32: of the rows ``rows`` (n,) int64 of this batch the numbers at ``places`` (..., n) int64.

        Those that ``uniform(purpose, m)[rows, places]`` would give, for any m above all places, and on the device of
        both: for draws of which a row needs few numbers.
        """
        first = np.asarray(self.row_states(purpose), np.uint64) + np.uint64(_PLACE_STEP)
        if rows.device.type == "cpu":
            words = places.numpy().view(np.uint64) * np.uint64(_PLACE_STEP)
            words += first[rows.numpy()]
            return _upper_bits(words)
        words_of_rows = _words_on_device(first, rows.device).index_select(0, rows)
        return _upper_bits_on_device(torch.add(words_of_rows, places, alpha=_signed(_PLACE_STEP)))

    def normal(self, purpose: str, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """(rows, *shape) standard normal, float32: pairs of :meth:`uniform` by Box and Muller (1958).

        A longer draw begins with a shorter one. Devices may differ in the last bits of the logarithm and the cosine.
        """
        size = math.prod(shape)
        radius, angle = self.uniform(purpose, -(-size // 2), 2, device=device).unbind(-1)
        radius = (-2.0 * torch.log1p(-radius)).sqrt_()  # 1 - u lies above 0
        angle = angle * (2.0 * math.pi)
        values = torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(1)
        return values[:, :size].reshape(len(self.rows), *shape)

    def floats(self, purpose: str, count: int) -> list[float]:
        """What :meth:`uniform` gives to the first row, as numbers of Python: for the few draws of a worker."""
        return _floats(_state(self.seed(purpose), self.rows[0]), count)

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
