"""What a plugin promises, looked at when it is used: a mistake is told with the plugin, the method and the shape.

:func:`tokenized` and :func:`preprocessed` compare shapes at every call, which costs nothing; :func:`first_batch` looks
at values too and is called once a run. All rules, and more, are those of ``maemm plugins check``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from maemm.contract import Modality, ModalityInput, Preprocessed, Tokens
from maemm.contract.errors import MaemmError
from maemm.registry.make import who


@contextmanager
def _blaming(part: Any, method: str, expected: str) -> Iterator[None]:
    """Turn what a plugin's method raises into one line; a lack of memory stays what it is."""
    try:
        yield
    except (MaemmError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise MaemmError(
            f"{who(part)}: {method}() fails with {type(error).__name__}: {text}; expected {expected}, fix {method}()"
        ) from error


def _require(holds: bool, part: Any, method: str, received: Any, expected: str) -> None:
    if not holds:
        raise MaemmError(f"{who(part)}: {method}() gives {received}; expected {expected}, fix {method}()")


def _text(value: Any) -> str:
    return (
        f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}" if isinstance(value, Tensor) else repr(value)
    )


# ------------------------------------------------------------------------------------------------ at every call
def preprocessed(modality: Modality, raw: Any, rng: Any) -> Preprocessed:
    """``modality.preprocess``, or :class:`MaemmError` where it gives no ``Preprocessed`` of floats."""
    expected = "Preprocessed(x), x a float tensor (B, ...)"
    with _blaming(modality, "preprocess", expected):
        one = modality.preprocess(raw, rng)
    x = one.x if isinstance(one, Preprocessed) else one
    _require(isinstance(x, Tensor) and x.ndim > 0 and x.is_floating_point(), modality, "preprocess", _text(x), expected)
    return one


def tokenized(modality: Modality, one: Preprocessed) -> Tokens:
    """``modality.tokenize``, or :class:`MaemmError` where its shapes do not agree."""
    batch = one.x.shape[0]
    expected = f"Tokens with values ({batch}, N, ...)"
    with _blaming(modality, "tokenize", expected):
        tokens = modality.tokenize(one)
    _require(isinstance(tokens, Tokens), modality, "tokenize", type(tokens).__name__, expected)
    values, coords, valid = tokens.values, tokens.coords, tokens.valid
    good = values.ndim >= 3 and values.shape[0] == batch
    _require(good, modality, "tokenize", f"values {tuple(values.shape)}", f"({batch}, N, ...)")
    count = values.shape[1]
    good = coords.ndim == 3 and coords.shape[0] in (1, batch) and coords.shape[1] == count
    _require(good, modality, "tokenize", f"coords {tuple(coords.shape)}", f"(1 or {batch}, {count}, axes)")
    good = valid is None or (valid.shape == (batch, count) and valid.dtype == torch.bool)
    _require(good, modality, "tokenize", f"valid {_text(valid)}", f"({batch}, {count}) bool")
    return tokens


# ------------------------------------------------------------------------------------------------ once in a run
@torch.no_grad()
def first_batch(model: Any, inputs: dict[str, ModalityInput]) -> None:
    """Look at embeddings, positions, targets and losses of one batch. Changes nothing in the model.

    Raises :class:`MaemmError` that names the plugin, the method, what it gives and what was expected.
    """
    for name, planned in inputs.items():
        modality = model.modalities[name]
        was_training = modality.training
        modality.eval()  # running statistics stay as they are
        try:
            _check_embedding(model, modality, planned)
            if model.decoder is not None:
                _check_target(model, name, planned)
        finally:
            modality.train(was_training)


def _check_embedding(model: Any, modality: Modality, planned: ModalityInput) -> None:
    tokens, plan = planned.tokens, planned.plan
    visible, predict = tuple(plan.visible.shape), tuple(plan.predict.shape)
    _shape(modality, "embed", lambda: modality.embed(tokens, plan.visible), (*visible, model.encoder.dim))
    roles = [("encoder", plan.visible, visible, model.encoder.dim)]
    if model.decoder is not None:
        roles.append(("decoder", plan.predict, predict, model.decoder.dim))
    for role, index, (rows, count), dim in roles:
        expected = f"({rows} or 1, {count}, {dim}) for the {role}"
        with _blaming(modality, "position", expected):
            position = modality.position(tokens, index, role)
        good = isinstance(position, Tensor) and position.ndim == 3 and position.shape[0] in (1, rows)
        good = good and tuple(position.shape[1:]) == (count, dim)
        _require(good, modality, "position", _text(position), expected)


def _check_target(model: Any, name: str, planned: ModalityInput) -> None:
    modality, predict = model.modalities[name], planned.plan.predict
    if name in model.targets:
        part, method, outputs = model.targets[name], "forward", model.targets[name].output_dim()
    else:
        part, method, outputs = modality, "target", modality.output_dim()
    shape = (*predict.shape, outputs)

    def make() -> Tensor:
        return part(planned) if part is not modality else modality.target(planned.tokens, predict)

    target = _shape(part, method, make, shape, torch.float32)
    counted = target[planned.plan.counted > 0]
    if bool(planned.tokens.values.isfinite().all()):  # otherwise it is the data's fault, which the loop deals with
        expected = f"finite values {shape} float32"
        _require(bool(counted.isfinite().all()), part, method, "NaN or infinity for finite tokens", expected)
    _shape(
        modality, "loss", lambda: modality.loss(torch.zeros_like(target), target), tuple(predict.shape), torch.float32
    )


def _shape(
    part: Any, method: str, make: Callable[[], Tensor], shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> Tensor:
    """What ``make`` gives, of that shape and, where one is asked for, of that type."""
    expected = f"{shape}" + (f" {str(dtype).removeprefix('torch.')}" if dtype else "")
    with _blaming(part, method, expected):
        found = make()
    good = isinstance(found, Tensor) and tuple(found.shape) == shape and dtype in (None, found.dtype)
    _require(good, part, method, _text(found), expected)
    return found
