"""Test samples that a run has seen before: it trained on them, or its weights were chosen by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.open import open_parts
from maemm.model.model import Model
from maemm.tasks._shared.cache import cached, folder_for
from maemm.tasks._shared.embedding import contents
from maemm.tasks._shared.features import Features
from maemm.tasks._shared.inputs import Weights, data_stamp
from maemm.tasks._shared.overlap import Overlap, overlap

MOST_COMPARED = 100_000  # a training or validation part with more samples is not read again to look for test samples


@dataclass(frozen=True)
class Seen:
    """What the parts of a run share with a test part; None: no such part, or too large a one."""

    trained: Overlap | None
    chosen: Overlap | None

    @property
    def content(self) -> int:
        """Test samples with the content of a training sample, plus those with that of a validation sample."""
        return sum(part.content for part in (self.trained, self.chosen) if part is not None)

    @property
    def warnings(self) -> list[str]:
        """A line for each part that shares samples with the test part."""
        lines = []
        if self.trained is not None and self.trained.content:
            lines.append(str(self.trained))
        if self.chosen is not None and self.chosen.content:
            lines.append(
                f"{self.chosen.content:,} of {self.chosen.total:,} test samples are validation samples, by which the "
                "weights were chosen"
            )
        return lines

    def __str__(self) -> str:
        return "; ".join(self.warnings)


def seen(model: Model, weights: Weights, test: Features, *, workers: int = 0) -> Seen | None:
    """Which samples of ``test`` the model has seen, by digest of their content; None where its parts are too large.

    ``weights``: the run that the model comes from. Each of its parts is read once, without running the model, and its
    digests are cached. Raises :class:`MaemmError` where the data of its recipe are gone.
    """
    data = model.recipe.get("data") or {}
    train, validation = (
        None if part is None or len(part) > MOST_COMPARED else part for part in open_parts(model.recipe)
    )
    if train is None and validation is None:
        return None

    def shared(part: Source | None, *paths: Any) -> Overlap | None:
        if part is None:
            return None
        about = ["contents", model.recipe["modalities"], data_stamp(part, *paths)]
        digests = cached(folder_for(weights), about, lambda: {"contents": contents(model, part, workers=workers)})
        return overlap(digests["contents"], test)

    own, other = (data.get("root"), data.get("list")), data.get("validation")
    return Seen(shared(train, *own), shared(validation, *((other,) if isinstance(other, str) else own)))


def warnings_of(model: Model, weights: Weights, test: Features, *, workers: int = 0) -> list[str]:
    """Warnings about metrics on ``test``: samples that were seen before, or data that cannot be compared with."""
    data = model.recipe.get("data") or {}
    if not any(data.get(key) for key in ("root", "list", "mix")):
        return []  # published weights do not record what they were trained on
    try:
        shared = seen(model, weights, test, workers=workers)
    except (MaemmError, OSError) as error:
        return [f"the run's training data cannot be read, so they were not compared with the test samples: {error}"]
    return [] if shared is None else shared.warnings
