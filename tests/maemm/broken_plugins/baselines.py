"""Baselines that are not what the best constant prediction loses, one that is, and losses that have no such one."""

from __future__ import annotations

import torch
from torch import Tensor

from maemm.contract import Tokens
from maemm.contract.means import mean_of_counted
from maemm.testing.toy_signal import Signal

from .sound import SoftKinds


class Frequencies(SoftKinds):
    """Kinds of which some are frequent. Of cross-entropy the best constants are logarithms of the frequencies."""

    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        values = tokens.gather(index).float()
        return (values + 0.5 * torch.arange(values.shape[-1], device=values.device)).softmax(-1)

    def baseline(self, target: Tensor, counted: Tensor, known: Tensor | None = None) -> Tensor:
        return self.loss(mean_of_counted(target, counted).log().expand_as(target), target)


class NoLogarithm(Frequencies):
    """Takes frequencies for logits."""

    def baseline(self, target: Tensor, counted: Tensor, known: Tensor | None = None) -> Tensor:
        return self.loss(mean_of_counted(target, counted).expand_as(target), target)


class MeanForMedian(Signal):
    """Predicts the mean, although the median is the best constant for absolute errors."""

    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        return tokens.gather(index).float().exp()

    def denormalize_target(self, pred: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        return pred.float().clamp(min=1e-6).log()

    def loss(self, pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        return (pred.float() - target).abs().mean(-1)

    def baseline(self, target: Tensor, counted: Tensor, known: Tensor | None = None) -> Tensor:
        return self.loss(mean_of_counted(target, counted).expand_as(target), target)


class Unbeatable(Signal):
    """Its baseline is half of what the mean loses, which no constant prediction reaches."""

    def baseline(self, target: Tensor, counted: Tensor, known: Tensor | None = None) -> Tensor:
        mean = mean_of_counted(target, counted).expand_as(target)
        return 0.5 * self.loss(mean, target)


class _Odd(Signal):
    """A loss of its own, and the mean target for a baseline."""

    def baseline(self, target: Tensor, counted: Tensor, known: Tensor | None = None) -> Tensor:
        return self.loss(mean_of_counted(target, counted).expand_as(target), target)


class Bottomless(_Odd):
    """The larger the prediction the lower the loss."""

    def loss(self, pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        return -pred.float().square().mean(-1)


class Relative(_Odd):
    """Errors of a token beside those of all tokens of its row."""

    def loss(self, pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        errors = (pred.float() - target).square().mean(-1)
        return errors / errors.mean(1, keepdim=True)


class Measured(_Odd):
    """Its loss comes from elsewhere, without a gradient."""

    def loss(self, pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        return super().loss(pred, target).detach()


ODD = {
    "Bottomless": "its loss goes on falling",
    "Relative": "the loss of a token depends on the targets of others",
    "Measured": "its loss has no gradient",
}
