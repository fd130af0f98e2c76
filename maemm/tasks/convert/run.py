"""``maemm convert``: published weights to maemm's format, or back to a published layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from maemm import registry
from maemm.contract.errors import MaemmError
from maemm.data.atomic import usual_permissions, write_whole
from maemm.weights.loading import load
from maemm.weights.own import save, unshared


def convert(
    source: str | Path, out: str | Path, *, kind: str | None = None, to: str | None = None, **known: Any
) -> str:
    """Published weights -> our file, or with ``to`` back to a published layout. Returns a line to print."""
    out = Path(out)
    if out.exists():
        raise MaemmError(f"{out} exists; choose another name or remove it")
    layout = None if to is None else registry.find("weights", to)()  # a wrong name is told before minutes of reading
    model = load(source, kind, **known)
    if layout is None:
        write_whole(out, lambda file: save(model, file), "the weights")
        return f"{source} ({model.kind or 'maemm'}) -> {out}: {len(model.state_dict())} tensors, maemm format"
    state = layout.write(model, model.extras)
    write_whole(out, lambda file: _save_layout(state, file, out.suffix), "the weights")
    return f"{source} ({model.kind or 'maemm'}) -> {out}: {len(state)} tensors, layout {to!r}"


def _save_layout(state: dict[str, Tensor], file: Path, suffix: str) -> None:
    if suffix == ".safetensors":
        save_file(unshared({key: value.detach().contiguous() for key, value in state.items()}), file)
        usual_permissions(file)
    else:
        torch.save({"model": state}, file)
