"""A model as a function of plain tensors: what it computes, for samples of a shape, whole or padded, in any batch."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter, Signature
from keyword import iskeyword
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maemm.contract import Modality, Preprocessed, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.transfer import host_copy
from maemm.model.model import Model
from maemm.tasks.export.inputs import Inputs, batch_of, check_names, input_name

OUTPUTS = ("features", "tokens", "logits", "latents")
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
    ragged: tuple[str, ...] = ()  # modalities with the input NAME_valid
    optional: tuple[str, ...] = ()  # modalities with the input NAME_present

    @property
    def names(self) -> list[str]:
        """Names of the inputs: the modalities in the model's order, then NAME_valid, then NAME_present."""
        further = [input_name(name, "valid") for name in self.ragged]
        return [*self.shapes, *further, *(input_name(name, "present") for name in self.optional)]

    def example(self, batch: int, elements: Mapping[str, int] | None = None) -> Inputs:
        """Whole samples of about unit variance, the same at every call: {input: (B, ...)}.

        ``elements``: {modality: number of elements of a set}, where it is another than in ``shapes``.
        """
        inputs = {}
        for name, shape in self.shapes.items():
            if elements and name in elements:
                shape = (elements[name], *shape[1:])
            rng = Rng(("export", name), range(batch), batch)
            x = self.model.modalities[name].example(batch, rng).x
            if tuple(x.shape[1:]) != shape:
                x = (rng.uniform("input", *shape) - 0.5) * 12**0.5
            inputs[name] = x
        for name in self.ragged:
            valid = self.model.modalities[name].validity(inputs[name])
            assert valid is not None  # :func:`inference_model` asked the same
            inputs[input_name(name, "valid")] = valid
        for name in self.optional:
            inputs[input_name(name, "present")] = torch.ones(batch, dtype=torch.bool)
        return inputs

    def tokens(self, inputs: Mapping[str, Tensor], name: str) -> Tokens:
        """The tokens of one modality of ``inputs``, without regard to NAME_present."""
        modality, valid = self.model.modalities[name], inputs.get(input_name(name, "valid"))
        with torch.no_grad(), self._blaming_shapes():
            return modality.tokenize(Preprocessed(inputs[name], valid))

    def sets(self) -> list[str]:
        """The ragged modalities whose samples are sets, (B, N, ...) with ``valid`` (B, N): N may vary."""
        inputs = self.example(1)
        return [
            name
            for name in self.ragged
            if inputs[input_name(name, "valid")].ndim == 2 and self.tokens(inputs, name).grid is None
        ]

    def check(self) -> None:
        """Raises :class:`MaemmError` where the model does not accept the shapes, or an output is not finite."""
        if not all(bool(x.isfinite().all()) for x in self.compute(self.example(1)).values()):
            raise MaemmError(f"{self.output} of {self.origin} are not finite; these weights cannot be used")

    @torch.no_grad()
    def compute(self, inputs: Mapping[str, Tensor], output: str | None = None) -> Outputs:
        """Outputs for inputs {input: (B, ...)}; ``output``: another one of :data:`OUTPUTS` than the exported.

        Raises :class:`MaemmError` where the model does not accept the shapes.
        """
        with self._blaming_shapes():
            return outputs_of(self.model, inputs, output or self.output, self.pool)

    @contextlib.contextmanager
    def _blaming_shapes(self) -> Iterator[None]:
        try:
            yield
        except (MaemmError, MemoryError):
            raise
        except Exception as error:  # whatever a part does with a shape that it was not made for
            reason = " ".join(str(error).split()) or type(error).__name__
            shapes = "; ".join(f"{name} {','.join(map(str, shape))}" for name, shape in self.shapes.items())
            raise MaemmError(f"the model does not accept {shapes} ({reason}); give another --shape") from error

    def graph(self) -> InferenceGraph:
        """A module for tracing; its weights are copies."""
        return _graph_class(self.names)(self.model, self.names, self.output, self.pool)


