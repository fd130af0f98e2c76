"""``maemm reconstruct --latents``: signals beside what their latent tokens give back."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maemm.contract import Modality
from maemm.contract.errors import MaemmError
from maemm.data.encodable import encodable
from maemm.data.transfer import module_on_host, on_host
from maemm.model.decode import check_decodes
from maemm.model.model import Model
from maemm.tasks._shared.embedding import evaluating
from maemm.tasks._shared.inputs import evenly_spaced
from maemm.tasks._shared.latent_files import stored_latents
from maemm.ui.picture_rows import Rows
from maemm.ui.pictures import INPUT

_FARTHEST = 1e3  # times the largest input: what is decoded beyond is not drawn


def rows_of_samples(model: Model, raw: Mapping[str, Any]) -> tuple[dict[str, Rows], dict[str, list[float]]]:
    """Raw batches of samples on the device of the model -> ({modality: Rows}, {modality: PSNR of each sample, dB}).

    Raises :class:`MaemmError` for models whose latent tokens do not give the signal back.
    """
    check_decodes(model)
    with evaluating(model):
        inputs, latents = model.encode(model.preprocess(dict(raw), None))
        decoded = model.decode(latents, inputs)
        tokens = {name: x.tokens for name, x in inputs.items()}
    decoded, tokens = on_host((decoded, tokens))
    rows, psnr = {}, {}
    for name, signal in decoded.items():
        modality = module_on_host(model.modalities[name])
        own = tokens[name]
        values = own.values.float()
        if own.valid is not None:
            values = values.masked_fill(~own.valid[..., None], math.nan)
        true = modality.untokenize(values, own)
        assert true is not None  # decode() has put it together
        psnr[name] = psnr_of(modality, signal, true)
        names = [f"{value:.1f} dB" for value in psnr[name]]
        rows[name] = Rows({INPUT: true, _caption(model): _drawable(signal, true)}, names=names)
    return rows, psnr


def rows_of_stored(model: Model, path: str | os.PathLike, count: int) -> tuple[dict[str, Rows], list[str]] | None:
    """({modality: Rows of at most ``count`` samples}, their ids) of a file of latent tokens; None: it is no such file.

    Raises :class:`MaemmError` for latents of another shape than the model's.
    """
    stored = stored_latents(path)
    if stored is None:
        return None
    check_decodes(model)
    latents, ids = stored
    chosen = evenly_spaced(len(ids), count)
    if not chosen:
        raise MaemmError(f"{path} holds no sample; embed data that is not empty")
    with evaluating(model):
        decoded = model.decode(torch.from_numpy(np.ascontiguousarray(latents[chosen], np.float32)))
    shown = [ids[index] for index in chosen]
    caption = _caption(model)
    rows = {name: Rows({caption: _drawable(x, x)}, names=shown) for name, x in on_host(decoded).items()}
    return rows, shown


def psnr_of(modality: Modality, decoded: Tensor, true: Tensor) -> list[float]:
    """Peak signal-to-noise ratio of each sample in dB, in the unit of the data: 10 log10(range^2 / mean squared error).

    The range is the modality's :attr:`value_range`, to which what was decoded is cut, or that of ``true`` (R, ...),
    all samples together. NaN is left out.
    """
    true, decoded = modality.denormalize_input(true), modality.denormalize_input(decoded)
    known = true[true.isfinite()]
    low, high = modality.value_range or (float(known.min()), float(known.max()))
    errors = (decoded.clamp(low, high) - true).square().flatten(1).nanmean(1)
    peak = max(high - low, 1e-12)
    return [10 * math.log10(peak**2 / max(error, 1e-20 * peak**2)) for error in errors.tolist()]


def _caption(model: Model) -> str:
    assert model.encoder.latent_shape is not None  # check_decodes() has asked
    count, width = model.encoder.latent_shape
    return f"from {count} x {width} latents"


def _drawable(signal: Tensor, true: Tensor) -> Tensor:
    largest = _FARTHEST * max(1.0, float(true.nan_to_num(0, 0, 0).abs().amax()))
    return encodable(signal, -largest, largest, math.nan)
