"""Modalities that break a rule of missing values, of shapes or of positions, one each."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from maemm.contract import (
    Preprocessed,
    Tokens,
)
from maemm.contract.data import gather_tokens
from maemm.testing.toy_signal import Signal


class Gappy(Signal):
    """A signal with gaps."""

    def __init__(self):
        super().__init__(gaps=True)


class Filled(Gappy):
    """Leaves in its tokens what stands for missing values."""

    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        tokens = super().tokenize(preprocessed)
        whole = super().tokenize(replace(preprocessed, valid=None))
        return replace(tokens, values=whole.values)


class LossOfAll(Gappy):
    """Its loss does not know of gaps."""

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        return super().loss(pred, target)


class MeanOfAll(Gappy):
    """Its target is compared with the mean of the signal, in which missing values are."""

    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        tokens = super().tokenize(preprocessed)
        return replace(
            tokens,
            context={"means": preprocessed.x.mean((1, 2, 3))[:, None, None].expand(tokens.batch, tokens.count, 1)},
        )

    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        return super().target(tokens, index) + gather_tokens(tokens.context["means"], index, tokens.rows)


class ShowsFilling(Gappy):
    """Shows what stands for missing values in pictures."""

    def untokenize(self, values: Tensor, tokens: Tokens, index: Tensor | None = None) -> Tensor:
        return super().untokenize(values, replace(tokens, known=None), index)


class BadKnown(Signal):
    """Says of tokens, not of values, what is known."""

    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        tokens = super().tokenize(preprocessed)
        return replace(tokens, known=torch.ones(tokens.values.shape[:2], dtype=torch.bool))


class NeedsVisible(Signal):
    """Scales what is visible by its largest value, which an empty set does not have."""

    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        x = tokens.gather(index)
        return self.embedding(x / x.abs().amax((1, 2), keepdim=True).clamp(min=1e9) + x)


class SeesAbsent(Signal):
    """Adds the mean of the batch, whoever has the modality."""

    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        tokens = super().tokenize(preprocessed)
        if preprocessed.present is None:
            return tokens
        return replace(tokens, values=tokens.values + preprocessed.x.mean())


class FlatBaseline(Signal):
    """Its baseline is one number."""

    def baseline(self, target: Tensor, counted: Tensor, known: Tensor | None = None) -> Tensor:
        return super().baseline(target, counted, known).mean()


class Unbuilt(Signal):
    """connect() fails."""

    def connect(self, encoder_dim: int, decoder_dim: int | None) -> None:
        raise ValueError("nothing fits")


class NarrowEmbedding(Signal):
    """Embeds in half the width."""

    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        return super().embed(tokens, index)[..., ::2]


class SinglePosition(Signal):
    """One position for all tokens of a row."""

    def position(self, tokens: Tokens, index: Tensor, role: str) -> Tensor:
        return super().position(tokens, index, role)[:, :1]


class NoPosition(Signal):
    """Hidden tokens have no position, so that nothing tells their mask tokens apart."""

    def position(self, tokens: Tokens, index: Tensor, role: str) -> Tensor:
        return torch.zeros_like(super().position(tokens, index, role))
