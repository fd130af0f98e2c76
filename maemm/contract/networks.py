"""Encoders, decoders and heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from maemm.contract.data import Latents, ModalityInput, Model
from maemm.contract.errors import MaemmError
from maemm.contract.modality import Modality
from maemm.contract.rng import Rng


class Encoder(nn.Module, ABC):
    """Visible tokens -> latents.

    Positional parameters: ``modalities``, the list of their names.
    """

    dim: int  # D
    norm: nn.Module  # the final norm, which pooling may apply later
    reads_predict: bool = False  # True: ``plan.predict`` changes its latents, so that rows cannot share a pass
    # What ``Latents.layers`` holds: the output of a block, or ("ffn") that of its feed-forward part before the residual
    # (data2vec). A target sets it on its own copy of the encoder; ``has_ffn_features`` says whether it may.
    layer_features: Literal["block", "ffn"] = "block"
    has_ffn_features: bool = False
    latent_shape: tuple[int, int] | None = None  # (L, C) of ``Latents.latent_tokens``; None: it has no latent queries
    pool: str = "mean"  # how features are pooled where nobody says, see :meth:`Model.embed`
    decoder_options: Mapping[str, Any] = {}  # options that the decoder must have for it

    def prepare(self, modalities: Mapping[str, Modality]) -> None:
        """Called once, before the model is complete, with its modalities, which have no parameters yet: what follows
        from their grids, such as a table of relative positions. By default nothing."""

    @abstractmethod
    def forward(
        self,
        inputs: dict[str, ModalityInput],
        modalities: Mapping[str, Modality],
        *,
        layers: Iterable[int] = (),
        norm: bool = True,
    ) -> Latents:
        """Embed and encode ``plan.visible`` of each modality: ``Latents.tokens`` (R, V, D) each, in that order.

        ``layers``: blocks, from 0, whose outputs are returned in ``Latents.layers`` too, and those of prefix tokens in
        ``Latents.prefix_layers``; -1: what enters the first block, which an encoder may not have.
        ``norm=False``: skip the final norm.
        """

    def norm_of(self, name: str) -> nn.Module:
        """The final norm of a modality's features; override it where each stream has its own."""
        return self.norm

    def layer_of(self, name: str) -> int:
        """Layer of a parameter for layer-wise learning rates: 0 (embedding), block i: i + 1, depth + 1 for the rest."""
        raise MaemmError(f"{type(self).__name__} has no layer_of(); layer decay needs it")

    def counts(self, inputs: dict[str, ModalityInput]) -> dict[str, Tensor]:
        """{term name: count, a scalar} of the terms in ``Latents.terms``, from the plans alone."""
        return {}

    def guide(self, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality], kind: str) -> dict[str, Any]:
        """What a masking needs to know of all tokens, in the order of ``plan.visible``: "features" (B, N, D), the
        "attention" (B, N) that each receives in the last block, or :class:`FirstAttention`, "first_attention".

        ``inputs`` hide nothing; called in eval mode, without gradient. Raises :class:`MaemmError` if it has none.
        """
        raise MaemmError(
            f"the masking needs {kind!r} of {type(self).__name__}, which has no such guide(); choose another "
            "masking or encoder"
        )


class Decoder(nn.Module, ABC):
    """Latents and mask tokens -> predictions.

    Positional parameters: ``outputs``, {modality: O, values of a predicted token, 0 where nothing of it is predicted};
    ``encoder_dim``, D of the latents;
    ``prefix_count``, P prefix tokens of the encoder.
    """

    dim: int | None  # D of the decoder; None: it needs no positions
    decoded_dim: int | None = None  # D of ``Latents.decoded``, which it sets for objectives with a layer of their own
    encoder_options: Mapping[str, Any] = {}  # options that the encoder must have for it
    takes_condition: bool = False  # True: it adds ``Latents.condition`` to its tokens
    keep_visible: bool | None = None  # an objective sets it to True for ``Latents.decoded_visible``; None: it has none
    reads_latent_tokens: bool = False  # True: it predicts from ``Latents.latent_tokens``
    encoder_layers: Sequence[int] = ()  # blocks of the encoder whose outputs it reads in ``Latents.layers``

    def connect(self, encoder: Encoder) -> None:
        """Called once, before its first forward pass: create what depends on more of the encoder than its width."""

    @abstractmethod
    def forward(
        self, latents: Latents, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality]
    ) -> dict[str, Tensor]:
        """{modality: predictions (R, M, O)} in the order of ``plan.predict``."""

    def draw(self, inputs: dict[str, ModalityInput], rng: Rng) -> dict[str, Tensor]:
        """{modality: random numbers that :meth:`forward` finds in ``ModalityInput.drawn``}, such as noise (R, N, D).

        Called in training only, with the plans, outside any compiled graph. By default none.
        """
        return {}


class Head(nn.Module, ABC):
    """The classifier of a fine-tuned model: encoder -> logits.

    Positional parameters: ``encoder_dim``, D of the latents.
    """

    classes: int  # number of classes

    def unused_parameters(self, model: Model, stream: str | None = None) -> Iterable[nn.Parameter]:
        """Parameters of the model that its output (or its output ``stream``) does not depend on. By default none."""
        return ()

    @abstractmethod
    def features(self, model: Model, batch: dict[str, Any]) -> Tensor | dict[str, Tensor]:
        """The input of the last layer, (B, F), or {stream: (B, F)}."""

    @abstractmethod
    def forward(self, model: Model, batch: dict[str, Any]) -> Tensor | dict[str, Tensor]:
        """Logits (B, classes), or {stream: (B, classes)} where several streams each give some."""
