"""Rules of independence: of tokens, of hidden tokens, of samples, of padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from maemm.contract import ModalityInput, Preprocessed, Tokens
from maemm.contract.errors import MaemmError
from maemm.model.model import Model
from maemm.testing.case import DECODER_WIDTH, WIDTH, Case, check, take_plan, take_rows
from maemm.testing.outcome import DoesNotApply

CLOSE = 1e-5
MODEL_PARTS = ("modalities", "encoders", "decoders")


@check("modalities")
def embed_of_some_is_part_of_all(case: Case) -> None:
    """Embedding some tokens gives (R, V, D), equal to those of embedding all (in evaluation mode)."""
    model = case.model()
    one, modality = case.planned(model)[case.signal], model.modalities[case.signal]
    some = modality.embed(one.tokens, one.plan.visible)
    expected = (*one.plan.visible.shape, WIDTH)
    case.require(tuple(some.shape) == expected, "embed()'s shape", tuple(some.shape), expected, "return (R, V, D)")
    every = modality.embed(one.tokens, one.tokens.everything())
    gathered = every.gather(1, one.plan.visible[..., None].expand_as(some))
    change = "embed each token from its own values alone, through tokens.gather(index)"
    case.equal(some, gathered, "embedding some tokens is part of embedding all", change, CLOSE)


@check("modalities")
def position_of_some_is_part_of_all(case: Case) -> None:
    """Positions of some tokens are (R or 1, V, D of the role), equal to those of all tokens."""
    model = case.model()
    one, modality = case.planned(model)[case.signal], model.modalities[case.signal]
    for role, index, width in (("encoder", one.plan.visible, WIDTH), ("decoder", one.plan.predict, DECODER_WIDTH)):
        some, every = (
            modality.position(one.tokens, index, role),
            modality.position(one.tokens, one.tokens.everything(), role),
        )
        good = some.ndim == 3 and some.shape[0] in (1, len(index)) and tuple(some.shape[1:]) == (index.shape[1], width)
        expected = (f"1 or {len(index)}", index.shape[1], width)
        case.require(good, f"position()'s shape for the {role}", tuple(some.shape), expected, "fix position()")
        every = every.expand(len(index), -1, -1)
        gathered = every.gather(1, index[..., None].expand(-1, -1, width))
        change = "look positions up by index, for example from tokens.take_coords(index)"
        some = some.expand(len(index), -1, -1)
        case.equal(some, gathered, f"{role} positions of some tokens are part of those of all", change, CLOSE)


@check(*MODEL_PARTS)
def hidden_tokens_do_not_leak(case: Case) -> None:
    """Changing hidden tokens changes neither latents nor predictions; changing visible ones changes the latents."""
    model = case.model()
    inputs = case.planned(model)
    one, out = inputs[case.signal], model(inputs)
    change = "embed the tokens of index alone; keep whole-signal statistics out of embed() and position()"
    for hidden in _changed(model, case.signal, one, one.plan.predict):
        other = model({case.signal: hidden})
        for what in ("encoded", "pred"):
            received, expected = getattr(other, what)[case.signal], getattr(out, what)[case.signal]
            case.equal(received, expected, f"hidden tokens do not leak into {what}", change)
    for seen in _changed(model, case.signal, one, one.plan.visible):
        same = torch.equal(model({case.signal: seen}).encoded[case.signal], out.encoded[case.signal])
        case.require(not same, "visible tokens reach the encoder", "the same latents", "others", "fix embed()")


def _changed(model: Model, name: str, one: ModalityInput, index: Tensor) -> Iterator[ModalityInput]:
    """The tokens ``index`` with other values: in the tokens, and where there is an inverse in the signal too."""
    values = one.tokens.values.clone()
    rows = torch.arange(index.shape[0])[:, None]
    values[rows, index] = values[rows, index] * -2.0 + 3.0
    yield replace(one, tokens=replace(one.tokens, values=values))
    modality = model.modalities[name]
    x = modality.untokenize(values, one.tokens) if one.tokens.grid is not None else None
    if x is not None and x.shape == one.preprocessed.x.shape:
        preprocessed = replace(one.preprocessed, x=x)
        yield replace(one, tokens=modality.tokenize(preprocessed), preprocessed=preprocessed)


@check(*MODEL_PARTS)
def a_row_alone_is_the_row_in_a_batch(case: Case) -> None:
    """A sample's latents, predictions and losses do not depend on what else is in the batch."""
    model = case.model()
    inputs = case.planned(model)
    out, one = model(inputs), inputs[case.signal]
    alone = model({case.signal: take_rows(one.preprocessed, [1])}, plans={case.signal: take_plan(one.plan, [1])})
    change = "keep statistics over the batch axis out (in evaluation mode)"
    for what in ("encoded", "pred", "loss"):
        received, expected = getattr(alone, what)[case.signal], getattr(out, what)[case.signal][1:2]
        case.equal(received, expected, f"a row alone equals the row in a batch ({what})", change, CLOSE)


