"""How long a training is: its samples, its steps, and what storage must give for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from maemm.contract import Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.bad_samples import reason_of
from maemm.data.mixture import Mixture, MixtureBatches, Part
from maemm.data.open import open_parts
from maemm.train.distributed import DistContext
from maemm.train.setup import make_order

_MOST_FILES = 500  # whose sizes are asked for


class Told(Source):
    """A source of which the number of samples alone is known."""

    def __init__(self, samples: int):
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def read(self, index: int, rng: Rng) -> Sample:
        raise MaemmError("these samples are only counted; give data.root to read some")


@dataclass(frozen=True)
class Kind:
    """Steps of one kind: a mixed run has one for each data set, others one."""

    modalities: tuple[str, ...] | None  # None: all
    share: float  # of all steps


@dataclass(frozen=True)
class Length:
    """Of one training."""

    samples: int | None  # of the data; None: not known, and not needed as the recipe says how many steps
    steps: int
    rows: int  # samples of a micro-batch
    accumulation: int  # micro-batches of a step of one GPU
    kinds: tuple[Kind, ...]
    sample_bytes: float | None  # of storage for each row of a batch, of data that are here
    note: str  # where the number of samples is from


def length_of(recipe: Mapping[str, Any], gpus: int, samples: int | None) -> Length:
    """The length of a recipe's training on ``gpus``; ``samples``: of the data, None: they are opened and counted.

    Of a mixture each set has as many. Raises :class:`MaemmError` where they are not here and not told, and where batch,
    ranks and micro-batches do not divide each other.
    """
    train, data = recipe["train"], recipe["data"]
    source = None if samples is not None else _source(recipe, needed=not train.get("steps"))
    size = None if source is None else _sample_bytes(source)
    known: int | None
    if source is not None:
        known, note = len(source), "counted in the data"
    else:
        known, note = samples, "as told" if samples is not None else "not needed, as the recipe gives the steps"
        source = _told(data, train["batch"] if samples is None else samples)
    # How many steps there are does not depend on which samples a step takes.
    order = make_order({**recipe, "data": {**data, "shuffle": "exact", "balance": False}}, source, _ranks(gpus))
    steps = train.get("steps") or train["epochs"] * order.steps_per_epoch
    repeats = data.get("aug_repeats") or 1
    if isinstance(order, MixtureBatches) and isinstance(source, Mixture):
        kinds = tuple(
            Kind(part.modalities, count / order.steps_per_epoch)
            for part, count in zip(source.parts.values(), order.steps, strict=True)
        )
        repeats = 1 / sum(
            kind.share / part.aug_repeats for kind, part in zip(kinds, source.parts.values(), strict=True)
        )
    else:
        kinds = (Kind(None, 1.0),)
    rows = train["batch"] // gpus // order.accumulation
    return Length(known, steps, rows, order.accumulation, kinds, size and size / repeats, note)


def _ranks(gpus: int) -> DistContext:
    return DistContext(world_size=gpus)


def _told(data: Mapping[str, Any], samples: int) -> Source:
    if not data.get("mix"):
        return Told(samples)
    return Mixture(
        {
            name: Part(
                Told(samples),
                tuple(part.get("modalities") or ()),
                part.get("passes") or 1.0,
                part.get("aug_repeats") or data.get("aug_repeats") or 1,
            )
            for name, part in data["mix"].items()
        }
    )


def _source(recipe: Mapping[str, Any], needed: bool) -> Source | None:
    """The training samples, if they are here. Raises :class:`MaemmError` where they are ``needed`` and not here."""
    try:
        return open_parts(dict(recipe))[0]
    except Exception as error:
        if not needed:
            return None
        reason = str(error) if isinstance(error, MaemmError) else reason_of(error)
        raise MaemmError(
            f"the number of samples is not known, as the data cannot be opened ({reason.partition(';')[0]}); add "
            "--data N, or data.root=FOLDER"
        ) from None


def _sample_bytes(source: Source) -> float | None:
    """Bytes of a sample in its files, from the sizes of some of them; None where it has none."""
    files = [*islice(source.files(), 10 * len(source) + 1)]
    sizes = []
    for path in files[:: max(1, len(files) // _MOST_FILES)]:
        try:
            sizes.append(os.path.getsize(path))
        except OSError:
            continue
    return sum(sizes) / len(sizes) * len(files) / len(source) if sizes and len(source) else None
