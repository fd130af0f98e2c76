"""Rules of training: gradients, counts, and that learning is possible at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from maemm.contract import ModalityInput, Output
from maemm.model.model import Model
from maemm.testing.case import Case, check

TRAINED = ("modalities", "maskings", "encoders", "decoders", "objectives", "targets")
STEPS, FALL, TOKENS = 50, 0.2, 8
FREE_STEPS, FREE_LR = 200, 0.1  # of predictions that are fitted without a model


@check(*TRAINED, needs=["forward_fits", "phases_are_apart"])
def every_parameter_learns(case: Case) -> None:
    """After a backward pass every trainable parameter has a finite gradient, and a frozen one has none."""
    model = case.model().train()
    for inputs in case.planned_sets(model):
        out = model(inputs)
        out.total.backward()
        _phases_backward(model, out)
    unused, nonfinite, frozen = [], [], []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            frozen += [name] if p.grad is not None else []
        elif p.grad is None:
            unused.append(name)
        elif not p.grad.isfinite().all():
            nonfinite.append(name)
    change = "use it in the forward pass, or drop it, or freeze it with requires_grad_(False)"
    case.require(not unused, "every parameter gets a gradient", f"none for {', '.join(unused)}", "one each", change)
    change = "look for divisions by 0 and roots of 0"
    case.require(not nonfinite, "gradients are finite", f"NaN or infinity in {', '.join(nonfinite)}", "numbers", change)
    case.require(not frozen, "frozen parameters have no gradient", ", ".join(frozen), "none", "detach them")


def _phases_backward(model: Model, out: Output) -> None:
    """Gradients of the parameters that phases train."""
    detached = replace(out, pred={name: x.detach() for name, x in out.pred.items()}, parts={})
    for objective in model.objectives.values():
        for phase in objective.phases(model):
            parameters = list(phase.parameters)
            loss = objective.phase_loss(phase.name, detached, model).sum
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient


@check(*TRAINED, needs=["forward_fits"])
def counts_are_known_before(case: Case) -> None:
    """counts(), from the plans alone, equals the counts of the terms, so that micro-batches add up."""
    model = case.model()
    change = "compute both from plan.counted in counts()"
    for inputs in case.planned_sets(model):
        before = {name: float(count) for name, count in model.counts(inputs).items()}
        after = {name: float(term.count) for name, term in model(inputs).parts.items()}
        case.require(before == after, "counts of the terms", before, after, change)


@check("modalities", "encoders", "decoders", "targets", needs=["forward_fits"])
def one_batch_is_learned(case: Case) -> None:
    """In 50 steps on one batch the loss falls by a fifth of what there is to gain, and predictions fit their own
    targets better than exchanged ones."""
    model = case.model().train()
    inputs = {case.signal: _few_tokens(case.planned(model, 2)[case.signal])}
    lowest = _lowest_loss(case, model, inputs)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        total = model(inputs).total
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    first, last = losses[0], sum(losses[-3:]) / 3
    same = _same_predictions(case, model, inputs)
    rule = "predictions of hidden tokens differ"
    case.require(same is None, rule, "equal ones in a sample", "others for other tokens", same or "")
    change = "check loss() and target(): is the target fixed, does the gradient reach embed()?"
    limit = first - _gain(first, lowest)
    case.require(last < limit, "one batch is learned", f"{first:.4g} -> {last:.4g}", f"below {limit:.4g}", change)
    # The loss also falls if predictions merely shrink to the mean; only learned ones fit their own target best.
    own, exchanged = _own_and_exchanged(case, model, inputs)
    limit, rule = exchanged - _gain(exchanged, lowest), "predictions fit their own targets best"
    expected = f"below {limit:.4g}, as it is {exchanged:.4g} for exchanged targets"
    case.require(own < limit, rule, f"a loss of {own:.4g}", expected, change)


def _few_tokens(inputs: ModalityInput) -> ModalityInput:
    """The first tokens of each row: so few that a small model can memorise them, whatever the signal. Of a ragged row,
    whose valid tokens come first, as many or fewer."""
    plan = inputs.plan
    parts = {name: getattr(plan, name) for name in ("visible", "predict", "visible_valid", "predict_valid", "counted")}
    few: dict[str, Any] = {name: None if part is None else part[:, :TOKENS] for name, part in parts.items()}
    return replace(inputs, plan=replace(plan, **few))


def _gain(loss: float, lowest: float) -> float:
    """How far a loss must fall: a fifth of the way to the lowest one, which may be below 0, or without a bound."""
    return FALL * min(loss - lowest, max(abs(loss), 1.0))


def _lowest_loss(case: Case, model: Model, inputs: dict[str, ModalityInput]) -> float:
    """About the lowest loss that predictions can have: 0 for squared errors, an entropy for soft labels."""
    x = inputs[case.signal]
    with torch.no_grad():
        out = model(inputs)
    known, target = x.tokens.gather_known(x.plan.predict), out.target[case.signal]
    free = out.pred[case.signal].detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([free], lr=FREE_LR)
    lowest = float("inf")
    for _ in range(FREE_STEPS):
        optimizer.zero_grad()
        loss = (case.loss(model, free, target, known) * x.plan.counted).sum() / x.plan.counted.sum().clamp(min=1e-12)
        loss.backward()
        optimizer.step()
        lowest = min(lowest, float(loss.detach()))
    return lowest


@torch.no_grad()
def _own_and_exchanged(case: Case, model: Model, inputs: dict[str, ModalityInput]) -> tuple[float, float]:
    """Mean loss of the predictions of counted tokens against their own targets, and against those of other tokens."""
    out, x = model(inputs), inputs[case.signal]
    chosen = x.plan.counted > 0
    known = x.tokens.gather_known(x.plan.predict)
    pred, target = out.pred[case.signal][chosen][None], out.target[case.signal][chosen][None]  # (1, tokens, O)
    shift = x.plan.predict.shape[1] + 1  # another token of another sample
    other = target.roll(shift, 1)
    both = None
    if known is not None:
        own = known[chosen][None]
        both = own & own.roll(shift, 1)
    means = [float(case.loss(model, pred, wanted, both).mean()) for wanted in (target, other)]
    return means[0], means[1]


@torch.no_grad()
def _same_predictions(case: Case, model: Model, inputs: dict[str, ModalityInput]) -> str | None:
    """What to change where the predictions of all hidden tokens of a sample are equal, since nothing tells their mask
    tokens apart."""
    x = inputs[case.signal]
    pred: Tensor = model(inputs).pred[case.signal]
    if pred.shape[1] < 2:
        return None
    spread = (pred - pred[:, :1]).abs().max()
    if spread > 1e-4 * pred.abs().max():
        return None
    position = case.modality_of(model).position(x.tokens, x.plan.predict, "decoder")
    alike = bool(torch.equal(position, position[:, :1].expand_as(position)))
    reason = "position() gives all of them the same" if alike else "the decoder does not use position()"
    return (
        f"tell hidden tokens apart: their mask tokens and so their predictions are identical, since {reason}; return "
        'from position(tokens, index, "decoder") what the decoder may know of each, such as where it is'
    )
