"""The toy modality, its source and an objective that couples samples."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from maemm.contract import Preprocessed, Sample, Source
from maemm.contract.grid import GridModality
from maemm.contract.rng import Rng
from maemm.model.objectives.reconstruct import Reconstruct


class Toy(GridModality):
    """Noise is added in the worker, and each picture is turned over or not on the device.

    Options
        size: sides
        patch: sides of a patch
        norm: a batch norm in front, whose running statistics move
    """

    per_micro_batch = True  # the batch norm may see a part of a batch

    def __init__(self, *, size: int = 8, patch: int = 2, norm: bool = False, **rest: Any):
        super().__init__(size=size, patch=patch, channels=1, **rest)
        self.norm = torch.nn.BatchNorm1d(patch * patch) if norm else None

    def load(self, raw: np.ndarray, rng: Rng | None) -> dict:
        x = torch.from_numpy(raw)
        if rng is not None:
            x = x + 0.1 * torch.from_numpy(rng.numpy("noise").standard_normal(x.shape).astype("float32"))
        return {"x": x}

    def preprocess(self, raw: dict, rng: Rng | None) -> Preprocessed:
        x = raw["x"].float()
        if rng is not None:
            turned = rng.uniform("turn", device=x.device)[:, None, None, None] < 0.5
            x = torch.where(turned, x.flip(-1), x)
        return Preprocessed(x)

    def side_input(self, name: str, loaded: Any, rng: Rng | None) -> torch.Tensor:
        if name != "brightness":
            return super().side_input(name, loaded, rng)
        return loaded["x"].mean((0, 1))  # of each column

    def embed(self, tokens: Any, index: torch.Tensor) -> torch.Tensor:
        embedded = super().embed(tokens, index)
        if self.norm is not None:
            self.norm(tokens.values.flatten(0, 1))
        return embedded


class Toys(Source):
    """Waves of a direction and length that follow from the index; ``other`` is the same wave turned by 90 degrees."""

    def __init__(
        self,
        samples: int,
        bad: Sequence[int],
        nan: Sequence[int],
        delay: float,
        salt: int,
        lacks: dict | None = None,
        labels: int | None = None,
        loud: Sequence[int] = (),
    ):
        self.samples, self.bad, self.nan, self.delay, self.salt = samples, set(bad), set(nan), delay, salt
        self.lacks, self.labels, self.loud = lacks or {}, labels, set(loud)
        self.classes = None if labels is None else [f"class {number}" for number in range(labels)]

    def __len__(self) -> int:
        return self.samples

    def name(self, index: int) -> str:
        return f"toy-{index}"

    def fingerprint(self) -> str:
        return f"toys:{self.samples}:{self.salt}"

    def read(self, index: int, rng: Rng) -> Sample:
        time.sleep(self.delay)
        if index in self.bad:
            raise ValueError("broken on purpose")
        angle = index * 0.37
        y, x = np.mgrid[0:8, 0:8].astype(np.float32)
        wave = np.sin(0.8 * (np.cos(angle) * x + np.sin(angle) * y) + index)[None].astype(np.float32)
        toy = np.full_like(wave, np.nan) if index in self.nan else wave * (30 if index in self.loud else 1)
        raw = {"toy": toy, "other": np.rot90(wave, axes=(1, 2)).copy()}
        kept = {k: v for k, v in raw.items() if index not in self.lacks.get(k, ())}
        return Sample(kept, self.name(index), None if self.labels is None else index % self.labels)


def open_toys(
    root: str | None,
    list: str | None = None,
    *,
    samples: int = 64,
    bad: Sequence[int] = (),
    nan: Sequence[int] = (),
    delay: float = 0.0,
    salt: int = 0,
    lacks: dict[str, Sequence[int]] | None = None,
    labels: int | None = None,
    loud: Sequence[int] = (),
) -> Source:
    """Options
    samples: how many
    bad: indices that cannot be read
    nan: indices that are not finite
    delay: seconds that one takes
    salt: changes the fingerprint
    lacks: {modality: indices of the samples that lack it}
    labels: number of classes
    loud: indices of samples that are 30 times as large
    """
    return Toys(samples, bad, nan, delay, salt, lacks, labels, loud)


class Coupled(Reconstruct):
    """Claims to compare samples with each other.

    Options
        per_micro_batch: allow micro-batches
    """

    coupled = True

    def __init__(self, name: str, *, per_micro_batch: bool = False, **rest: Any):
        super().__init__(name, **rest)
        self.per_micro_batch = per_micro_batch
