"""The data of a step: samples, tokens, plans, latents, outputs. See :mod:`maemm.contract` for the letters in shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from maemm.contract.errors import MaemmError

Label = int | tuple[int, ...]  # a class index, from 0; multi-label: all class indices of the sample, possibly none

# maemm.model.model.Model, which the contract does not import. Parts may annotate their methods with the real class.
Model: TypeAlias = Any


@dataclass(frozen=True)
class Sample:
    """One sample as a source reads it."""

    raw: Mapping[str, Any]  # {modality: the input of that modality's ``load``}
    id: str  # identifies the sample in messages, logs and feature files: a path, ``file#index``
    label: Label | None = None
    # {modality: {name: value}}: what the source has beside the signal and a target or an objective asks for by name,
    # such as the ids of its tokens; see :meth:`Modality.side_input`, which makes those that the source does not have.
    sides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Preprocessed:
    """One modality of one batch, on the device, as the model sees it.

    ``valid`` is (B, *size) on a grid, the same for all channels, (B, N) for a set, otherwise what the modality's
    ``tokenize`` expects. Where ``present`` is False the sample lacks this modality and ``x`` is a placeholder: the
    model marks its tokens as not valid, and a modality can ignore it.
    """

    x: Tensor  # (B, ...) float
    valid: Tensor | None = None  # bool, False where padded or missing; None: all valid
    info: Mapping[str, Any] = field(default_factory=dict)  # anything else that pictures or targets need
    present: Tensor | None = None  # (B,) bool; None: no sample lacks this modality


@dataclass(frozen=True)
class Tokens:
    """One modality of one batch, cut into tokens but not embedded."""

    values: Tensor  # (B, N, ...), such as patch values (B, N, P) or point groups (B, N, K, 3 + F)
    coords: Tensor  # (B or 1, N, A) position of each token; its cell on a grid
    grid: tuple[int, ...] | None = None  # tokens along each axis, tokens in raster order; None: not on a grid
    valid: Tensor | None = None  # (B, N) bool, False where padded; None: all valid
    rows: Tensor | None = None  # (R,) int64 sample of each plan row; None: R = B, in order
    context: Mapping[str, Any] = field(default_factory=dict)  # what the modality needs in target or untokenize
    # (B, N, P) bool like values, False where a value of a valid token is missing (a gap in a recording, a cloud over a
    # map); None: all are known. Such values are in no loss, no statistic of the target and no baseline.
    known: Tensor | None = None

    @property
    def batch(self) -> int:
        """B: number of samples."""
        return self.values.shape[0]

    @property
    def count(self) -> int:
        """N: tokens per sample, padding included."""
        return self.values.shape[1]

    def gather(self, index: Tensor) -> Tensor:
        """Values of the tokens ``index`` (R, V) -> (R, V, ...)."""
        return gather_tokens(self.values, index, self.rows)

    def gather_known(self, index: Tensor) -> Tensor | None:
        """Which values of the tokens ``index`` (R, V) are known: (R, V, P) bool; None: all."""
        return None if self.known is None else gather_tokens(self.known, index, self.rows)

    def gather_coords(self, index: Tensor) -> Tensor:
        """Coordinates of the tokens ``index`` (R, V) -> (R, V, A)."""
        if self.coords.shape[0] == 1:  # shared by the batch
            return self.coords[0][index]
        return gather_tokens(self.coords, index, self.rows)

    def all_indices(self) -> Tensor:
        """(R, N) index of all tokens."""
        rows = self.batch if self.rows is None else self.rows.shape[0]
        return torch.arange(self.count, device=self.values.device).expand(rows, -1)


def gather_tokens(values: Tensor, index: Tensor, rows: Tensor | None = None) -> Tensor:
    """values (B, N, ...) and index (R, V) -> (R, V, ...); ``rows`` (R,) is the sample of each row, None: R = B.

    Raises ValueError where ``rows`` is missing although R is not B.
    """
    if rows is None:
        if index.shape[0] != values.shape[0]:
            raise ValueError(f"index has {index.shape[0]} rows for {values.shape[0]} samples; give Plan.rows")
        rows = torch.arange(index.shape[0], device=index.device)
    return values[rows[:, None], index]


@dataclass(frozen=True)
class FirstAttention:
    """What the first attention of an encoder compares, before its softmax, for maskings that go by it (SMA).

    Queries and keys rather than their products: a masking looks at a few queries, and N x N numbers are never made.
    """

    queries: Tensor  # (B, H, P + N, d) scaled; those of P prefix tokens or latents first, which are of no token
    keys: Tensor  # (B, H, N, d) of the tokens alone
    prefix: int = 0  # P; N may be missing behind it, where tokens ask nothing

    def scores(self, index: Tensor | None = None) -> Tensor:
        """Scores of all tokens for the queries ``index`` (B, R), or for all: (B, H, R, N) float32."""
        queries = self.queries
        if index is not None:
            queries = queries.gather(2, index[:, None, :, None].expand(-1, queries.shape[1], -1, queries.shape[3]))
        return queries.float() @ self.keys.float().transpose(-2, -1)

    def at(self, index: Tensor) -> FirstAttention:
        """The same with the tokens ``index`` (B, N), in that order."""

        def gather(x: Tensor) -> Tensor:
            return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

        queries, keys = self.queries, gather(self.keys)
        if queries.shape[2] > self.prefix:
            queries = torch.cat([queries[:, :, : self.prefix], gather(queries[:, :, self.prefix :])], 2)
        return replace(self, queries=queries, keys=keys)


@dataclass(frozen=True)
class Plan:
    """Which tokens of each row the encoder sees and which are predicted.

    Indices are sorted ascending within a row. ``visible`` and ``predict`` may overlap: such tokens are decoded from
    mask tokens like any other but have no weight in the loss (VideoMAE V2). In ragged batches, rows are padded at the
    end with their last valid index, and ``*_valid`` is False there. ``counted`` is 1 by default, and 0 where a
    predicted token is visible too or padded.
    """

    visible: Tensor  # (R, V) int64
    predict: Tensor  # (R, M) int64; M may be 0
    visible_valid: Tensor | None = None  # (R, V) bool, False where padded
    predict_valid: Tensor | None = None  # (R, M) bool, False where padded
    counted: Tensor = field(default=cast(Tensor, None))  # (R, M) float weight in the loss; see above
    rows: Tensor | None = None  # (R,) int64 sample of each row; None: R = B, in order
    # Several predicted sets for one pass of the encoder (I-JEPA): rows that see the same tokens share a pass.
    passes: Tensor | None = None  # (R,) int64 pass of each row, 0 .. E - 1; None: a pass per row
    first: Tensor | None = None  # (E,) int64 one row of each pass
    # A budget over all modalities (MultiMAE): number of tokens that every row sees in all of them together. ``visible``
    # is padded to what one modality can have; the encoder runs on this many tokens.
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.counted is not None:  # given
            return
        overlaps = torch.zeros_like(self.predict, dtype=torch.bool)
        if self.visible.shape[1] and self.predict.shape[1]:
            position = torch.searchsorted(self.visible.contiguous(), self.predict.contiguous())
            position = position.clamp(max=self.visible.shape[1] - 1)
            overlaps = self.visible.gather(1, position) == self.predict
            if self.visible_valid is not None:  # a row that sees nothing is padded with a token that it does not see
                overlaps = overlaps & self.visible_valid.gather(1, position)
        counted = ~overlaps
        if self.predict_valid is not None:
            counted = counted & self.predict_valid
        object.__setattr__(self, "counted", counted.float())

    def to(self, device: torch.device | str) -> Plan:
        """The same plan on another device; a copy to a GPU may be asynchronous, one to the host is complete."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        asynchronous = torch.device(device).type != "cpu"
        moved: dict[str, Any] = {name: x.to(device, non_blocking=asynchronous) for name, x in tensors.items()}
        return replace(self, **moved)

    def of_hidden(self) -> Plan:
        """The same plan, whose :attr:`counted` (R, M) are the tokens that are predicted and not visible alone."""
        return replace(self, counted=cast(Tensor, None))

    def check(self, name: str, tokens: Tokens) -> Plan:
        """Check a plan made by hand and return it.

        Raises :class:`MaemmError` that names the modality, the row and what is wrong: dtype, shape, an index outside
        the tokens, or one out of order. (Published code silently mixes samples where counts differ.)
        """
        rows = tokens.batch if self.rows is None else self.rows.shape[0]
        _check_index(f"plan of {name!r}: visible", self.visible, rows, tokens.count, self.visible_valid)
        _check_index(f"plan of {name!r}: predict", self.predict, rows, tokens.count, self.predict_valid)
        if self.rows is not None and (self.rows.min() < 0 or self.rows.max() >= tokens.batch):
            raise MaemmError(f"plan of {name!r}: rows point outside the batch of {tokens.batch} samples")
        return self

    def of_passes(self) -> Plan:
        """The plan of the encoder's passes: a row for each (P, V), with nothing to predict (P, 0)."""
        if self.first is None:
            return self
        rows = torch.arange(len(self.visible), device=self.visible.device) if self.rows is None else self.rows
        valid = None if self.visible_valid is None else self.visible_valid[self.first]
        visible = self.visible[self.first]
        return Plan(visible, visible[:, :0], visible_valid=valid, rows=rows[self.first], budget=self.budget)

    @classmethod
    def all_visible(cls, tokens: Tokens) -> Plan:
        """Nothing hidden and nothing predicted: visible (R, N), predict (R, 0). The plan of feature extraction."""
        index = tokens.all_indices()
        if tokens.valid is None:
            return cls(index, index[:, :0])
        # Valid tokens first, in order; padding repeats the last valid one.
        order = torch.where(tokens.valid, index, tokens.count + index).argsort(1)
        counts = tokens.valid.sum(1, keepdim=True)
        valid = index < counts
        last = order.gather(1, (counts - 1).clamp(min=0))
        return cls(torch.where(valid, order, last), index[:, :0], visible_valid=valid)


