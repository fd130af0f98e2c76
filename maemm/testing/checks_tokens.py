"""Rules of examples and tokens, and of random numbers."""

from __future__ import annotations

import math
import pickle
import random
from typing import Any

import numpy as np
import torch

from maemm.contract import Preprocessed
from maemm.contract.errors import MaemmError
from maemm.testing.case import ROWS, Case, check


@check("modalities", needs=["part_can_be_imported"])
def example_is_repeatable(case: Case) -> None:
    """example() gives finite floats, equal for equal ``rng`` and different for others."""
    x, again, other = case.example().x, case.example().x, case.example(key=1).x
    change = "take every random number in example() from its rng"
    case.require(x.shape[0] == ROWS, "example() has the requested batch size", x.shape[0], ROWS, change)
    case.require(x.is_floating_point(), "example() is float", x.dtype, "a float dtype", "convert it")
    case.require(x.isfinite().all(), "example() is finite", "NaN or infinity", "finite values", change)
    case.equal(again, x, "equal rng gives equal examples", change)
    differ = other.shape != x.shape or not torch.equal(other, x)
    case.require(differ, "another rng gives another example", "the same example", "another one", change)


@check("modalities", needs=["tokens_agree"])
def tokenize_keeps_its_input(case: Case) -> None:
    """tokenize() does not modify the preprocessed batch, and gives the same tokens each time."""
    preprocessed, modality = case.example(), case.modality()
    before = preprocessed.x.clone()
    first = modality.tokenize(preprocessed).values.clone()
    change = "make no in-place changes to x in tokenize()"
    case.equal(preprocessed.x, before, "tokenize() does not modify its input", change)
    case.equal(modality.tokenize(preprocessed).values, first, "the same signal gives the same tokens", change)


@check("modalities", needs=["example_is_repeatable"])
def tokens_agree(case: Case) -> None:
    """Values (B, N, ...), coords (B or 1, N, A), valid (B, N) and the grid agree in B and N; all are finite."""
    tokens, change = case.modality().tokenize(case.example()), "fix tokenize()"
    shape, coords = tuple(tokens.values.shape), tuple(tokens.coords.shape)
    good = len(shape) >= 3 and shape[0] == ROWS and shape[1] > 0
    case.require(good, "values are (B, N, ...)", shape, f"({ROWS}, N, ...)", change)
    good = len(coords) == 3 and coords[0] in (1, ROWS) and coords[1] == shape[1]
    case.require(good, "coords are (B or 1, N, A)", coords, f"(1 or {ROWS}, {shape[1]}, A)", change)
    finite = tokens.values.isfinite().all() and tokens.coords.isfinite().all()
    case.require(finite, "tokens are finite", "NaN or infinity", "finite values and coords", change)
    if tokens.grid is not None:
        product = math.prod(tokens.grid)
        case.require(product == shape[1], "the grid's product is N", f"{tokens.grid} = {product}", shape[1], change)
        axes = len(tokens.grid)
        case.require(coords[2] == axes, "coords have an axis per grid axis", coords[2], axes, change)
    if tokens.valid is not None:
        kind = (tuple(tokens.valid.shape), tokens.valid.dtype)
        case.require(kind == (shape[:2], torch.bool), "valid is (B, N) bool", kind, (shape[:2], torch.bool), change)
    if tokens.known is not None:
        kind = (tuple(tokens.known.shape), tokens.known.dtype)
        case.require(kind == (shape, torch.bool), "known is bool, like values", kind, (shape, torch.bool), change)


@check("modalities", "maskings", "encoders", "decoders", "objectives", "targets", needs=["forward_fits"])
def randomness_is_counter_based(case: Case) -> None:
    """Examples, tokens, plans and evaluation leave the global random states of torch, NumPy and Python alone."""
    model = case.model()
    before = _global_states()
    model(case.planned(model))
    after = _global_states()
    used = [name for name in before if before[name] != after[name]]
    change = "use the rng argument, or maemm.contract.rng.seeded around other libraries' random code"
    case.require(not used, "no global random numbers", f"{', '.join(used)} used", "none", change)


def _global_states() -> dict[str, Any]:
    numpy_state = pickle.dumps(np.random.get_state())
    return {"torch": torch.get_rng_state().tolist(), "numpy": numpy_state, "random": random.getstate()}


@check("modalities", needs=["tokens_agree"])
def wrong_shape_is_named(case: Case) -> None:
    """A batch with one axis too many or too few is a MaemmError that names the modality."""
    modality, x = case.modality(), case.example().x
    names = (type(modality).__name__.lower(), case.signal.lower())
    change = "compare x.shape in tokenize() and raise MaemmError with the modality, the received and the expected shape"
    for error_in_words, wrong in (("too many", x[..., None]), ("too few", x[0])):
        rule = f"{tuple(wrong.shape)}, one axis {error_in_words}, is refused"
        try:
            modality.tokenize(Preprocessed(wrong))
        except MaemmError as error:
            named = any(name in str(error).lower() for name in names)
            case.require(named, rule, error, f"a text that names {names[0]!r}", change)
        except Exception as error:
            case.require(False, rule, f"{type(error).__name__}: {error}", "a MaemmError", change)
        else:
            case.require(False, rule, "tokens", "a MaemmError", change)
