"""Rules of independence: from other tokens, hidden tokens, other samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from maemm.contract import Modality, ModalityInput
from maemm.testing.case import DECODER_WIDTH, WIDTH, Case, check, take_plan, take_rows, without_padding

CLOSE = 1e-5
MODEL_PARTS = ("modalities", "encoders", "decoders")


@check("modalities", needs=["embed_fits_the_encoder"])
def embed_of_some_is_part_of_all(case: Case) -> None:
    """Embedding some tokens is embedding all of them and gathering (in evaluation mode)."""
    model = case.model()
    inputs, modality = case.planned(model)[case.signal], case.modality_of(model)
    tokens, visible = inputs.tokens, inputs.plan.visible
    embedded = modality.embed(tokens, visible)
    gathered = modality.embed(tokens, tokens.all_indices()).gather(1, visible[..., None].expand_as(embedded))
    change = "embed each token from its own values alone, through tokens.gather(index)"
    case.equal(embedded, gathered, "embedding some tokens is part of embedding all", change, CLOSE)


@check("modalities", needs=["position_fits_its_role"])
def position_of_some_is_part_of_all(case: Case) -> None:
    """Positions of some tokens are those of all tokens, gathered."""
    model = case.model()
    inputs, modality = case.planned(model)[case.signal], case.modality_of(model)
    tokens, plan = inputs.tokens, inputs.plan
    for role, index, width in (("encoder", plan.visible, WIDTH), ("decoder", plan.predict, DECODER_WIDTH)):
        rows = len(index)
        positions = modality.position(tokens, index, role)
        whole = modality.position(tokens, tokens.all_indices(), role).expand(rows, -1, -1)
        gathered = whole.gather(1, index[..., None].expand(-1, -1, width))
        change = "look positions up by index, for example from tokens.gather_coords(index)"
        positions = positions.expand(rows, -1, -1)
        case.equal(positions, gathered, f"{role} positions of some tokens are part of those of all", change, CLOSE)


@check(*MODEL_PARTS, needs=["features_are_repeatable"])
def hidden_tokens_do_not_leak(case: Case) -> None:
    """Changing hidden tokens changes neither latents nor predictions; changing visible ones changes the latents."""
    model = case.model()
    modality, inputs = case.modality_of(model), case.planned(model)[case.signal]
    out = model({case.signal: inputs})
    change = "embed the tokens of index alone; keep whole-signal statistics out of embed() and position()"
    for changed in _changed(modality, inputs, inputs.plan.predict):
        other = model({case.signal: changed})
        for field in ("encoded", "pred"):
            received, expected = (
                without_padding(field, getattr(output, field)[case.signal], inputs.plan) for output in (other, out)
            )
            case.equal(received, expected, f"hidden tokens do not leak into {field}", change)
    for changed in _changed(modality, inputs, inputs.plan.visible):
        same = torch.equal(model({case.signal: changed}).encoded[case.signal], out.encoded[case.signal])
        case.require(not same, "visible tokens reach the encoder", "the same latents", "others", "fix embed()")


def _changed(modality: Modality, inputs: ModalityInput, index: Tensor) -> Iterator[ModalityInput]:
    """The tokens ``index`` with other values: in the tokens, and, if there is an inverse, in the signal too."""
    values = inputs.tokens.values.clone()
    rows = torch.arange(index.shape[0])[:, None]
    values[rows, index] = values[rows, index] * -2.0 + 3.0
    yield replace(inputs, tokens=replace(inputs.tokens, values=values))
    x = modality.untokenize(values, inputs.tokens) if inputs.tokens.grid is not None else None
    if x is not None and x.shape == inputs.preprocessed.x.shape:
        preprocessed = replace(inputs.preprocessed, x=x)
        yield replace(inputs, tokens=modality.tokenize(preprocessed), preprocessed=preprocessed)


@check(*MODEL_PARTS, needs=["features_are_repeatable"])
def a_row_alone_is_the_row_in_a_batch(case: Case) -> None:
    """A sample's latents, predictions and losses do not depend on what else is in the batch."""
    model = case.model()
    inputs = case.planned(model)[case.signal]
    out, plan = model({case.signal: inputs}), take_plan(inputs.plan, [1])
    alone = model({case.signal: take_rows(inputs.preprocessed, [1])}, plans={case.signal: plan})
    change = "compute no statistics over the batch axis in evaluation mode"
    for field in ("encoded", "pred", "loss"):
        received, expected = getattr(alone, field)[case.signal], getattr(out, field)[case.signal][1:2]
        case.equal(received, expected, f"a row alone equals the row in a batch ({field})", change, CLOSE)


@check(*MODEL_PARTS, "targets", needs=["a_row_alone_is_the_row_in_a_batch", "features_are_repeatable"])
def several_plans_of_a_sample(case: Case) -> None:
    """Two plans of one sample give the same as two copies of the sample with one plan each."""
    model = case.model()
    inputs = case.planned(model)[case.signal]
    rows = [0, 0, 1]
    plan = replace(inputs.plan, rows=torch.tensor(rows))
    both = model({case.signal: take_rows(inputs.preprocessed, [0, 1])}, plans={case.signal: plan})
    copies = model({case.signal: take_rows(inputs.preprocessed, rows)}, plans={case.signal: inputs.plan})
    change = "take values through tokens.gather(index), which uses tokens.rows"
    for field in ("pred", "loss"):
        received, expected = getattr(both, field)[case.signal], getattr(copies, field)[case.signal]
        case.equal(received, expected, f"several plans per sample ({field})", change, CLOSE)
