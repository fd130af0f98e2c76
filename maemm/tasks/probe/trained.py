"""Probes trained by gradient descent on frozen features: MAE's linear probe, and an attentive one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from maemm.contract.errors import MaemmError
from maemm.contract.rng import seeded
from maemm.data.transfer import Work, overlapped, to_device
from maemm.tasks._shared.inputs import usual_device
from maemm.tasks._shared.tables import Choice, Table, held_out
from maemm.train.optim import make_optimizer, set_lr
from maemm.train.schedules import learning_rate

#: MAE (arXiv 2111.06377), appendix A.1 and its script: LARS, no weight decay, 90 epochs of batch 16384, warmup of 10
PUBLISHED: dict[str, Any] = {
    "epochs": 90,
    "batch": 16384,
    "base_lr": 0.1,
    "warmup_epochs": 10,
    "optimizer": {"type": "lars"},
}
ATTENTIVE: dict[str, Any] = {
    "epochs": 30,
    "batch": 256,
    "base_lr": 1e-3,
    "warmup_epochs": 3,
    "optimizer": {"type": "adamw", "betas": (0.9, 0.999), "weight_decay": 0.05},
}


class PublishedLinear(nn.Module):
    """BatchNorm without affine parameters, then a linear layer (MAE, appendix A.1): (B, D) -> (B, classes)."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return self.linear(self.norm(x))


