"""Writers of weights: maemm's own safetensors file, and the layouts of other libraries (timm, transformers)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from maemm import registry
from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.model.model import Model
from maemm.tasks.export.formats import FORMATS, Written, silenced
from maemm.tasks.export.inference_model import InferenceModel, Outputs, outputs_of
from maemm.weights import load, save
from maemm.weights.layout import refusing
from maemm.weights.own import SAFETENSORS, TORCH_SUFFIXES

LIBRARY_SUFFIXES = (SAFETENSORS, *TORCH_SUFFIXES)  # of a file for a library; the ending is the format


def write_safetensors(exported: InferenceModel, folder: Path, name: str) -> Written:
    """maemm's own format. Its card is written by :func:`maemm.tasks.export.run.export`, once the outputs agree."""
    save(exported.model, folder / name)
    loaded = load(folder / name)

    def run(inputs: Mapping[str, Tensor]) -> Outputs:
        return outputs_of(loaded, inputs, exported.output, exported.pool)

    return Written(name, run, exported.output, "maemm.load({path!r})", "maemm.load")


# ------------------------------------------------------------------------------------------------ other libraries
def library_formats() -> dict[str, list[CheckpointFormat]]:
    """{library: the checkpoint formats that can write a model for it}."""
    formats: dict[str, list[CheckpointFormat]] = {}
    for name in registry.names("weights"):
        checkpoint_format = registry.find("weights", name)()
        if checkpoint_format.library is not None:
            formats.setdefault(checkpoint_format.library, []).append(checkpoint_format)
    return dict(sorted(formats.items()))


def format_for(model: Model, library: str) -> CheckpointFormat:
    """The checkpoint format that can write ``model`` for ``library``.

    Raises :class:`MaemmError` with the reasons, and the targets that are possible, where there is none.
    """
    formats = library_formats()
    checkpoint_format, reasons = _first_fitting(formats[library], model)
    if checkpoint_format is None:
        others = [name for name in formats if name != library and _first_fitting(formats[name], model)[0]]
        raise MaemmError(
            f"this model cannot be exported to {library} ({'; '.join(reasons)}); "
            f"choose --to {', '.join([*others, *FORMATS])}"
        )
    return checkpoint_format


def _first_fitting(formats: list[CheckpointFormat], model: Model) -> tuple[CheckpointFormat | None, list[str]]:
    """The first format that can write ``model``, or None; and why those before it cannot."""
    reasons: dict[str, None] = {}  # a set in order
    for checkpoint_format in formats:
        try:
            with refusing(checkpoint_format.name):
                checkpoint_format.exported_state(model)
        except MaemmError as error:
            reasons[str(error)] = None
        else:
            return checkpoint_format, list(reasons)
    return None, list(reasons)


def write_for_library(exported: InferenceModel, folder: Path, name: str, library: str) -> Written:
    """Weights in the layout of ``library``, loaded by that library where it is installed, else by maemm."""
    checkpoint_format = format_for(exported.model, library)
    exported_state = checkpoint_format.exported_state(exported.model)
    path = file = folder / name
    if exported_state.config is not None:
        path.mkdir()
        text = json.dumps(dict(exported_state.config), indent=2) + "\n"
        (path / "config.json").write_text(text, encoding="utf-8")
        file = path / "model.safetensors"
    state = {key: value.detach().clone().contiguous() for key, value in exported_state.state.items()}
    if file.suffix == SAFETENSORS:
        save_file(state, file, metadata={"format": "pt"})
    else:
        torch.save(state, file)

    try:
        with silenced():
            forward = exported_state.run(str(path))
        checked_with = library
    except ImportError:
        loaded = load(path, checkpoint_format.name)
        forward = None
        checked_with = f"maemm.load, since {library} is not installed"

    def run(inputs: Mapping[str, Tensor]) -> Outputs:
        if forward is None:
            return outputs_of(loaded, inputs, exported_state.answers, None)
        modality = exported.names[0]
        return {modality: forward(inputs[modality])}

    return Written(name, run, exported_state.answers, exported_state.call, checked_with)
