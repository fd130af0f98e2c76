"""What is exported: a model as a function of plain tensors, and what it answers to inputs of a known shape."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maemm.contract import Modality
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.model.model import Model

OUTPUTS = ("features", "tokens", "logits")
Answers = dict[str, Tensor]  # by modality, or by stream


@dataclass
class Subject:
    """A model on the CPU in float32 and eval mode, and the shapes of its inputs."""

    model: Model
    what: str  # where it came from, in words
    output: str  # one of OUTPUTS
    pool: str | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # {modality: (...)} without the batch
    run: Path | None = None  # the run whose metrics go on the card

    @property
    def names(self) -> list[str]:
        """The inputs, in the order of the model."""
        return list(self.shapes)

    def example(self, batch: int) -> dict[str, Tensor]:
        """Inputs {modality: (B, ...)} of about unit variance, the same at every call."""
        return {name: _example(self.model.modalities[name], name, shape, batch) for name, shape in self.shapes.items()}

    @torch.no_grad()
    def answer(self, batch: Mapping[str, Tensor], output: str | None = None) -> Answers:
        """What the model says. Raises :class:`MaemmError` where that is not finite, or where the shapes do not fit."""
        output = output or self.output
        try:
            found = answers_of(self.model, batch, output, self.pool)
        except (MaemmError, MemoryError):
            raise
        except Exception as error:  # whatever a part does with a shape that it was not made for
            reason = " ".join(str(error).split()) or type(error).__name__
            raise MaemmError(f"the model does not take {self.shape_text()} ({reason}); give another --shape") from error
        if not all(bool(one.isfinite().all()) for one in found.values()):
            raise MaemmError(f"{output} of {self.what} are not finite; these weights cannot be used")
        return found

    def shape_text(self) -> str:
        """ "image 3,32,32"."""
        return "; ".join(f"{name} {','.join(map(str, shape))}" for name, shape in self.shapes.items())

    def graph(self) -> Graph:
        """A copy of what the answer needs."""
        return Graph(self.model, self.names, self.output, self.pool)


class Graph(nn.Module):
    """inputs (B, ...), in the order of ``names`` -> a tuple of answers; without decoder and losses."""

    def __init__(self, model: Model, names: Sequence[str], output: str, pool: str | None):
        super().__init__()
        self.model, self.names, self.output, self.pool = _bare(model), list(names), output, pool

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        batch = dict(zip(self.names, inputs, strict=True))
        return tuple(answers_of(self.model, batch, self.output, self.pool).values())


def answers_of(model: Model, batch: Mapping[str, Tensor], output: str, pool: str | None) -> Answers:
    """features (B, D), tokens (B, N, D) or logits (B, classes), by modality or stream."""
    batch = dict(batch)
    if output == "logits":
        found = model.logits(batch)
        return found if isinstance(found, dict) else {next(iter(batch)): found}
    return model.embed(batch, pool=pool, tokens=output == "tokens")


def _bare(model: Model) -> Model:
    """A copy without what only pre-training needs."""
    kept = copy.copy(model)
    kept._modules = {k: v for k, v in model._modules.items() if k not in ("decoder", "objectives", "targets")}
    kept = copy.deepcopy(kept).requires_grad_(False)
    kept.decoder, kept.objectives, kept.targets = None, nn.ModuleDict(), nn.ModuleDict()
    for modality in kept.modalities.values():
        modality._modules.pop("decoder", None)
    return kept.eval()


# ------------------------------------------------------------------------------------------------ shapes
def subject_of(
    model: Model, what: str, *, output: str | None = None, pool: str | None = None, shape: str | None = None
) -> Subject:
    """``output`` None: logits where the model has a classifier, else features. ``shape``: see :func:`shapes_of`."""
    output = output or ("features" if model.head is None else "logits")
    if output not in OUTPUTS:
        raise MaemmError(f"unknown output {output!r}; choose {', '.join(OUTPUTS)}")
    if output == "logits" and model.head is None:
        raise MaemmError(f"{what} has no classifier, so it has no logits; export features or tokens")
    if pool is not None and output != "features":
        raise MaemmError(f"--pool is for features, and {output} are exported; add --output features")
    model = model.to("cpu").float().eval()
    return Subject(model, what, output, pool, shapes_of(model.modalities, shape))


def shapes_of(modalities: Mapping[str, Modality], text: str | None) -> dict[str, tuple[int, ...]]:
    """The shape of one prepared sample of each modality: the usual one, or that of ``text``.

    ``text``: "3,64,64", or with several modalities "audio=96,64;image=3,64,64". Raises :class:`MaemmError`.
    """
    told = _told(modalities, text) if text else {}
    found = {name: told.get(name) or one.sample_shape() for name, one in modalities.items()}
    missing = [name for name, shape in found.items() if shape is None]
    if missing:
        raise MaemmError(
            f"samples of {missing[0]!r} have no usual shape, and a graph needs one; "
            f"add --shape {missing[0]}=SIDE,SIDE,... as the model gets them, without the batch"
        )
    return found


def _told(modalities: Mapping[str, Modality], text: str) -> dict[str, tuple[int, ...]]:
    found = {}
    for part in text.split(";"):
        name, _, sides = part.rpartition("=")
        name = name.strip() or (next(iter(modalities)) if len(modalities) == 1 else "")
        if name not in modalities:
            known = ", ".join(modalities)
            raise MaemmError(f"--shape {text!r} is for {name or 'no modality'!r}; write NAME=SIDE,SIDE with {known}")
        if not re.fullmatch(r"\s*[1-9]\d{0,8}\s*(,\s*[1-9]\d{0,8}\s*)*", sides):
            raise MaemmError(f"--shape {text!r} is no list of whole numbers above 0; write such as {name}=3,64,64")
        found[name] = tuple(int(one) for one in sides.split(","))
    return found


def _example(modality: Modality, name: str, shape: tuple[int, ...], batch: int) -> Tensor:
    rng = Rng(("export", name), range(batch), batch)
    usual: Any = modality.example(batch, rng).x
    if tuple(usual.shape[1:]) == shape:
        return usual
    return (rng.uniform("input", *shape) - 0.5) * 12**0.5
