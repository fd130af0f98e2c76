"""A model of several modalities, restricted to some of them: features of one, or of several together."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from maemm.contract.errors import MaemmError
from maemm.model.build import build_model
from maemm.model.model import Model


class StreamModel(Model):
    """``whole`` with the modalities of ``stream`` alone ("a", or "a+b"): only they are read and embedded.

    Shares the weights of ``whole``, in eval mode and without a head. Raises :class:`MaemmError` for a stream that is
    not made of modalities of the model.
    """

    whole: Model

    def __init__(self, whole: Model, stream: str):
        nn.Module.__init__(self)
        self.__dict__.update({key: copy.copy(value) for key, value in whole.__dict__.items()})
        names = stream.split("+")
        unknown = [name for name in names if name not in whole.modalities]
        if unknown or len(set(names)) < len(names):
            raise MaemmError(
                f"stream {stream!r} is not made of this model's modalities ({', '.join(whole.modalities)}); name one, "
                "or several with + between them"
            )
        self.stream = stream
        self.__dict__["whole"] = whole  # not as a submodule: its parameters are this model's already
        parts = {name: whole.modalities[name] for name in names}
        self.modalities = nn.ModuleDict(parts)  # type: ignore[assignment]  # ModuleDict does not say of what
        self.head = None  # it needs the other modalities
        self.recipe = {**whole.recipe, "modalities": _specs(whole.recipe, names), "stream": stream}
        self.eval()

    def embed(
        self,
        batch: dict[str, Any],
        pool: str | None = None,
        norm: str | None = None,
        layers: Iterable[int] | None = None,
        tokens: bool = False,
        stream: str | None = None,
        latents: bool = False,
    ) -> dict[str, Tensor]:
        """{stream: (B, D)}. For one modality as :meth:`Model.embed`; several are pooled by their common mean."""
        if isinstance(batch, Mapping):  # anything else is for the only modality
            batch = {name: x for name, x in batch.items() if name in self.modalities}
        if stream is not None or latents or len(self.modalities) == 1:
            return super().embed(batch, pool, norm, layers, tokens, stream, latents)
        if norm is not None or layers is not None or pool not in (None, "mean") or tokens:
            raise MaemmError(
                f"stream {self.stream!r} joins modalities, which are pooled by mean after the last norm; leave pool, "
                "norm, layers and tokens out"
            )
        return super().embed(batch, stream=self.stream)


def _specs(recipe: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Some modalities of a recipe; one with ``same_as`` is written out, as the other one may be missing."""
    specs = {}
    for name in names:
        spec = recipe["modalities"][name]
        if (other := spec.get("same_as")) is not None:
            own = {key: value for key, value in spec.items() if key != "same_as"}
            spec = {"type": other, **recipe["modalities"][other], **own}
        specs[name] = spec
    return specs


def reinitialized(model: Model) -> Model:
    """The same network with fresh weights, restricted to the same stream."""
    if isinstance(model, StreamModel):
        return StreamModel(build_model(model.whole.recipe), model.stream)
    return build_model(model.recipe)
