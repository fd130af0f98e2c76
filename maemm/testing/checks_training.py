"""Rules of training: gradients, counts, and that learning is possible at all."""

from __future__ import annotations

from dataclasses import replace

import torch

from maemm.contract import ModalityInput, Plan
from maemm.model.model import Model
from maemm.testing.case import Case, check

TRAINED = ("modalities", "maskings", "encoders", "decoders", "objectives", "targets")
STEPS, FALL, TOKENS = 50, 0.8, 8


@check(*TRAINED)
def every_parameter_learns(case: Case) -> None:
    """After a backward pass every trainable parameter has a finite gradient, and a frozen one has none."""
    model = case.model().train()
    model(case.planned(model)).total.backward()
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


@check(*TRAINED)
def counts_are_known_before(case: Case) -> None:
    """counts(), from the plans alone, equals the counts of the terms, so that micro-batches add up."""
    model = case.model()
    inputs = case.planned(model)
    before = {name: float(count) for name, count in model.counts(inputs).items()}
    after = {name: float(term.count) for name, term in model(inputs).parts.items()}
    change = "compute both from plan.counted in counts()"
    case.require(before == after, "counts of the terms", before, after, change)


@check("modalities", "encoders", "decoders")
def one_batch_is_learned(case: Case) -> None:
    """In 50 steps on one batch the loss falls below 0.8 of its start, and of the loss with exchanged targets."""
    model = case.model().train()
    planned = case.planned(model, 2)[case.signal]
    plan = planned.plan
    if planned.tokens.valid is None:  # so few tokens that a small model can memorise them, whatever the signal
        plan = Plan(plan.visible[:, :TOKENS], plan.predict[:, :TOKENS])
    inputs = {case.signal: replace(planned, plan=plan)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        total = model(inputs).total
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    first, last = losses[0], sum(losses[-3:]) / 3
    change = "check loss() and target(): is the target fixed, does the gradient reach embed()?"
    limit = FALL * first
    case.require(last < limit, "one batch is learned", f"{first:.4g} -> {last:.4g}", f"below {limit:.4g}", change)
    # The loss also falls if predictions merely shrink to the mean; only learned ones fit their own target best.
    own, exchanged = _own_and_exchanged(case, model, inputs)
    limit, rule = FALL * exchanged, "predictions fit their own targets best"
    case.require(own < limit, rule, f"a loss of {own:.4g}", f"below {limit:.4g}, 0.8 of exchanged targets", change)


@torch.no_grad()
def _own_and_exchanged(case: Case, model: Model, inputs: dict[str, ModalityInput]) -> tuple[float, float]:
    """Mean loss of the predictions against their own targets, and against those of another token and sample."""
    out, name = model(inputs), case.signal
    counted = out.plans[name].counted
    assert counted is not None
    exchanged = case.modality_of(model).loss(out.pred[name], out.target[name].roll((1, 1), dims=(0, 1)))
    weight = counted * counted.roll((1, 1), dims=(0, 1))  # both targets are counted
    total = weight.sum().clamp(min=1)
    return float((out.loss[name] * weight).sum() / total), float((exchanged * weight).sum() / total)
