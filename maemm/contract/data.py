"""What travels through a step: samples, tokens, plans, latents, outputs. See :mod:`maemm.contract` for the letters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from maemm.contract.errors import MaemmError

Label = int | tuple[int, ...]  # a class, from 0; or all classes of a sample that may have any number of them


@dataclass(frozen=True)
class Sample:
    """One thing read from a source."""

    raw: Mapping[str, Any]  # {modality: what that modality's ``load`` understands}
    id: str  # names the sample in messages, logs and feature files: a path, ``file#index``
    label: Label | None = None


@dataclass(frozen=True)
class Preprocessed:
    """One modality of one batch, on the device, as the model sees it."""

    x: Tensor  # (B, ...) float
    # bool, False where padded or missing; None: all valid. On a grid (B, *size), one for all channels; for a set
    # (B, N); otherwise whatever the modality's own tokenize reads.
    valid: Tensor | None = None
    info: Mapping[str, Any] = field(default_factory=dict)  # what pictures or targets want to know besides
    # (B,) bool, False where a sample lacks this modality and x only fills its place; None: all have it. The model
    # makes tokens of it that are not valid: a modality need not look at it.
    present: Tensor | None = None


@dataclass(frozen=True)
class Tokens:
    """One modality of one batch, cut into tokens but not embedded."""

    values: Tensor  # (B, N, ...): (B, N, P) patch values, channel last; (B, N, K, 3 + F) point groups
    coords: Tensor  # (B or 1, N, A) position of each token; lattice index on a grid
    grid: tuple[int, ...] | None = None  # token lattice in token order, or None
    valid: Tensor | None = None  # (B, N) bool, False where padded
    rows: Tensor | None = None  # (R,) sample of each plan row; None: R = B in order
    context: Mapping[str, Any] = field(default_factory=dict)  # what the modality wants back in target or untokenize

    @property
    def batch(self) -> int:
        """B: samples."""
        return self.values.shape[0]

    @property
    def count(self) -> int:
        """N: tokens of a sample, padding included."""
        return self.values.shape[1]

    def gather(self, index: Tensor) -> Tensor:
        """Values of the tokens ``index`` (R, V) -> (R, V, ...), without copying the others."""
        return gather_tokens(self.values, index, self.rows)

    def gather_coords(self, index: Tensor) -> Tensor:
        """Coordinates of the tokens ``index`` (R, V) -> (R, V, A)."""
        if self.coords.shape[0] == 1:  # shared by the batch
            return self.coords[0][index]
        return gather_tokens(self.coords, index, self.rows)

    def everything(self) -> Tensor:
        """(R, N) index of all tokens."""
        rows = self.batch if self.rows is None else self.rows.shape[0]
        return torch.arange(self.count, device=self.values.device).expand(rows, -1)


def gather_tokens(values: Tensor, index: Tensor, rows: Tensor | None = None) -> Tensor:
    """(B, N, ...) and (R, V) -> (R, V, ...); ``rows`` (R,) says from which sample each row is taken."""
    if rows is None:
        if index.shape[0] != values.shape[0]:
            raise ValueError(f"index has {index.shape[0]} rows for {values.shape[0]} samples; give Plan.rows")
        rows = torch.arange(index.shape[0], device=index.device)
    return values[rows[:, None], index]


@dataclass(frozen=True)
class Plan:
    """Which tokens of each row the encoder sees and which are predicted.

    Rows are sorted ascending. ``visible`` and ``predict`` may meet: such tokens are decoded from mask tokens
    like any other but not counted in the loss (VideoMAE v2). In ragged batches padding repeats the row's last
    valid index at the end, and ``*_valid`` says where.
    """

    visible: Tensor  # (R, V) int64
    predict: Tensor  # (R, M) int64; M = 0 is legal
    visible_valid: Tensor | None = None  # (R, V) bool
    predict_valid: Tensor | None = None  # (R, M) bool
    counted: Tensor | None = None  # (R, M) float weight of each predicted token in the loss
    rows: Tensor | None = None  # (R,) int64 sample of each row

    def __post_init__(self) -> None:
        if self.counted is None:
            object.__setattr__(self, "counted", self._default_counted())

    def _default_counted(self) -> Tensor:
        """1, but 0 where a predicted token is visible too or is padding."""
        meets = torch.zeros_like(self.predict, dtype=torch.bool)
        if self.visible.shape[1] and self.predict.shape[1]:
            at = torch.searchsorted(self.visible.contiguous(), self.predict.contiguous())
            at = at.clamp(max=self.visible.shape[1] - 1)
            meets = self.visible.gather(1, at) == self.predict
        counted = ~meets
        if self.predict_valid is not None:
            counted = counted & self.predict_valid
        return counted.float()

    def to(self, device: torch.device | str) -> Plan:
        """The same plan on another device; the copy may be asynchronous."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def check(self, name: str, tokens: Tokens) -> Plan:
        """Check a plan made by hand; published code silently mixes samples where counts differ.

        Raises :class:`MaemmError` that names the modality, the row and what is wrong.
        """
        rows = tokens.batch if self.rows is None else self.rows.shape[0]
        for role in ("visible", "predict"):
            _check_index(f"plan of {name!r}: {role}", getattr(self, role), rows, tokens.count, self._valid_of(role))
        if self.rows is not None and (self.rows.min() < 0 or self.rows.max() >= tokens.batch):
            raise MaemmError(f"plan of {name!r}: rows point outside the batch of {tokens.batch} samples")
        return self

    def _valid_of(self, role: str) -> Tensor | None:
        return self.visible_valid if role == "visible" else self.predict_valid

    @classmethod
    def all_visible(cls, tokens: Tokens) -> Plan:
        """Nothing hidden, nothing predicted: visible (R, N), predict (R, 0), the plan of feature extraction."""
        every = tokens.everything()
        if tokens.valid is None:
            return cls(every, every[:, :0])
        # Valid tokens first, in order; padding repeats the last valid one.
        order = torch.where(tokens.valid, every, tokens.count + every).argsort(1)
        counts = tokens.valid.sum(1, keepdim=True)
        valid = every < counts
        last = order.gather(1, (counts - 1).clamp(min=0))
        return cls(torch.where(valid, order, last), every[:, :0], visible_valid=valid)


