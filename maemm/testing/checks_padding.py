"""Rules of padding: rows of a batch have different numbers of valid tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from maemm.contract import Modality, ModalityInput, Plan, Preprocessed
from maemm.contract.errors import MaemmError
from maemm.model.model import Model
from maemm.testing.case import ROWS, Case, check, on_elements, take_plan, take_rows
from maemm.testing.outcome import DoesNotApply

MODEL_PARTS = ("modalities", "encoders", "decoders")
CLOSE, CLOSE_SUMS = 1e-5, 1e-4
KEPT = (1 / 2, 3 / 4)  # of the first and of the second sample; the others are whole
IGNORED = "leave tokens out where plan.visible_valid or plan.predict_valid is False, such as by an attention mask"

WEIGH = "weigh tokens by plan.counted, also in counts(), and leave out latents where plan.visible_valid is False"


@check(*MODEL_PARTS, needs=["features_are_repeatable"])
def padding_changes_nothing(case: Case) -> None:
    """The values of padded elements change neither the loss nor the features."""
    model = case.model()
    padded, valid, token_valid = _padded(case.modality_of(model), case.example())
    mask = on_elements(valid, padded.x)
    other = replace(padded, x=torch.where(mask, padded.x, padded.x * -2.0 + 7.0))
    change = "make a token invalid in tokenize() where any of its elements is, and skip invalid ones everywhere"
    case.require(not token_valid.all(), "padded elements make invalid tokens", "none", "some", change)
    first, second = (model({case.signal: batch}, rng=case.rng()).total for batch in (padded, other))
    case.equal(second, first, "padding does not change the loss", change)
    first, second = (model.embed({case.signal: batch})[case.signal] for batch in (padded, other))
    case.equal(second, first, "padding does not change the features", change)


@check(
    *MODEL_PARTS,
    "targets",
    "objectives",
    "heads",
    needs=["forward_fits", "padding_changes_nothing", "a_row_alone_is_the_row_in_a_batch"],
)
@torch.no_grad()
def a_short_row_is_the_row_alone(case: Case) -> None:
    """Beside longer samples, a shorter one has the features, predictions, losses and logits that it has alone, at its
    own length: padding, which repeats a token, is not seen."""
    if case.role == "heads" and (reason := case.plugin.deviations.get(f"head_answers[{case.part}]")):
        raise DoesNotApply(f"it does not answer as other heads do: {reason}")
    model = case.model()
    padded, *_ = _padded(case.modality_of(model), case.example())
    (inputs, *_) = model.plan_sets({case.signal: padded}, case.rng())
    visible = Plan.all_visible(inputs[case.signal].tokens)
    together = _features(model, case, _input(case, model, padded, visible))
    for row in range(ROWS):
        plan = _own_length(take_plan(visible, [row]))
        alone = _features(model, case, _input(case, model, _cut(case, model, padded, row), plan))
        for name, expected in alone.items():
            received = together[name][row : row + 1]
            received = received[:, : plan.visible.shape[1]] if name == "features of tokens" else received
            scale = expected.abs().max().clamp(min=1e-12) if name.startswith("logits") else 1.0  # a head may begin at 0
            case.equal(
                received / scale, expected / scale, f"{name} of a short row and of the row alone", IGNORED, CLOSE
            )
    if any(objective.coupled for objective in model.objectives.values()):
        _same_terms_without_padding(case, model)
    else:
        _same_masked_pass(case, model, padded, inputs[case.signal].plan)


def _same_masked_pass(case: Case, model: Model, padded: Preprocessed, plan: Plan) -> None:
    """The masked forward pass of the batch, and of each row alone at its own length."""
    out = model({case.signal: padded}, plans={case.signal: plan})
    sums: dict[str, Tensor] = {}
    for row in range(ROWS):
        own = _own_length(take_plan(plan, [row]))
        alone = model({case.signal: _cut(case, model, padded, row)}, plans={case.signal: own})
        for name, term in alone.parts.items():
            sums[name] = sums.get(name, torch.zeros(2)) + torch.stack([term.sum, term.count])
        for field, valid in (
            ("encoded", own.visible_valid),
            ("prefix", None),
            ("pred", own.predict_valid),
            ("loss", own.predict_valid),
        ):
            values = getattr(alone, field)
            if valid is not None or case.signal not in values:  # a row with no such token, or nothing of that kind
                continue
            expected = values[case.signal]
            received = getattr(out, field)[case.signal][row : row + 1, : expected.shape[1]]
            case.equal(received, expected, f"{field} of a short row and of the row alone", IGNORED, CLOSE)
    for name, term in out.parts.items():
        rule = f"sum and count of {name} add up over rows"
        case.equal(torch.stack([term.sum, term.count]), sums[name], rule, WEIGH, CLOSE_SUMS)


def _same_terms_without_padding(case: Case, model: Model) -> None:
    """For objectives whose samples affect each other: all samples are short, with padding and without."""
    padded, *_ = _padded(case.modality_of(model), case.example(), kept=(KEPT[0],) * ROWS)
    (inputs, *_) = model.plan_sets({case.signal: padded}, case.rng())
    plan = inputs[case.signal].plan
    out, own = (model({case.signal: padded}, plans={case.signal: x}) for x in (plan, _own_length(plan)))
    for name, term in out.parts.items():
        received, expected = (torch.stack([x.sum, x.count]) for x in (term, own.parts[name]))
        case.equal(received, expected, f"sum and count of {name} with padding and without", WEIGH, CLOSE_SUMS)


def _features(model: Model, case: Case, inputs: ModalityInput) -> dict[str, Tensor]:
    """What the model says of ``inputs`` where nothing is hidden, by name: (R, ...)."""
    batch = {case.signal: inputs}
    with patch.object(model, "with_all_visible", dict):  # which would make plans anew: of the length of the batch
        if case.role != "heads":
            features = model.embed(batch, tokens=True)[case.signal]
            return {"features of tokens": features, "features": model.embed(batch, pool="mean")[case.signal]}
        assert model.head is not None
        return {
            **_by_stream("features", model.head.features(model, batch)),
            **_by_stream("logits", model.logits(batch)),
        }


def _by_stream(name: str, values: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(values, Tensor):
        return {name: values}
    return {f"{name} of stream {stream}": value for stream, value in values.items()}


def _input(case: Case, model: Model, preprocessed: Preprocessed, plan: Plan) -> ModalityInput:
    return ModalityInput(case.modality_of(model).tokenize(preprocessed), plan, preprocessed)


def _own_length(plan: Plan) -> Plan:
    """The plan without the padding that all its rows have at the end; at least one token stays, if it is padded."""
    cut: dict[str, Any] = {}
    for index, valid, others in (("visible", "visible_valid", ()), ("predict", "predict_valid", ("counted",))):
        flags = getattr(plan, valid)
        if flags is None:
            continue
        length = max(int(flags.sum(1).max()), 1)
        cut |= {name: getattr(plan, name)[:, :length] for name in (index, *others)}
        cut[valid] = None if flags[:, :length].all() else flags[:, :length]
    return replace(plan, **cut)


def _cut(case: Case, model: Model, padded: Preprocessed, row: int) -> Preprocessed:
    """A sample of the batch; of a set, whose elements are its tokens, without the padding at its end."""
    single = take_rows(padded, [row])
    tokens, valid = case.modality_of(model).tokenize(single), single.valid
    is_set = tokens.grid is None and valid is not None and valid.shape == single.x.shape[:2] == tokens.values.shape[:2]
    if not is_set or single.info:
        return single
    assert valid is not None
    length = int(valid.sum())
    if not valid[:, :length].all():
        return single
    return replace(single, x=single.x[:, :length], valid=valid[:, :length])


def _padded(
    modality: Modality, preprocessed: Preprocessed, kept: Sequence[float] = KEPT
) -> tuple[Preprocessed, Tensor, Tensor]:
    """The example with the ends of its first samples padded, so that lengths differ, its ``valid`` and that of its
    tokens (B, N). ``kept``: about what part of each of them is not.

    ``valid`` has the layout that the modality accepts: without channels, (B, N), or elementwise. Raises
    :class:`DoesNotApply` where it accepts none.
    """
    x = preprocessed.x
    shapes = dict.fromkeys(
        [x[:, 0].shape, x.shape[:2], x.shape] if preprocessed.valid is None else [preprocessed.valid.shape]
    )
    for shape in shapes:
        if len(shape) < 2:
            continue
        valid = torch.ones(shape, dtype=torch.bool) if preprocessed.valid is None else preprocessed.valid.clone()
        for row, part in enumerate(kept):
            valid[row, int(shape[1] * part) + 1 :] = False
        padded = replace(preprocessed, valid=valid)
        try:
            tokens = modality.tokenize(padded)
        except (MaemmError, RuntimeError, ValueError, IndexError):
            continue  # another layout, or none
        if tokens.valid is not None and tokens.valid.any(1).all():
            return padded, valid, tokens.valid
    raise DoesNotApply("the modality does not use Preprocessed.valid")
