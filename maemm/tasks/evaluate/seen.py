"""Test samples that a run has seen before: in what it learned from, and in what its weights were chosen by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.model.model import Model
from maemm.tasks._shared.cache import cached, folder_for
from maemm.tasks._shared.features import Features, contents
from maemm.tasks._shared.inputs import Weights, data_stamp
from maemm.tasks._shared.splits import Overlap, overlap

MOST_COMPARED = 100_000  # samples of a part that are read once more to look for test samples among them


@dataclass(frozen=True)
class Seen:
    """What the parts of a run share with a test part; None: no such part, or too large a one."""

    trained: Overlap | None
    chosen: Overlap | None

    @property
    def content(self) -> int:
        """Test samples with the content of any of either part."""
        return sum(one.content for one in (self.trained, self.chosen) if one is not None)

    @property
    def warnings(self) -> list[str]:
        """A line for each part that shares any."""
        found = []
        if self.trained is not None and self.trained.content:
            found.append(str(self.trained))
        if self.chosen is not None and self.chosen.content:
            found.append(
                f"{self.chosen.content:,} of {self.chosen.total:,} test samples are validation samples, by which the "
                "weights were chosen"
            )
        return found

    def __str__(self) -> str:
        return "; ".join(self.warnings)


def seen(model: Model, what: Weights, test: Features, *, workers: int = 0) -> Seen | None:
    """What of ``test`` the model of ``what`` has seen, by what is loaded; None where its parts are too large to read.

    Each part is read once without the model, and known from then on. Raises :class:`MaemmError` where the data of its
    recipe are gone.
    """
    from maemm.data.open import open_parts

    data = model.recipe.get("data") or {}
    parts = open_parts(model.recipe)
    parts = [None if one is None or len(one) > MOST_COMPARED else one for one in parts]
    if parts == [None, None]:
        return None

    def shared(part: Source | None, *places: Any) -> Overlap | None:
        if part is None:
            return None
        about = ["contents", model.recipe["modalities"], data_stamp(part, *places)]
        found = cached(folder_for(what), about, lambda: {"contents": contents(model, part, workers=workers)})
        return overlap(found["contents"], test)

    own, other = (data.get("root"), data.get("list")), data.get("validation")
    return Seen(shared(parts[0], *own), shared(parts[1], *((other,) if isinstance(other, str) else own)))


def warnings_of(model: Model, what: Weights, test: Features, *, workers: int = 0) -> list[str]:
    """What to say beside figures on ``test``; also where nobody could look."""
    data = model.recipe.get("data") or {}
    if not any(data.get(key) for key in ("root", "list", "mix")):
        return []  # published weights do not tell what they were trained with
    try:
        found = seen(model, what, test, workers=workers)
    except (MaemmError, OSError) as error:
        return [f"what the run was trained with cannot be read, so no test sample was looked for in it: {error}"]
    return [] if found is None else found.warnings
