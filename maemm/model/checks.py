"""Checks of what plugins return, made where it is used; errors name the plugin, the method and the shapes.

:func:`tokenized` and :func:`preprocessed` compare shapes at every call, at no cost; :func:`first_batch` also looks at
values and is called once per run. ``maemm plugins check`` has all these rules and more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from maemm.contract import Modality, ModalityInput, Preprocessed, Tokens
from maemm.contract.errors import MaemmError
from maemm.registry.make import describe_owner


@contextmanager
def _blaming(part: Any, method: str, expected: str) -> Iterator[None]:
    """Turn an exception of a plugin's method into :class:`MaemmError`, except for out of memory."""
    try:
        yield
    except (MaemmError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise MaemmError(
            f"{describe_owner(part)}: {method}() fails with {type(error).__name__}: {text}; "
            f"expected {expected}, fix {method}()"
        ) from error


def _require(holds: bool, part: Any, method: str, received: Any, expected: str) -> None:
    if not holds:
        raise MaemmError(f"{describe_owner(part)}: {method}() gives {received}; expected {expected}, fix {method}()")


def _text(value: Any) -> str:
    return (
        f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}" if isinstance(value, Tensor) else repr(value)
    )


# ------------------------------------------------------------------------------------------------- in every call
def preprocessed(modality: Modality, raw: Any, rng: Any) -> Preprocessed:
    """``modality.preprocess(raw, rng)``. Raises :class:`MaemmError` where x is not a tensor of floats."""
    expected = "Preprocessed(x), x a float tensor (B, ...)"
    with _blaming(modality, "preprocess", expected):
        result = modality.preprocess(raw, rng)
    x = result.x if isinstance(result, Preprocessed) else result
    _require(isinstance(x, Tensor) and x.ndim > 0 and x.is_floating_point(), modality, "preprocess", _text(x), expected)
    return result


def tokenized(modality: Modality, batch: Preprocessed) -> Tokens:
    """``modality.tokenize(batch)``. Raises :class:`MaemmError` where shapes do not agree."""
    samples = batch.x.shape[0]
    expected = f"Tokens with values ({samples}, N, ...)"
    with _blaming(modality, "tokenize", expected):
        tokens = modality.tokenize(batch)
    _require(isinstance(tokens, Tokens), modality, "tokenize", type(tokens).__name__, expected)
    values, coords, valid = tokens.values, tokens.coords, tokens.valid
    good = values.ndim >= 3 and values.shape[0] == samples
    _require(good, modality, "tokenize", f"values {tuple(values.shape)}", f"({samples}, N, ...)")
    count = values.shape[1]
    good = coords.ndim == 3 and coords.shape[0] in (1, samples) and coords.shape[1] == count
    _require(good, modality, "tokenize", f"coords {tuple(coords.shape)}", f"(1 or {samples}, {count}, axes)")
    good = valid is None or (valid.shape == (samples, count) and valid.dtype == torch.bool)
    _require(good, modality, "tokenize", f"valid {_text(valid)}", f"({samples}, {count}) bool")
    return tokens


# -------------------------------------------------------------------------------------------------- once per run
@torch.no_grad()
def first_batch(model: Any, inputs: dict[str, ModalityInput]) -> None:
    """Check embeddings, positions, targets and losses of one batch, as ``Model.plan`` returns it.

    The model is not changed. Raises :class:`MaemmError`, which names the plugin, the method, what it returns and what
    is expected.
    """
    for name, x in inputs.items():
        modality = model.modalities[name]
        was_training = modality.training
        modality.eval()  # running statistics stay as they are
        try:
            _check_embedding(model, modality, x)
            if model.decoder is not None:
                _check_target(model, name, x)
        finally:
            modality.train(was_training)


def _check_embedding(model: Any, modality: Modality, x: ModalityInput) -> None:
    tokens, plan = x.tokens, x.plan
    visible, predict = tuple(plan.visible.shape), tuple(plan.predict.shape)
    _shape(modality, "embed", lambda: modality.embed(tokens, plan.visible), (*visible, model.encoder.dim))
    roles = [("encoder", plan.visible, visible, model.encoder.dim)]
    if model.decoder is not None and model.decoder.dim is not None:
        roles.append(("decoder", plan.predict, predict, model.decoder.dim))
    for role, index, (rows, count), dim in roles:
        expected = f"({rows} or 1, {count}, {dim}) for the {role}"
        with _blaming(modality, "position", expected):
            position = modality.position(tokens, index, role)
        good = isinstance(position, Tensor) and position.ndim == 3 and position.shape[0] in (1, rows)
        good = good and tuple(position.shape[1:]) == (count, dim)
        _require(good, modality, "position", _text(position), expected)


def _check_target(model: Any, name: str, x: ModalityInput) -> None:
    modality, predict = model.modalities[name], x.plan.predict
    if name in model.targets:
        part, method = model.targets[name], "forward"
    else:
        part, method = modality, "target"
    width = part.output_dim()
    shape = (*predict.shape, part.target_dim())

    def compute() -> Tensor:
        return part(x, predict) if part is not modality else modality.target(x.tokens, predict)

    target = _shape(part, method, compute, shape, torch.float32)
    counted = target[x.plan.counted > 0]
    if bool(x.tokens.values.isfinite().all()):  # otherwise the data are at fault, which the training loop handles
        expected = f"finite values {shape} float32"
        _require(bool(counted.isfinite().all()), part, method, "NaN or infinity for finite tokens", expected)
    pred = target.new_zeros(*predict.shape, width)
    _shape(part, "loss", lambda: part.loss(pred, target), tuple(predict.shape), torch.float32)


def _shape(
    part: Any, method: str, compute: Callable[[], Tensor], shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> Tensor:
    """``compute()``, checked for the shape and, if given, the dtype."""
    expected = f"{shape}" + (f" {str(dtype).removeprefix('torch.')}" if dtype else "")
    with _blaming(part, method, expected):
        result = compute()
    good = isinstance(result, Tensor) and tuple(result.shape) == shape and dtype in (None, result.dtype)
    _require(good, part, method, _text(result), expected)
    return result
