"""Our own weights: a safetensors file with the recipe in its header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError
from maemm.data.atomic import usual_permissions
from maemm.model.model import Model
from maemm.weights.building import model_from
from maemm.weights.describe import printable
from maemm.weights.files import Content, metadata_of

MODEL, EMA = "model.safetensors", "ema.safetensors"  # in a checkpoint folder: the weights, and their average
BEST = "best"  # in a run folder: the folder of the weights with the best validation metric
HEADER = "maemm"  # key in the header of a file
SAFETENSORS = ".safetensors"
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")  # of files that torch.save writes


def save(model: Model, path: str | Path) -> None:
    """Write a model as a safetensors file with the recipe in its header; :func:`maemm.load` restores it exactly.

    Raises :class:`MaemmError` for a name that other programs take for a file of ``torch.save``.
    """
    path = expanded(path)
    if path.suffix.lower() in TORCH_SUFFIXES:
        raise MaemmError(f"maemm's weights are safetensors ({path}); name the file {path.stem}.safetensors")
    header = {HEADER: json.dumps({"recipe": model.recipe, "kind": model.kind})}
    state = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    state |= {f"extras/{key}": value.contiguous() for key, value in model.extras.items()}
    save_file(unshared(state), path, metadata=header)
    usual_permissions(path)


def check_suffix(path: Path, title: str, suffixes: tuple[str, ...]) -> None:
    """Raises :class:`MaemmError` for a name whose ending says another format than the one that is written."""
    if path.suffix.lower() not in suffixes:
        raise MaemmError(
            f"{title} is written as {' or '.join(suffixes)}, not as {path.name!r} ({path}); name the file "
            f"{printable(path.stem)}{suffixes[0]}"
        )


def unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with copies instead of tensors that share memory (``same_as``), which safetensors refuses."""
    seen: set[int] = set()
    result = {}
    for key, value in state.items():
        result[key] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return result


def read_header(path: Path) -> dict[str, Any] | None:
    """``{"recipe": ..., "kind": the checkpoint format it came from}`` of a file by :func:`save`; None for others.

    Raises :class:`MaemmError` for a header that :func:`save` did not write.
    """
    text = metadata_of(path).get(HEADER)
    return None if text is None else _parsed(text, path)


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not isinstance(header.get("recipe"), dict):
        raise MaemmError(f"the header of {path} holds no recipe of maemm; the file is damaged, get it again")
    kind = header.get("kind")
    if kind is not None and not isinstance(kind, str):
        raise MaemmError(f"the header of {path} names no kind of checkpoint; the file is damaged, get it again")
    return header


def own_model(content: Content, path: Path, kind: str | None, settings: dict[str, Any]) -> Model:
    """The model of a file by :func:`save`.

    Raises :class:`MaemmError` for a ``kind`` and ``settings``, which the header records.
    """
    header = _parsed(content.metadata[HEADER], path)
    if settings:
        raise MaemmError(f"{', '.join(sorted(settings))} is already in the recipe of {path}; leave it out")
    if kind not in (None, header.get("kind")):
        raise MaemmError(f"{path} was saved by maemm and is of no other kind (kind={kind}); leave kind out")
    state = dict(content.value)
    extras = {key.removeprefix("extras/"): state.pop(key) for key in list(state) if key.startswith("extras/")}
    model = model_from(header["recipe"], state, f"the weights in {path}")
    model.extras, model.kind = extras, header.get("kind")
    return model
