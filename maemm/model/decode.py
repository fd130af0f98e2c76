"""From latent tokens back to the signal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from maemm.contract import Latents, Modality, ModalityInput, Plan, Preprocessed, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.transfer import to_device
from maemm.model.precision import float32


def decode(
    model: Any, latents: Tensor | Mapping[str, Tensor] | Latents, inputs: Mapping[str, ModalityInput] | None = None
) -> dict[str, Tensor]:
    """See :meth:`maemm.Model.decode`."""
    check_decodes(model)
    tokens = _checked(model, latents)
    rows, device = len(tokens), tokens.device
    if inputs is None:
        inputs = {name: _empty(name, modality, rows, device) for name, modality in model.modalities.items()}
    else:
        inputs = {name: replace(x, plan=_everything(x.tokens)) for name, x in inputs.items()}
        sizes = {x.tokens.batch for x in inputs.values()}
        if sizes != {rows}:
            raise MaemmError(
                f"there are latents of {rows} samples and inputs of {sorted(sizes)}; give those of one batch"
            )
    key = "joint" if len(inputs) > 1 else next(iter(inputs))
    with model.autocast():
        pred = model.decoder(Latents({}, latent_tokens={key: tokens}), inputs, model.modalities)
    pred, signals = float32(pred), {}
    for name, x in inputs.items():
        modality = model.modalities[name]
        values = modality.denormalize_target(pred[name], x.tokens, x.plan.predict)
        if x.tokens.valid is not None:
            values = values.masked_fill(~x.tokens.valid[..., None], float("nan"))
        signal = modality.untokenize(values, x.tokens, x.plan.predict)
        if signal is None:
            raise MaemmError(f"the signal of {name!r} cannot be put together from its tokens; give it an untokenize()")
        signals[name] = signal
    return signals


def check_decodes(model: Any) -> None:
    """Raises :class:`MaemmError` where a signal cannot be made of the model's latent tokens alone."""
    if model.encoder.latent_shape is None:
        raise MaemmError(
            f"{type(model.encoder).__name__} has no latent tokens to decode (encoder.type); give weights with "
            "encoder.type=latent"
        )
    if model.decoder is None:
        raise MaemmError("this model has no decoder (encoder-only weights); load a file with one")
    for name, modality in model.modalities.items():
        if name in model.targets:
            raise MaemmError(
                f"the model predicts a target in place of {name!r}, not the signal (modalities.{name}.target); train "
                "one that predicts the signal"
            )
        if getattr(modality, "normalize", "none") != "none":
            raise MaemmError(
                f"the model predicts patches of {name!r} without their mean and variance, which latents alone do not "
                f"give back (modalities.{name}.normalize); train with normalize: none"
            )


def _checked(model: Any, latents: Tensor | Mapping[str, Tensor] | Latents) -> Tensor:
    """Latent tokens (B, L, C), on the device of the model and in its precision."""
    value: Any = latents.latent_tokens if isinstance(latents, Latents) else latents
    if isinstance(value, Mapping):
        if len(value) != 1:
            raise MaemmError(f"latent tokens are one tensor, shared by all modalities, not {len(value)}; give one")
        value = next(iter(value.values()))
    count, width = model.encoder.latent_shape
    if not isinstance(value, Tensor) or value.ndim != 3 or tuple(value.shape[1:]) != (count, width):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise MaemmError(f"latent tokens are (B, {count}, {width}) in this model, not {shape}; give those of embed")
    weights = next(model.parameters())
    moved: Tensor = to_device(value, weights.device)
    return moved if moved.dtype == weights.dtype else moved.to(weights.dtype)


def _empty(name: str, modality: Modality, rows: int, device: torch.device) -> ModalityInput:
    """A batch of the usual size with no values, of which the decoder reads where the tokens are."""
    shape = modality.sample_shape()
    if shape is None or modality.token_shapes() != 1:
        raise MaemmError(
            f"samples of {name!r} have no usual size, which latents do not tell; give the samples, or the inputs that "
            "model.encode returned beside them"
        )
    preprocessed = Preprocessed(to_device(modality.example(1, Rng(("decode", name))).x, device))
    tokens = modality.tokenize(preprocessed)
    if tokens.grid is None:
        raise MaemmError(
            f"where the tokens of {name!r} are is part of each sample, which latents do not tell; give the samples, or "
            "the inputs that model.encode returned beside them"
        )
    values = tokens.values.new_zeros(1, *tokens.values.shape[1:]).expand(rows, *tokens.values.shape[1:])
    tokens = replace(tokens, values=values, valid=None, known=None)
    return ModalityInput(tokens, _everything(tokens), preprocessed)


def _everything(tokens: Tokens) -> Plan:
    """A plan that predicts every token of every sample, padding too."""
    index = replace(tokens, rows=None).all_indices()
    return Plan(index[:, :0], index)
