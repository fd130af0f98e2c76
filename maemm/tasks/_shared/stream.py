"""One stream of a model of several modalities: features of a part of them, or of some together, from one checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from maemm.contract.errors import MaemmError
from maemm.model.build import build_model
from maemm.model.model import Model


class Alone(Model):
    """``whole`` with the modalities of one stream alone: only they are read, prepared and embedded. Shares weights."""

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
        self.__dict__["whole"] = whole  # not a part of this one
        self.modalities = nn.ModuleDict({name: whole.modalities[name] for name in names})
        self.head = None  # it would ask for the others
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
    ) -> dict[str, Tensor]:
        """{stream: (B, D)}. Of one modality the choices are those of :meth:`Model.embed`; several have their mean."""
        batch = {name: one for name, one in batch.items() if name in self.modalities}
        if stream is not None or len(self.modalities) == 1:
            return super().embed(batch, pool, norm, layers, tokens, stream)
        if any(one is not None for one in (norm, layers)) or pool not in (None, "mean") or tokens:
            raise MaemmError(
                f"stream {self.stream!r} joins modalities, which are pooled by mean after the last norm; leave pool, "
                "norm, layers and tokens out"
            )
        return super().embed(batch, stream=self.stream)


def _specs(recipe: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The modalities of a recipe by themselves; one that is the same as another is written out."""
    found = {}
    for name in names:
        spec = recipe["modalities"][name]
        if (other := spec.get("same_as")) is not None:
            rest = {key: value for key, value in spec.items() if key != "same_as"}
            spec = {"type": other, **recipe["modalities"][other], **rest}
        found[name] = spec
    return found


def fresh(model: Model) -> Model:
    """The same network with fresh weights, in the same form."""
    if isinstance(model, Alone):
        return Alone(build_model(model.whole.recipe), model.stream)
    return build_model(model.recipe)
