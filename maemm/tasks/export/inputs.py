"""The inputs of a graph: NAME, and where samples may be padded or lack a modality, NAME_valid and NAME_present."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from maemm.contract import Preprocessed
from maemm.contract.errors import MaemmError

Inputs = dict[str, Tensor]  # by the name of the input

MEANINGS = {
    "valid": "false where {name} is padded or missing; what {name} holds there does not matter",
    "present": "false where a sample lacks {name}; what {name} holds there does not matter",
}


def input_name(modality: str, kind: str) -> str:
    """The input of a ``kind`` of :data:`MEANINGS`, bool, beside that of the modality, which has its name."""
    return f"{modality}_{kind}"


def check_names(modalities: Iterable[str]) -> None:
    """Raises :class:`MaemmError` where the name of a modality is that of an input of another one."""
    names = set(modalities)
    for modality in names:
        for kind in MEANINGS:
            if input_name(modality, kind) in names:
                raise MaemmError(
                    f"the modality {input_name(modality, kind)!r} has the name of an input of {modality!r}; "
                    "rename it in the recipe"
                )


def batch_of(inputs: Mapping[str, Tensor], modalities: Iterable[str]) -> dict[str, Preprocessed]:
    """Inputs by name -> a batch of the model."""
    batch = {}
    for name in modalities:
        further: dict[str, Any] = {
            kind: inputs[input_name(name, kind)] for kind in MEANINGS if input_name(name, kind) in inputs
        }
        batch[name] = Preprocessed(inputs[name], **further)
    return batch