def _check_index(what: str, index: Tensor, rows: int, count: int, valid: Tensor | None) -> None:
    if index.dtype != torch.int64 or index.ndim != 2:
        raise MaemmError(f"{what} must be int64 (rows, tokens), got {index.dtype} {tuple(index.shape)}")
    if index.shape[0] != rows:
        raise MaemmError(f"{what} has {index.shape[0]} rows for {rows}")
    if not index.numel():
        return
    outside = (index < 0) | (index >= count)
    if outside.any():
        row = int(outside.any(1).nonzero()[0])
        raise MaemmError(f"{what} points outside the {count} tokens (row {row})")
    unsorted = index[:, 1:] <= index[:, :-1]
    if valid is not None:
        unsorted = unsorted & valid[:, 1:]
    if unsorted.any():
        row = int(unsorted.any(1).nonzero()[0])
        raise MaemmError(f"{what} must be sorted ascending without repeats (row {row})")


@dataclass(frozen=True)
class ModalityInput:
    """One modality of one batch, ready for the forward pass: what :meth:`Model.plan` returns, and what encoders,
    decoders and targets receive. It holds no module: another model (a teacher) embeds it with its own weights.
    """

    tokens: Tokens  # ``tokens.rows`` are those of the plan
    plan: Plan
    preprocessed: Preprocessed

    def __post_init__(self) -> None:
        if self.tokens.rows is not self.plan.rows:
            object.__setattr__(self, "tokens", replace(self.tokens, rows=self.plan.rows))


@dataclass
class Latents:
    """What an encoder returns."""

    tokens: dict[str, Tensor]  # (R, V, D) after the final norm
    prefix: dict[str, Tensor] = field(default_factory=dict)  # (R, P, D); shared by several modalities: "joint"
    streams: dict[str, Tensor] = field(default_factory=dict)  # other passes: "audio", "audio+image"
    positions: dict[str, Tensor] = field(default_factory=dict)  # (R, M, D) decoder positions replacing the true ones
    terms: dict[str, Term] = field(default_factory=dict)  # losses born in the encoder
    layers: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # tokens after the block asked for, not normed


@dataclass(frozen=True)
class Term:
    """A part of the loss as sum and count, so that micro-batches and processes add up exactly."""

    sum: Tensor  # scalar, float32
    count: Tensor  # scalar, float32, no gradient
    weight: float = 1.0

    @property
    def mean(self) -> Tensor:
        """sum / count, a scalar; 0 where nothing was counted."""
        return self.sum / self.count.clamp(min=1e-12)


@dataclass
class Output:
    """What ``model(batch)`` returns; dictionaries are keyed by modality unless said."""

    plans: dict[str, Plan]
    loss: dict[str, Tensor]  # (R, M) float32
    pred: dict[str, Tensor]  # (R, M, O)
    target: dict[str, Tensor]  # (R, M, O) float32
    encoded: dict[str, Tensor]  # (R, V, D) after the final norm
    prefix: dict[str, Tensor]  # (R, P, D)
    streams: dict[str, Tensor]
    parts: dict[str, Term] = field(default_factory=dict)  # by term name
    inputs: dict[str, ModalityInput] = field(default_factory=dict)  # what the forward pass was given
    labels: Tensor | None = None  # (B,) int64, or (B, classes) float where samples were mixed or have several
    logits: Tensor | dict[str, Tensor] | None = None  # (B, classes), where an objective asked the head

    @property
    def terms(self) -> dict[str, Tensor]:
        """{term name: scalar mean, before its weight}."""
        return {name: term.mean for name, term in self.parts.items()}

    @property
    def total(self) -> Tensor:
        """The scalar that a step minimises: the weighted sum of the terms."""
        return sum((term.weight * term.mean for term in self.parts.values()), torch.zeros(()))