class Attentive(nn.Module):
    """Attention of a learned query to all tokens, then a linear layer: (B, N, D) -> (B, classes)."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        from timm.layers import AttentionPoolLatent

        heads = next(count for count in (12, 8, 6, 4, 3, 2, 1) if width % count == 0)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pool = AttentionPoolLatent(width, num_heads=heads, norm_layer=nn.LayerNorm)
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        mask = None if valid is None else valid[:, None, None, :]
        return self.linear(self.pool(self.norm(x), attn_mask=mask))


def published_scores(
    train: Table, test: Table, *, seed: int = 0, base_lr: float | list[float] | None = None, **options: Any
) -> np.ndarray:
    """(n, classes) logits of :class:`PublishedLinear` under the published schedule.

    ``base_lr`` is for a batch of 256; of several the best on a held-out part of ``train`` is used, or the first where
    nothing can be held out. ``options`` replace those of :data:`PUBLISHED`; the batch is at most the size of ``train``.
    """
    return _Probe(PublishedLinear, PUBLISHED, seed, options).scores(train, test, base_lr)


def attentive_scores(
    train: Table, test: Table, *, seed: int = 0, base_lr: float | list[float] | None = None, **options: Any
) -> np.ndarray:
    """(n, classes) logits of :class:`Attentive` on tables of tokens; options as in :func:`published_scores`."""
    return _Probe(Attentive, ATTENTIVE, seed, options).scores(train, test, base_lr)


def published_choice(
    train: Table, *, seed: int = 0, base_lr: float | list[float] | None = None, **options: Any
) -> Choice | None:
    """The ``base_lr`` that :func:`published_scores` chooses among several; None where there is nothing to choose."""
    return _Probe(PublishedLinear, PUBLISHED, seed, options).choice(train, base_lr)


def attentive_choice(
    train: Table, *, seed: int = 0, base_lr: float | list[float] | None = None, **options: Any
) -> Choice | None:
    """The ``base_lr`` that :func:`attentive_scores` chooses among several; None where there is nothing to choose."""
    return _Probe(Attentive, ATTENTIVE, seed, options).choice(train, base_lr)


class _Probe:
    """A kind of probe, ``module(width, classes)``, and how it is trained."""

    def __init__(
        self,
        module: Callable[[int, int], nn.Module],
        recipe: Mapping[str, Any],
        seed: int,
        options: Mapping[str, Any],
    ):
        self.module, self.seed = module, seed
        self.recipe = {**recipe, **options}
        self.balanced = bool(self.recipe.pop("balanced", False))

    def scores(self, train: Table, test: Table, base_lr: float | list[float] | None) -> np.ndarray:
        best = self.choice(train, base_lr)
        return self._fit_and_score(best.value if best else self._rates(base_lr)[0], train, test)

    def choice(self, train: Table, base_lr: float | list[float] | None) -> Choice | None:
        if self.module is Attentive and train.x.ndim != 3:
            raise MaemmError("an attentive probe needs the features of tokens; embed with tokens=True")
        rates = self._rates(base_lr)
        if len(rates) == 1:
            return None
        held = held_out(train, self.seed)
        if not held.any() or held.all():
            note = f"no class has two samples to choose a learning rate with, so the first one is used ({rates[0]:g})"
            return Choice("base_lr", rates[0], note)
        rest, part = train.select(~held), train.select(held)
        return Choice("base_lr", max(rates, key=lambda rate: part.metric(self._fit_and_score(rate, rest, part))))

    def _rates(self, base_lr: float | list[float] | None) -> list[float]:
        return base_lr if isinstance(base_lr, list) else [base_lr or self.recipe["base_lr"]]

    def _fit_and_score(self, base_lr: float, train: Table, test: Table) -> np.ndarray:
        with seeded(self.seed, "probe"):
            module = self.module(train.x.shape[-1], train.classes)
        module = module.to(usual_device())
        _fit(module, {**self.recipe, "base_lr": base_lr}, train, self.seed, self.balanced)
        return _logits(module, test)


def _fit(module: nn.Module, recipe: Mapping[str, Any], train: Table, seed: int, balanced: bool) -> None:
    """Train ``module``; it ends in eval mode."""
    module.train()
    device = next(module.parameters()).device
    optimizer = make_optimizer(module, recipe)
    batch = min(recipe["batch"], len(train.y))
    steps_per_epoch = len(train.y) // batch  # the rest of an epoch is dropped
    rate = learning_rate({**recipe, "batch": batch}, steps_per_epoch, recipe["epochs"] * steps_per_epoch)
    weight = _tensor(class_weights(train), device) if balanced else None
    all_x, all_y = _tensor(train.x, device), _tensor(train.y, device)
    all_valid = None if train.valid is None else _tensor(train.valid, device)
    for epoch in range(recipe["epochs"]):
        order = _tensor(np.random.default_rng([seed, epoch]).permutation(len(train.y)), device)
        for step in range(steps_per_epoch):
            rows = order[step * batch : (step + 1) * batch]
            valid = None if all_valid is None else all_valid[rows]
            lr = rate(epoch * steps_per_epoch + step)
            take_probe_step(module, optimizer, all_x[rows], all_y[rows], lr, valid, weight)
    module.eval()


def take_probe_step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    lr: float,
    valid: Tensor | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step on features ``x`` with labels ``y`` (B,), or (B, classes) of 0 and 1; -> (loss, logits) before it."""
    set_lr(optimizer, lr)
    logits = module(x, valid)
    if y.ndim == 1:
        loss = cross_entropy(logits, y, weight=weight)
    else:
        loss = binary_cross_entropy_with_logits(logits, y.to(logits.dtype), weight)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach(), logits.detach()


@torch.inference_mode()
def _logits(module: nn.Module, test: Table) -> np.ndarray:
    device = next(module.parameters()).device

    def answers(rows: slice) -> Work[np.ndarray]:
        valid = None if test.valid is None else _tensor(test.valid[rows], device)
        logits = yield module(_tensor(test.x[rows], device), valid).float()
        return logits.numpy()

    starts = range(0, len(test.y), 1024)
    return np.concatenate([*overlapped(answers(slice(start, start + 1024)) for start in starts)])


def _tensor(x: np.ndarray, device: torch.device) -> Tensor:
    return to_device(torch.from_numpy(x), device)


def class_weights(train: Table) -> np.ndarray:
    """(classes,) float32: labels / (classes that occur * samples of the class); 0 for a class without samples."""
    counts = train.y.sum(0, dtype=np.int64) if train.multilabel else np.bincount(train.y, minlength=train.classes)
    return np.where(counts > 0, counts.sum() / (np.sum(counts > 0) * np.maximum(counts, 1)), 0).astype(np.float32)
