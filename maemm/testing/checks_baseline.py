"""Rules of baselines: what the best constant prediction loses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maemm.testing.case import Case, check
from maemm.testing.outcome import DoesNotApply, NotUsed

STEPS = 60  # of L-BFGS, from each start
ABOVE, BELOW = 2e-3, 1e-2  # how far, of 1 + the loss, a baseline may be from the best constant that was found
CHANGE = "return what the best constant prediction loses for each token, or None"


@dataclass(frozen=True)
class _Predicted:
    """Targets of the tokens of an example, of which the first of each row counts nothing, and what depends on them."""

    target: Tensor  # (R, M, T)
    width: int  # O
    counted: Tensor  # (R, M)
    known: Tensor | None  # (R, M, P)
    loss: Callable[[Tensor, Tensor], Tensor]  # of predictions (R, M, O) and targets (R, M, T) -> (R, M)
    baseline: Callable[[Tensor], Tensor]  # of targets (R, M, T) -> (R, M)

    def mean(self, losses: Tensor) -> Tensor:
        """The mean of (R, M) over what counts."""
        return (losses * self.counted).sum() / self.counted.sum().clamp(min=1e-12)

    def other(self) -> Tensor:
        """Targets (R, M, T) of which those that count nothing are others."""
        target = self.target.clone()
        target[:, 0] = target[:, 1] if target.shape[-1] != self.width else target[:, 0] + 10.0  # another class
        return target

    def zeros(self) -> Tensor:
        """(O,)."""
        return self.target.new_zeros(self.width)

    def mean_target(self) -> Tensor:
        """(O,); of classes, whose mean is no prediction, zeros."""
        if self.target.shape[-1] != self.width:
            return self.zeros()
        return (self.target * self.counted[..., None]).sum((0, 1)) / self.counted.sum().clamp(min=1e-12)


def _predicted(case: Case) -> _Predicted:
    """Raises :class:`NotUsed` where there is no baseline."""
    model = case.model()
    inputs = case.planned(model)[case.signal]
    index, counted = inputs.plan.predict, inputs.plan.counted.clone()
    known, target = inputs.tokens.gather_known(index), case.target(model, inputs, index)
    counted[:, 0] = 0.0
    if case.baseline(model, target, counted, known) is None:
        raise NotUsed("baseline() returns None: logs say that there is none")

    def loss(pred: Tensor, of: Tensor) -> Tensor:
        return case.loss(model, pred, of, known)

    def baseline(of: Tensor) -> Tensor:
        values = case.baseline(model, of, counted, known)
        assert values is not None
        return values

    return _Predicted(target, case.target_part(model).output_dim(), counted, known, loss, baseline)


@check("modalities", "targets", needs=["loss_is_per_token"])
def baseline_is_a_loss(case: Case) -> None:
    """baseline() is (R, M) float32, no more than what a constant prediction loses; targets that count nothing are not
    in it. None: it is not known."""
    x = _predicted(case)
    baseline = x.baseline(x.target)
    received, expected = (tuple(baseline.shape), baseline.dtype), (tuple(x.counted.shape), torch.float32)
    case.require(received == expected, "baseline()", received, expected, CHANGE)
    ours = float(x.mean(baseline))
    for name, constant in (("the mean target", x.mean_target()), ("zeros", x.zeros())):
        loss = float(x.mean(x.loss(constant.expand(*x.target.shape[:2], -1), x.target)))
        limit = loss + 1e-4 * (1 + abs(loss))
        case.require(ours <= limit, f"the baseline beside a prediction of {name}", f"{ours:.4g}", f"{loss:.4g}", CHANGE)
    _require_tokens_by_themselves(x)
    change = "weigh tokens by counted in baseline()"
    rule = "the baseline with other targets that count nothing"
    case.equal(x.baseline(x.other())[:, 1:], baseline[:, 1:], rule, change, 1e-6)


@check("modalities", "targets", needs=["baseline_is_a_loss"])
def baseline_is_the_best_constant(case: Case) -> None:
    """baseline() is on average what the best of all constant predictions loses, as a search for it finds: were it more,
    models would seem to beat it, were it less, none could."""
    x = _predicted(case)
    if not x.counted.any():
        raise DoesNotApply("no predicted token of the example counts")
    _require_tokens_by_themselves(x)
    ours, best = float(x.mean(x.baseline(x.target))), _lowest(x)
    scale = 1 + abs(best)
    rule, expected = "the mean baseline beside the best constant prediction", f"{best:.4g}"
    case.require(ours <= best + ABOVE * scale, rule, f"{ours:.4g}, more than it loses", expected, CHANGE)
    case.require(ours >= best - BELOW * scale, rule, f"{ours:.4g}, less than it loses", expected, CHANGE)


def _require_tokens_by_themselves(x: _Predicted) -> None:
    """Raises :class:`DoesNotApply` where the loss of a token depends on the targets of other tokens."""
    pred = x.zeros().expand(*x.target.shape[:2], -1)
    own, others = (x.loss(pred, target)[:, 1:] for target in (x.target, x.other()))
    if not torch.allclose(own, others, rtol=1e-5, atol=1e-6, equal_nan=True):
        raise DoesNotApply("the loss of a token depends on the targets of others, so that no baseline is its own")


def _lowest(x: _Predicted) -> float:
    """The lowest mean loss of a constant prediction. Raises :class:`DoesNotApply` where that cannot be searched for."""
    found = [_descend(x, start) for start in (x.mean_target(), x.zeros())]
    return min(found)


def _descend(x: _Predicted, start: Tensor) -> float:
    """The mean loss of the constant prediction (O,) where a descent from ``start`` ends."""
    constant = start.detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([constant], max_iter=STEPS // 2, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        return x.mean(x.loss(constant.expand(*x.target.shape[:2], -1), x.target))

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        if not value.requires_grad:
            raise DoesNotApply("its loss has no gradient to search for the best constant prediction with")
        value.backward()
        return value

    ends = []
    for _ in range(2):
        optimizer.step(closure)
        with torch.no_grad():
            ends.append(float(loss()))
    halfway, last = ends
    if not torch.tensor(ends).isfinite().all() or last < halfway - BELOW * (1 + abs(halfway)):
        raise DoesNotApply(
            f"its loss goes on falling ({halfway:.4g} -> {last:.4g}): no constant prediction is the best"
        )
    return last
