"""``maemm reconstruct``: pictures of how a trained or published model reconstructs samples of any data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from maemm.config.paths import expanded
from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.bad_samples import BadSample, reason_of
from maemm.data.loader import name_of
from maemm.data.locks import writes
from maemm.data.transfer import on_host, to_device
from maemm.model.model import Model
from maemm.tasks._shared.inputs import Data, Weights, open_data, usual_device
from maemm.tasks.reconstruct.round_trip import rows_of_samples, rows_of_stored
from maemm.ui.interactive import save_interactive
from maemm.ui.pictures import DIVERGED, draw_rows, make_rows
from maemm.weights import load

_TRIES = 50  # samples that are read for each picture at most, so that a folder of broken files ends soon


@dataclass(frozen=True)
class Reconstruction:
    """What :func:`reconstruct` wrote."""

    path: Path
    shown: list[str]  # ids of the samples, top to bottom
    skipped: list[BadSample]
    view: Path | None = None  # an HTML fragment with 3D views, players or animations
    psnr: dict[str, list[float]] | None = None  # dB of each sample, by modality, of what latents give back

    def __str__(self) -> str:
        skipped = ""
        if self.skipped:
            skipped = f", {len(self.skipped)} skipped (first: {self.skipped[0].id}: {self.skipped[0].reason})"
        view = f" and {self.view}" if self.view else ""
        columns = "input | visible | reconstruction"
        if self.psnr is not None:
            means = ", ".join(f"PSNR of {name} {fmean(values):.2f} dB" for name, values in self.psnr.items())
            columns = f"input | decoded, {means}" if means else "decoded"
        return f"{len(self.shown)} samples: {columns} -> {self.path}{view}{skipped}"


@writes("out")
def reconstruct(
    weights: Weights,
    data: Data,
    out: str | os.PathLike = "reconstruction.png",
    *,
    count: int = 8,
    seed: int = 0,
    latents: bool = False,
    **settings: Any,
) -> Reconstruction:
    """Draw input, visible part and reconstruction of ``count`` samples of ``data`` to the PNG ``out``.

    Clips, sounds and 3D shapes also go to ``NAME.view.html`` beside ``NAME.png``, where they can be played and turned.
    ``weights``: a run or checkpoint folder, a weights file, or a model. ``data`` as in
    :func:`maemm.tasks.embed.run.embed`. ``seed``: of the masks. ``latents``: nothing is hidden, and samples are drawn
    beside what their latent tokens give back, with its PSNR; ``data`` may then be a file of latent tokens that
    ``embed`` has stored. ``settings`` go to :func:`maemm.load`. Weights are
    loaded to the GPU where there is one, a model runs on its device. Raises
    :class:`MaemmError` for weights without a decoder or with NaN, for data that cannot be opened, and where no sample
    can be read.
    """
    model = weights if isinstance(weights, Model) else load(weights, **settings).to(usual_device())
    if model.decoder is None:
        raise MaemmError(f"reconstruct needs a decoder ({weights} holds an encoder only); load a file with one")
    _check_finite(model, weights)
    path = expanded(out)
    if latents and isinstance(data, str | os.PathLike) and (stored := rows_of_stored(model, expanded(data), count)):
        rows, shown = stored
        return Reconstruction(draw_rows(model.modalities, rows, path), shown, [], psnr={})
    loaded, shown, skipped = _load_samples(model, open_data(model.recipe, data), count)
    raw = {name: modality.collate([sample[name] for sample in loaded]) for name, modality in model.modalities.items()}
    raw = to_device(raw, next(model.parameters()).device)
    if latents:
        rows, psnr = rows_of_samples(model, raw)
        path = draw_rows(model.modalities, rows, path)
        view = save_interactive(model.modalities, rows, path.with_suffix(".view.html"))
        return Reconstruction(path, shown, skipped, view, psnr)
    rows = make_rows(model, model.preprocess(raw, None), seed, count)
    if all(row.note == DIVERGED for row in rows.values()):
        raise MaemmError(f"nothing that the model predicts is a finite number ({weights}); use an earlier checkpoint")
    path = draw_rows(model.modalities, rows, path)
    view = save_interactive(model.modalities, rows, path.with_suffix(".view.html"))
    return Reconstruction(path, shown, skipped, view)


def _check_finite(model: Model, weights: Any) -> None:
    """Raises :class:`MaemmError` for weights with NaN or infinity: pictures of them would show nothing."""
    finite = on_host({name: parameter.isfinite().all() for name, parameter in model.named_parameters()})
    for name, is_finite in finite.items():
        if not is_finite:
            where = "the model" if isinstance(weights, Model) else weights
            raise MaemmError(f"weights are not finite numbers ({where}: {name}); use an earlier checkpoint")


def _load_samples(model: Model, source: Source, count: int) -> tuple[list[dict[str, Any]], list[str], list[BadSample]]:
    """(samples {modality: loaded}, their ids, unreadable ones).

    ``count`` samples at regular intervals; an unreadable one is replaced by the next.
    """
    total = len(source)
    loaded: list[dict[str, Any]] = []
    shown: list[str] = []
    skipped: list[BadSample] = []
    tried: set[int] = set()
    for k in range(min(count, total)):
        for step in range(min(total, _TRIES)):
            index = ((k * total // count if total > count else k) + step) % total
            if index in tried:
                continue
            tried.add(index)
            try:
                sample = source.read(index, Rng(("reconstruct", index)))
                inputs = {name: modality.load(sample.raw[name], None) for name, modality in model.modalities.items()}
            except (MemoryError, MaemmError):
                raise
            except Exception as error:  # whatever a broken file does
                skipped.append(BadSample(index, name_of(source, index), reason_of(error)))
                continue
            loaded.append(inputs)
            shown.append(sample.id)
            break
    if not loaded:
        reason = f" ({skipped[0].id}: {skipped[0].reason})" if skipped else ""
        raise MaemmError(f"none of {len(skipped)} samples can be read{reason}; give other data")
    return loaded, shown, skipped