def _check_index(description: str, index: Tensor, rows: int, count: int, valid: Tensor | None) -> None:
    if index.dtype != torch.int64 or index.ndim != 2:
        raise MaemmError(f"{description} must be int64 (rows, tokens), got {index.dtype} {tuple(index.shape)}")
    if index.shape[0] != rows:
        raise MaemmError(f"{description} has {index.shape[0]} rows for {rows}")
    if not index.numel():
        return
    outside = (index < 0) | (index >= count)
    if outside.any():
        row = int(outside.any(1).nonzero()[0])
        raise MaemmError(f"{description} points outside the {count} tokens (row {row})")
    unsorted = index[:, 1:] <= index[:, :-1]
    if valid is not None:
        unsorted = unsorted & valid[:, 1:]
    if unsorted.any():
        row = int(unsorted.any(1).nonzero()[0])
        raise MaemmError(f"{description} must be sorted ascending without repeats (row {row})")


@dataclass(frozen=True)
class ModalityInput:
    """One modality of one batch, ready for the forward pass: what :meth:`Model.plan` returns and encoders, decoders
    and targets receive. It holds no module, so that another model (a teacher) embeds it with its own weights.
    """

    tokens: Tokens  # ``tokens.rows`` are those of the plan
    plan: Plan
    preprocessed: Preprocessed
    computed: Any = None  # what the target computed once for all plans of the batch, see :meth:`Target.precompute`
    drawn: Tensor | None = None  # random numbers of the decoder for this plan, see :meth:`Decoder.draw`
    # {objective: the same of an objective}, see :meth:`Objective.precompute`
    computed_by: Mapping[str, Any] = field(default_factory=dict)
    # {objective: what it computed of the whole batch of the step}, see :meth:`Objective.over_batch`
    of_batch: Mapping[str, Any] = field(default_factory=dict)
    # {objective: what it drew for this plan}, and the tokens as the encoder sees them where an objective has changed
    # them (None: ``tokens``), see :meth:`Objective.disturb`
    drawn_by: Mapping[str, Any] = field(default_factory=dict)
    seen: Tokens | None = None

    def __post_init__(self) -> None:
        if self.tokens.rows is not self.plan.rows:
            object.__setattr__(self, "tokens", replace(self.tokens, rows=self.plan.rows))
        if self.seen is not None and self.seen.rows is not self.plan.rows:
            object.__setattr__(self, "seen", replace(self.seen, rows=self.plan.rows))


