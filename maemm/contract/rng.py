"""Counted draws: every random number is a function of (seed, step or sample, purpose), never of a stream.

So a run resumes from its step number alone, and n processes draw what one process would have drawn.
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
    """A 63-bit seed from a key; equal on every machine and Python version."""
    text = "\x1f".join(str(part) for part in key).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class Rng:
    """Random numbers for the rows of a batch.

    On the device the key is (seed, step), ``total`` the global batch and ``rows`` the part of this process and
    micro-batch. In a worker the key is (seed, epoch, sample, repeat) and there is one row.
    """

    key: tuple[int | str, ...]
    rows: Sequence[int] = range(1)
    total: int = 1
    progress: float = 0.0  # share of the training that is done, for schedules of maskings and augmentations

    def seed(self, purpose: str) -> int:
        """An integer for foreign random code; see :func:`seeded`."""
        return derive(*self.key, purpose)

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """(rows, *shape) uniform in [0, 1), float32, on the CPU: the same on every machine.

        Drawn for the whole global batch, of which the own rows are returned. Only ``rand`` is used: in torch
        ``randn`` of a long tensor does not start with ``randn`` of a short one.
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
        """The same rows under a longer key."""
        return Rng((*self.key, *more), self.rows, self.total, self.progress)


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Run foreign random code (dropout, timm's augmentations) under a key; restores Python, NumPy and torch."""
    seed = derive(*key)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
    torch.set_rng_state(states[2])
