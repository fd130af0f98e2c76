"""Counter-based random numbers: each is a function of (seed, step or sample, purpose), never of a stream's state.

A run therefore resumes from its step number alone, and n ranks together draw what a single rank would draw.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def derive(*key: int | str) -> int:
    """A 63-bit seed from a key; the same on every machine and Python version."""
    text = "\x1f".join(str(part) for part in key).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


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

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """(rows, *shape) uniform in [0, 1), float32, on the CPU: the same on every machine.

        Drawn for the whole global batch, of which the rows of this rank are returned. Only ``torch.rand`` is used:
        ``torch.randn`` of a long tensor does not begin with ``torch.randn`` of a short one.
        """
        generator = torch.Generator().manual_seed(self.seed(purpose))
        whole = torch.rand(self.total, *shape, generator=generator)
        if len(self.rows) == self.total:
            return whole
        return whole[torch.as_tensor(self.rows, dtype=torch.long)]

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