@dataclass
class Latents:
    """The output of an encoder. Dictionaries are keyed by modality unless noted."""

    tokens: dict[str, Tensor]  # (R, V, D) after the final norm
    prefix: dict[str, Tensor] = field(default_factory=dict)  # (R, P, D); key "joint" if modalities share them
    streams: dict[str, Tensor] = field(default_factory=dict)  # (R, V, D) of other passes: "audio", "audio+image"
    positions: dict[str, Tensor] = field(default_factory=dict)  # (R, M, D) decoder positions replacing the true ones
    terms: dict[str, Term] = field(default_factory=dict)  # losses computed in the encoder, by term name
    # {block: tokens after it, before any norm}; -1: what enters the first block, where the encoder offers that
    layers: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    prefix_layers: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # the same of prefix tokens
    hidden: dict[str, Tensor] = field(default_factory=dict)  # (R, M, D) of predicted tokens that stayed in the sequence
    # (R, M, D) what the last layers of the decoder read, which sets it
    decoded: dict[str, Tensor] = field(default_factory=dict)
    decoded_visible: dict[str, Tensor] = field(default_factory=dict)  # (R, V, D) the same of visible tokens, if asked
    condition: dict[str, Tensor] = field(default_factory=dict)  # (R, 1, D of the decoder), see Objective.condition
    # (R, L, C) of latent queries beside the tokens, see :attr:`Encoder.latent_shape`; key "joint" if modalities share
    # them
    latent_tokens: dict[str, Tensor] = field(default_factory=dict)

    def of_rows(self, passes: Tensor) -> Latents:
        """The latents of the rows of a plan, from those of its passes; ``passes`` (R,)."""

        def rows(latents: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: x[passes] for name, x in latents.items()}

        layers, prefixes = (
            {layer: rows(latents) for layer, latents in by_layer.items()}
            for by_layer in (self.layers, self.prefix_layers)
        )
        return Latents(
            rows(self.tokens),
            rows(self.prefix),
            rows(self.streams),
            layers=layers,
            prefix_layers=prefixes,
            latent_tokens=rows(self.latent_tokens),
        )