class InferenceGraph(nn.Module):
    """Inputs (B, ...), in the order of ``names`` -> a tuple of outputs. Decoder, targets and losses are left out."""

    def __init__(self, model: Model, names: Sequence[str], output: str, pool: str | None):
        super().__init__()
        self.model, self.names, self.output, self.pool = _without_pretraining(model), list(names), output, pool

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        by_name = dict(zip(self.names, inputs, strict=True))
        return tuple(outputs_of(self.model, by_name, self.output, self.pool).values())


def _graph_class(names: Sequence[str]) -> type[InferenceGraph]:
    """:class:`InferenceGraph` whose ``forward`` has parameters of these names, as far as Python allows: torch calls the
    inputs of a program so."""

    def forward(self: InferenceGraph, *inputs: Tensor) -> tuple[Tensor, ...]:
        return InferenceGraph.forward(self, *inputs)

    allowed = [name if name.isidentifier() and not iskeyword(name) else f"input_{i}" for i, name in enumerate(names)]
    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ["self", *allowed]]
    forward.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # read by inspect
    return type("NamedInferenceGraph", (InferenceGraph,), {"forward": forward})


def outputs_of(model: Model, inputs: Mapping[str, Tensor], output: str, pool: str | None) -> Outputs:
    """features (B, D), tokens (B, N, D), logits (B, classes) or latents (B, L, C), by modality or stream.

    ``inputs``: by their names.
    """
    batch: dict[str, Any] = batch_of(inputs, model.modalities)
    if output == "logits":
        logits = model.logits(batch)
        return logits if isinstance(logits, dict) else {next(iter(batch)): logits}
    if output == "latents":
        return model.embed(batch, latents=True)
    return model.embed(batch, pool=pool, tokens=output == "tokens")


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
    model: Model,
    origin: str,
    *,
    output: str | None = None,
    pool: str | None = None,
    shape: str | None = None,
    whole: bool = False,
) -> InferenceModel:
    """``model``, or a copy of it on the CPU, in float32 and eval mode, with checked options of ``maemm export``.

    ``output``: one of :data:`OUTPUTS`; None: logits where the model has a classifier, else features. ``shape``: see
    :func:`input_shapes`. ``whole``: no inputs for validity, even where samples can be padded. Raises
    :class:`MaemmError`.
    """
    output = output or ("features" if model.head is None else "logits")
    if output not in OUTPUTS:
        raise MaemmError(f"unknown output {output!r}; choose {', '.join(OUTPUTS)}")
    if output == "latents" and model.encoder.latent_shape is None:
        raise MaemmError(f"{origin} has no latent tokens; export features or tokens")
    if output == "logits" and model.head is None:
        raise MaemmError(f"{origin} has no classifier, so it has no logits; export features or tokens")
    if pool is not None and output != "features":
        raise MaemmError(f"--pool is for features, and {output} are exported; add --output features")
    model = _for_inference(model)
    check_names(model.modalities)
    exported = InferenceModel(model, origin, output, pool, input_shapes(model.modalities, shape))
    if not whole:
        modalities, inputs = model.modalities, exported.example(1)
        exported.ragged = tuple(name for name, x in inputs.items() if modalities[name].validity(x) is not None)
        if len(modalities) > 1 and model.recipe.get("data", {}).get("missing") == "allow":
            exported.optional = tuple(modalities)
    return exported


def _for_inference(model: Model) -> Model:
    """``model`` where it is on the CPU, in float32 and eval mode; else a copy that is, so that ``model`` stays."""
    tensors = [*model.parameters(), *model.buffers()]
    is_float32 = all(x.dtype == torch.float32 for x in tensors if x.is_floating_point())
    if is_float32 and all(x.device.type == "cpu" for x in tensors) and not any(x.training for x in model.modules()):
        return model
    return host_copy(model).float().eval()


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