@check(*MODEL_PARTS)
def several_plans_of_a_sample(case: Case) -> None:
    """Two plans of one sample give what two copies of the sample with one plan each give."""
    model = case.model()
    one = case.planned(model)[case.signal]
    rows = [0, 0, 1]
    plan = replace(one.plan, rows=torch.tensor(rows))
    both = model({case.signal: take_rows(one.preprocessed, [0, 1])}, plans={case.signal: plan})
    copies = model({case.signal: take_rows(one.preprocessed, rows)}, plans={case.signal: one.plan})
    change = "take values through tokens.gather(index), which knows tokens.rows"
    for what in ("pred", "loss"):
        received, expected = getattr(both, what)[case.signal], getattr(copies, what)[case.signal]
        case.equal(received, expected, f"several plans per sample ({what})", change, CLOSE)


@check(*MODEL_PARTS)
def padding_changes_nothing(case: Case) -> None:
    """What stands in padded elements changes neither the loss nor the features."""
    model = case.model()
    modality, preprocessed = model.modalities[case.signal], case.example()
    padded, tokens = _padded(case, modality, preprocessed)
    if tokens.valid is None or not tokens.valid.any(1).all():
        raise DoesNotApply("the modality has no notion of valid elements")
    mask = _on_elements(padded.valid, padded.x)
    other = replace(padded, x=torch.where(mask, padded.x, padded.x * -2.0 + 7.0))
    change = "make a token invalid in tokenize() where any of its elements is, and skip invalid ones everywhere"
    case.require(not tokens.valid.all(), "padded elements make invalid tokens", "none", "some", change)
    first, second = (model({case.signal: one}, rng=case.rng()) for one in (padded, other))
    case.equal(second.total, first.total, "padding does not change the loss", change)
    one, two = (model.embed({case.signal: one})[case.signal] for one in (padded, other))
    case.equal(two, one, "padding does not change the features", change)


def _padded(case: Case, modality: torch.nn.Module, preprocessed: Preprocessed) -> tuple[Preprocessed, Tokens]:
    """The example with about half of the first sample padded, in the layout of validity that the modality takes."""
    x = preprocessed.x
    shapes = dict.fromkeys(
        [x[:, 0].shape, x.shape[:2], x.shape] if preprocessed.valid is None else [preprocessed.valid.shape]
    )
    for shape in shapes:
        if len(shape) < 2:
            continue
        valid = torch.ones(shape, dtype=torch.bool) if preprocessed.valid is None else preprocessed.valid.clone()
        valid[0, shape[1] // 2 + 1 :] = False
        one = replace(preprocessed, valid=valid)
        try:
            tokens = modality.tokenize(one)
        except (MaemmError, RuntimeError, ValueError, IndexError):
            continue  # another layout, or none
        if tokens.valid is not None:
            return one, tokens
    raise DoesNotApply("the modality has no notion of valid elements")


def _on_elements(valid: Tensor, x: Tensor) -> Tensor:
    """Validity of elements, spread over the axes that it lacks: channels in front or behind."""
    if valid.shape == x.shape:
        return valid
    if valid.shape == x[:, 0].shape:
        return valid.unsqueeze(1).expand_as(x)
    return valid.reshape(*valid.shape, *(1,) * (x.ndim - valid.ndim)).expand_as(x)
