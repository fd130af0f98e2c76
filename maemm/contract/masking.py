"""What is visible and what is predicted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

from maemm.contract.data import Plan, Tokens
from maemm.contract.rng import Rng


class Masking(ABC):
    """Draws a plan for every modality of a batch. No positional parameters."""

    # What the encoder computes first and passes as ``guides``, see :meth:`Encoder.guide`
    guide: Literal["attention", "features", "first_attention"] | None = None

    counts_visible: bool = False  # True: visible tokens are predicted and count in the loss, as in an autoencoder

    def shapes(self, tokens: dict[str, Tokens]) -> int | None:
        """How many shapes, at most, the plans for ``tokens`` of these shapes have in a training, of all sets together.

        Every shape is compiled by itself, and where there are few steps are compiled (``train.compile``). By default 1:
        the shapes of plans follow from those of the tokens alone. None: any number.
        """
        return 1

    @abstractmethod
    def __call__(
        self, tokens: dict[str, Tokens], rng: Rng, guides: dict[str, Any] | None = None
    ) -> dict[str, Plan] | list[dict[str, Plan]]:
        """{modality: Tokens} -> {modality: Plan}, visible (R, V) and predict (R, M). All randomness comes from ``rng``.

        A list holds several plans of different sizes for the same samples (V-JEPA 2): each is a forward pass with its
        own terms and counts, and the loss is their mean. ``guides``: {modality: what the encoder computed}, in the
        order of ``tokens``, of those for which :meth:`guide_of` asks.
        """

    def guide_of(self, name: str, progress: float) -> str | None:
        """What the encoder computes of the modality ``name`` when the fraction ``progress`` of the training is done.

        By default :attr:`guide`. None: nothing, which costs nothing: before guidance begins, or where it has no share.
        """
        return self.guide

    def notes(self, tokens: dict[str, Tokens], rng: Rng) -> dict[str, list[str]]:
        """{modality: lines} about the plans that ``rng`` gives, for ``maemm show``: what was drawn for the whole batch,
        what equal counts cost. By default nothing."""
        return {}


class PerModalityMasking(Masking):
    """Masking that treats each modality by itself.

    Shapes of a plan may depend on N, and on what the host draws for the whole batch, never on the data, even where
    ``tokens.valid`` makes rows ragged:
    ``maemm.model.masking.counts`` turns a random order (``plan_from_order``) or a choice of hidden tokens
    (``plan_from_hidden``) into such a plan.
    """

    @abstractmethod
    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        """Tokens (B, N, ...) of the modality ``name`` -> visible (R, V) and predict (R, M), each row sorted."""

    def __call__(self, tokens: dict[str, Tokens], rng: Rng, guides: dict[str, Any] | None = None) -> dict[str, Plan]:
        """:meth:`plan` of each modality: visible (R, V) and predict (R, M)."""
        return {name: self.plan(name, modality_tokens, rng) for name, modality_tokens in tokens.items()}
