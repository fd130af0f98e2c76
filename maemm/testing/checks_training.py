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
    lonely, broken, moved = [], [], []
    for name, one in model.named_parameters():
        if one.requires_grad and one.grad is None:
            lonely.append(name)
        elif one.requires_grad and not one.grad.isfinite().all():
            broken.append(name)
        elif not one.requires_grad and one.grad is not None:
            moved.append(name)
    change = "use it in the forward pass, or drop it, or freeze it with requires_grad_(False)"
    case.require(not lonely, "every parameter gets a gradient", f"none for {', '.join(lonely)}", "one each", change)
    change = "look for divisions by 0 and roots of 0"
    case.require(not broken, "gradients are finite", f"NaN or infinity in {', '.join(broken)}", "numbers", change)
    case.require(not moved, "frozen parameters have no gradient", ", ".join(moved), "none", "detach them")


@check(*TRAINED)
def counts_are_known_before(case: Case) -> None:
    """The counts told from the plans alone are those of the terms, so that micro-batches add up."""
    model = case.model()
    inputs = case.planned(model)
    before = {name: float(one) for name, one in model.counts(inputs).items()}
    after = {name: float(one.count) for name, one in model(inputs).parts.items()}
    change = "compute both from plan.counted in counts()"
    case.require(before == after, "counts of the terms", before, after, change)


@check("modalities", "encoders", "decoders")
def one_batch_is_learned(case: Case) -> None:
    """In 50 steps on one batch the loss falls below 0.8 of its start, and of what exchanged targets would cost."""
    model = case.model().train()
    one = case.planned(model, 2)[case.signal]
    plan = one.plan
    if one.tokens.valid is None:
        # Few tokens: that a small model can learn them by heart does not depend on the signal.
        plan = Plan(plan.visible[:, :TOKENS], plan.predict[:, :TOKENS])
    inputs = {case.signal: replace(one, plan=plan)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        total = model(inputs).total
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    first, last = losses[0], sum(losses[-3:]) / 3
    change = "look at loss() and target(): is the target fixed, does the gradient reach embed()?"
    limit = FALL * first
    case.require(last < limit, "one batch is learned", f"{first:.4g} -> {last:.4g}", f"below {limit:.4g}", change)
    # A loss also falls while predictions merely shrink to the mean; only learned ones fit their own target best.
    own, exchanged = _own_and_exchanged(model, case.signal, inputs)
    limit, rule = FALL * exchanged, "predictions fit their own targets best"
    case.require(own < limit, rule, f"a loss of {own:.4g}", f"below {limit:.4g}, 0.8 of exchanged targets'", change)


@torch.no_grad()
def _own_and_exchanged(model: Model, name: str, inputs: dict[str, ModalityInput]) -> tuple[float, float]:
    """The mean loss of the predictions against their own targets, and against those of another token and sample."""
    out = model(inputs)
    counted = out.plans[name].counted
    other = out.target[name].roll((1, 1), dims=(0, 1))
    exchanged = model.modalities[name].loss(out.pred[name], other)
    fraction = counted * counted.roll((1, 1), dims=(0, 1))  # where both targets mean something
    total = fraction.sum().clamp(min=1)
    return float((out.loss[name] * fraction).sum() / total), float((exchanged * fraction).sum() / total)
