"""``maemm reconstruct``: pictures of what a trained or published model makes of somebody's own files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maemm.contract import Preprocessed, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.model.model import Model
from maemm.ui.interactive import save_interactive
from maemm.ui.pictures import draw_rows, make_rows

_TRIES = 50  # samples looked at for each one shown, so that a folder of broken files ends soon


@dataclass(frozen=True)
class Reconstruction:
    """What :func:`reconstruct` wrote."""

    path: Path
    shown: list[str]  # ids of the samples, top to bottom
    skipped: list[str]  # "id: reason" of samples that could not be read
    view: Path | None = None  # an HTML piece of what can be turned, played or moves

    def __str__(self) -> str:
        skipped = f", {len(self.skipped)} unreadable left out (first: {self.skipped[0]})" if self.skipped else ""
        view = f" and {self.view}" if self.view else ""
        return f"{len(self.shown)} samples: input | visible | reconstruction -> {self.path}{view}{skipped}"


def reconstruct(
    what: str | os.PathLike | Model,
    data: str | os.PathLike,
    out: str | os.PathLike = "reconstruction.png",
    *,
    count: int = 8,
    seed: int = 0,
    **known: Any,
) -> Reconstruction:
    """Draw input, visible part and reconstruction of ``count`` samples of ``data`` to the PNG ``out``.

    Clips that move, sounds that play and shapes that turn go to ``NAME.view.html`` beside ``NAME.png``.
    ``what``: a run or checkpoint folder, a weights file, or a model. ``data``: what the modality's source reads.
    ``seed`` chooses the hidden tokens. ``known`` goes to :func:`maemm.load`. Raises :class:`MaemmError` for
    weights without a decoder, for data that cannot be opened and where no sample can be read.
    """
    model = _model(what, known)
    source = open_source(model.recipe, data)
    raw, shown, skipped = _samples(model, source, count)
    made = make_rows(model, _batch(model, raw), seed, count)
    path = draw_rows(model.modalities, made, out)
    return Reconstruction(
        path, shown, skipped, save_interactive(model.modalities, made, path.with_suffix(".view.html"))
    )


def _model(what: str | os.PathLike | Model, known: dict[str, Any]) -> Model:
    if isinstance(what, Model):
        model = what
    else:
        from maemm.weights import load

        model = load(Path(what), **known)
    if model.decoder is None:
        raise MaemmError(f"reconstruct needs a decoder ({what} holds an encoder only); load a file with one")
    return model


def open_source(recipe: dict[str, Any], data: str | os.PathLike) -> Source:
    """The recipe's source, or the one of its modality's type, on other data."""
    from maemm.data.open import open_source as open_one

    source = (recipe.get("data") or {}).get("source")
    return open_one({**recipe, "data": {"root": os.fspath(data), "list": None, "source": source}})


def _samples(model: Model, source: Source, count: int) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """``count`` readable samples, spread evenly; an unreadable one is replaced by the next."""
    total = len(source)
    loaded: list[dict[str, Any]] = []
    shown: list[str] = []
    skipped: list[str] = []
    taken: set[int] = set()
    for k in range(min(count, total)):
        for step in range(min(total, _TRIES)):
            index = (k * total // count if total > count else k) + step
            index %= total
            if index in taken:
                continue
            taken.add(index)
            try:
                sample = source.read(index, Rng(("reconstruct", index)))
                loaded.append({name: one.load(sample.raw[name], None) for name, one in model.modalities.items()})
            except (MemoryError, MaemmError):
                raise
            except Exception as error:  # whatever a broken file does
                skipped.append(f"{source.name(index)}: {' '.join(str(error).split()) or type(error).__name__}")
                continue
            shown.append(sample.id)
            break
    if not loaded:
        reason = f" ({skipped[0]})" if skipped else ""
        raise MaemmError(f"none of {len(skipped)} samples can be read{reason}; give other data")
    return loaded, shown, skipped


def _batch(model: Model, loaded: list[dict[str, Any]]) -> dict[str, Preprocessed]:
    raw = {name: one.collate([interactive[name] for interactive in loaded]) for name, one in model.modalities.items()}
    return model.preprocess(raw, None)
