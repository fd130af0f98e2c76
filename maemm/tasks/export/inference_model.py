"""A model as a function of plain tensors: what it computes, for inputs of a fixed shape and any batch size."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from maemm.contract import Modality
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.model.model import Model

OUTPUTS = ("features", "tokens", "logits")
Outputs = dict[str, Tensor]  # by modality, or by stream


@dataclass
class InferenceModel:
    """A model on the CPU in float32 and eval mode, which of its outputs is exported, and the shapes of its inputs."""

    model: Model
    origin: str  # where the model comes from, in words
    output: str  # one of OUTPUTS
    pool: str | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # {modality: (...)} without the batch axis
    run: Path | None = None  # the run whose metrics are listed in the card

    @property
    def names(self) -> list[str]:
        """Names of the inputs, in the order of the model's modalities."""
        return list(self.shapes)

    def example(self, batch: int) -> dict[str, Tensor]:
        """Inputs {modality: (B, ...)} of about unit variance, the same at every call."""
        inputs = {}
        for name, shape in self.shapes.items():
            rng = Rng(("export", name), range(batch), batch)
            x = self.model.modalities[name].example(batch, rng).x
            if tuple(x.shape[1:]) != shape:
                x = (rng.uniform("input", *shape) - 0.5) * 12**0.5
            inputs[name] = x
        return inputs

    @torch.no_grad()
    def compute(self, inputs: Mapping[str, Tensor], output: str | None = None) -> Outputs:
        """Outputs for inputs {modality: (B, ...)}; ``output``: another one of :data:`OUTPUTS` than the exported.

        Raises :class:`MaemmError` where an output is not finite, and where the model does not accept the shapes.
        """
        output = output or self.output
        try:
            outputs = outputs_of(self.model, inputs, output, self.pool)
        except (MaemmError, MemoryError):
            raise
        except Exception as error:  # whatever a part does with a shape that it was not made for
            reason = " ".join(str(error).split()) or type(error).__name__
            shapes = "; ".join(f"{name} {','.join(map(str, shape))}" for name, shape in self.shapes.items())
            raise MaemmError(f"the model does not accept {shapes} ({reason}); give another --shape") from error
        if not all(bool(x.isfinite().all()) for x in outputs.values()):
            raise MaemmError(f"{output} of {self.origin} are not finite; these weights cannot be used")
        return outputs

    def graph(self) -> InferenceGraph:
        """A module for tracing; its weights are copies."""
        return InferenceGraph(self.model, self.names, self.output, self.pool)


class InferenceGraph(nn.Module):
    """Inputs (B, ...), in the order of ``names`` -> a tuple of outputs. Decoder, targets and losses are left out."""

    def __init__(self, model: Model, names: Sequence[str], output: str, pool: str | None):
        super().__init__()
        self.model, self.names, self.output, self.pool = _without_pretraining(model), list(names), output, pool

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        batch = dict(zip(self.names, inputs, strict=True))
        return tuple(outputs_of(self.model, batch, self.output, self.pool).values())


def outputs_of(model: Model, inputs: Mapping[str, Tensor], output: str, pool: str | None) -> Outputs:
    """features (B, D), tokens (B, N, D) or logits (B, classes), by modality or stream."""
    inputs = dict(inputs)
    if output == "logits":
        logits = model.logits(inputs)
        return logits if isinstance(logits, dict) else {next(iter(inputs)): logits}
    return model.embed(inputs, pool=pool, tokens=output == "tokens")


def _without_pretraining(model: Model) -> Model:
    """A copy without the modules that only pre-training needs; they are not copied first."""
    bare = copy.copy(model)
    bare._modules = {k: v for k, v in model._modules.items() if k not in ("decoder", "objectives", "targets")}
    bare = copy.deepcopy(bare).requires_grad_(False)
    bare.decoder = None
    bare.add_module("objectives", nn.ModuleDict())
    bare.add_module("targets", nn.ModuleDict())
    for modality in bare.modalities.values():
        modality._modules.pop("decoder", None)
    return bare.eval()


# ------------------------------------------------------------------------------------------------ options of export
def inference_model(
    model: Model, origin: str, *, output: str | None = None, pool: str | None = None, shape: str | None = None
) -> InferenceModel:
    """``model``, which is moved to the CPU, float32 and eval mode, with checked options of ``maemm export``.

    ``output``: one of :data:`OUTPUTS`; None: logits where the model has a classifier, else features. ``shape``: see
    :func:`input_shapes`. Raises :class:`MaemmError`.
    """
    output = output or ("features" if model.head is None else "logits")
    if output not in OUTPUTS:
        raise MaemmError(f"unknown output {output!r}; choose {', '.join(OUTPUTS)}")
    if output == "logits" and model.head is None:
        raise MaemmError(f"{origin} has no classifier, so it has no logits; export features or tokens")
    if pool is not None and output != "features":
        raise MaemmError(f"--pool is for features, and {output} are exported; add --output features")
    model = model.to("cpu").float().eval()
    return InferenceModel(model, origin, output, pool, input_shapes(model.modalities, shape))


def input_shapes(modalities: Mapping[str, Modality], text: str | None) -> dict[str, tuple[int, ...]]:
    """The shape of one preprocessed sample of each modality, without the batch axis.

    ``text``: "3,64,64", or with several modalities "audio=96,64;image=3,64,64"; modalities that it does not name have
    the shape of their options. Raises :class:`MaemmError`.
    """
    explicit = _parsed_shapes(modalities, text) if text else {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, modality in modalities.items():
        shape = explicit.get(name) or modality.sample_shape()
        if shape is None:
            raise MaemmError(
                f"samples of {name!r} have no fixed shape, and a graph needs one; "
                f"add --shape {name}=SIDE,SIDE,... of a preprocessed sample, without the batch axis"
            )
        shapes[name] = shape
    return shapes


def _parsed_shapes(modalities: Mapping[str, Modality], text: str) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for part in text.split(";"):
        name, _, sides = part.rpartition("=")
        name = name.strip() or (next(iter(modalities)) if len(modalities) == 1 else "")
        if name not in modalities:
            raise MaemmError(
                f"--shape {text!r} is for {name or 'no modality'!r}; write NAME=SIDE,SIDE with {', '.join(modalities)}"
            )
        if not re.fullmatch(r"\s*[1-9]\d{0,8}\s*(,\s*[1-9]\d{0,8}\s*)*", sides):
            raise MaemmError(f"--shape {text!r} is not a list of positive integers; write such as {name}=3,64,64")
        shapes[name] = tuple(int(side) for side in sides.split(","))
    return shapes
