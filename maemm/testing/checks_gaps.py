"""Rules of what is missing: values of a signal, and whole modalities of a sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from maemm import registry
from maemm.config.options import options_of
from maemm.contract import MaemmError, Preprocessed
from maemm.model.model import Model
from maemm.testing.case import OTHER, Case, check, on_elements, without_padding
from maemm.testing.checks_shapes import require_loss_of_known
from maemm.testing.outcome import NotUsed

MISSING, FILLERS = 0.1, (0.0, 1e6, float("nan"))


@check("modalities", needs=["features_are_repeatable"])
def missing_values_change_nothing(case: Case) -> None:
    """What fills missing values (Tokens.known) is in no prediction, target, loss, baseline, gradient or picture."""
    model, batch, missing = _with_gaps(case)
    modality = case.modality_of(model)
    require_loss_of_known(case, model)
    expected: dict[str, Tensor] = {}
    # Of a set, coordinates are filled too, where nothing is seen but all is computed: they must be numbers.
    fillers = FILLERS if modality.tokenize(batch).grid is not None else FILLERS[:-1]
    for filler in fillers:
        filled = replace(batch, x=batch.x.masked_fill(missing, filler))
        received = _with_filler(model, case, filled)
        change = "keep unknown values out of it: make them 0 in tokenize(), and use known in loss() and target()"
        for field, value in (expected or received).items():
            case.equal(received[field], value, f"{field} where missing values are {filler:g}", change)
        expected = expected or received
        tokens = modality.tokenize(filled)
        picture = modality.untokenize(tokens.values, tokens)
        if picture is not None and picture.shape == missing.shape:
            shown = int((missing & ~picture.isnan()).sum())
            change = "make what is not known NaN in untokenize()"
            case.require(not shown, "missing values are in no picture", f"{shown} shown", "NaN for each", change)


def _with_filler(model: Model, case: Case, batch: Preprocessed) -> dict[str, Tensor]:
    """Everything that missing values must not change, by name."""
    inputs = model.plan({case.signal: batch}, case.rng())
    out, x = model(inputs), inputs[case.signal]
    model.zero_grad()
    out.total.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    known = x.tokens.gather_known(x.plan.predict)
    target = out.target[case.signal]
    baseline = case.baseline(model, target, x.plan.counted, known)
    by_token = {
        "predictions": out.pred[case.signal],
        "the target": target if known is None or known.shape != target.shape else target.masked_fill(~known, 0.0),
        "the loss": out.loss[case.signal],
        **({} if baseline is None else {"the baseline": baseline}),
    }
    own = {name: without_padding(name, value, x.plan) for name, value in by_token.items()}
    return {**own, "gradients": torch.cat(gradients)}


def _with_gaps(case: Case) -> tuple[Model, Preprocessed, Tensor]:
    """A model, a batch of which the modality knows that values are missing, and where in x they are (bool, like x)."""
    for options in _options(case):
        model = case.model(recipe=case.recipe(options))
        modality = case.modality_of(model)
        example = case.example(modality=modality)
        x, noise = example.x, case.rng().uniform("gaps", *example.x.shape[1:])
        for shape in [x.shape, x[:, 0].shape] if example.valid is None else [example.valid.shape]:
            valid = noise > MISSING if shape == x.shape else noise.reshape(*shape, -1)[..., 0] > MISSING
            batch = replace(example, valid=valid if example.valid is None else valid & example.valid)
            try:
                known = modality.tokenize(batch).known
            except (MaemmError, RuntimeError, ValueError, IndexError):
                continue  # another layout, or none
            if known is not None and not known.all():
                return model, batch, ~on_elements(valid, x)
    raise NotUsed("its tokens have no known: no value of a valid token is missing")


def _options(case: Case) -> Iterator[dict[str, Any]]:
    """As the author has it, and with the option ``gaps`` on, if it is a switch that is off."""
    yield {}
    gaps = options_of(registry.find("modalities", case.signal)).get("gaps")
    if gaps is not None and gaps.default is False:
        yield {"gaps": True}


@check("modalities", "encoders", "decoders", needs=["features_are_repeatable"])
def a_missing_modality_counts_nothing(case: Case) -> None:
    """What stands in for a modality that a sample lacks (Preprocessed.present) changes neither losses nor features."""
    model, batch = case.joint_model(), case.joint_example()
    present = torch.tensor([True, False, True])
    losses, features = [], []
    for scale in (1.0, -3.0):
        other = batch[OTHER]
        x = torch.where(present.reshape(-1, *(1,) * (other.x.ndim - 1)), other.x, other.x * scale)
        both = {**batch, OTHER: replace(other, x=x, present=present)}
        inputs = model.plan(both, case.rng())
        counted = float(inputs[OTHER].plan.counted[~present].sum())
        change = "use tokens.valid, plan.visible_valid and plan.predict_valid"
        case.require(counted == 0, "a sample without the modality", f"{counted:g} counted tokens", 0, change)
        losses.append(model(inputs).total)
        features.append(model.embed(both)[case.signal])
    case.require(losses[0].isfinite(), "the loss with an absent modality", losses[0].detach(), "finite", change)
    case.equal(losses[1], losses[0], "the loss with another placeholder", change, 1e-6)
    case.equal(features[1], features[0], "features with another placeholder", change, 1e-5)
