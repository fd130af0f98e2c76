"""``maemm convert``: published weights to maemm's format, or back to a published layout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from maemm import registry
from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError
from maemm.data.atomic import usual_permissions, write_whole
from maemm.data.locks import writes
from maemm.weights.layout import refusing
from maemm.weights.loading import load
from maemm.weights.own import SAFETENSORS, TORCH_SUFFIXES, check_suffix, save, unshared


@writes("out")
def convert(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    kind: str | None = None,
    to: str | None = None,
    **settings: Any,
) -> str:
    """Write weights in maemm's format, or in the published layout ``to``. Returns a line of text for people.

    The ending of ``out`` is the format: .safetensors, and for published layouts also those of ``torch.save``.
    ``kind``: the checkpoint format of ``source``; None: recognise it. ``settings``: what the weights do not record,
    see :func:`maemm.load`. Raises :class:`MaemmError`.
    """
    out = expanded(out)
    if out.exists():
        raise MaemmError(f"{out} exists; choose another name or remove it")
    if to is None:
        check_suffix(out, "maemm's own format", (SAFETENSORS,))
    else:
        check_suffix(out, f"layout {to!r}", (SAFETENSORS, *TORCH_SUFFIXES))
    # Found before the weights are read: a wrong name is reported at once.
    layout = None if to is None else registry.find("weights", to)()
    model = load(source, kind, **settings)
    if layout is None:
        state = model.state_dict()
    else:
        with refusing(layout.name):
            state = layout.write(model, model.extras)

    def write(file: Path) -> None:
        if layout is None:
            save(model, file)
        elif out.suffix.lower() == SAFETENSORS:
            save_file(unshared({key: value.detach().contiguous() for key, value in state.items()}), file)
            usual_permissions(file)
        else:
            torch.save(layout.entries(state), file)

    write_whole(out, write, "the weights")
    form = "maemm format" if layout is None else f"layout {to!r}"
    return f"{source} ({model.kind or 'maemm'}) -> {out}: {len(state)} tensors, {form}"