@dataclass(frozen=True)
class Term:
    """A term of the loss as sum and count, so that micro-batches and ranks add up exactly."""

    sum: Tensor  # scalar, float32
    count: Tensor  # scalar, float32, no gradient
    weight: float = 1.0

    @property
    def mean(self) -> Tensor:
        """sum / count, a scalar; 0 where the count is 0."""
        return self.sum / self.count.clamp(min=1e-12)


@dataclass
class Output:
    """The output of ``model(batch)``. Dictionaries are keyed by modality unless noted."""

    plans: dict[str, Plan]
    loss: dict[str, Tensor]  # (R, M) float32
    pred: dict[str, Tensor]  # (R, M, O)
    target: dict[str, Tensor]  # (R, M, T) float32; T is O, or what ``target_dim`` says
    encoded: dict[str, Tensor]  # (R, V, D) after the final norm
    prefix: dict[str, Tensor]  # (R, P, D), as in Latents
    streams: dict[str, Tensor]  # as in Latents
    parts: dict[str, Term] = field(default_factory=dict)  # the terms of the loss, by term name
    inputs: dict[str, ModalityInput] = field(default_factory=dict)  # what the forward pass received
    labels: Tensor | None = None  # (B,) int64; (B, classes) float where mixed or multi-label
    logits: Tensor | dict[str, Tensor] | None = None  # (B, classes), where an objective called the head
    decoded: dict[str, Tensor] = field(default_factory=dict)  # as in Latents
    decoded_visible: dict[str, Tensor] = field(default_factory=dict)  # as in Latents
    latents: Latents | None = None  # what the decoder received, for decoders of objectives

    @property
    def terms(self) -> dict[str, Tensor]:
        """{term name: its mean, a scalar, before its weight}."""
        return {name: term.mean for name, term in self.parts.items()}

    @property
    def total(self) -> Tensor:
        """The scalar that a step minimises: the weighted sum of the terms."""
        return sum((term.weight * term.mean for term in self.parts.values()), torch.zeros(()))
