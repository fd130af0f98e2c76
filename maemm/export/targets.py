"""Where a model can go: formats that the core writes, and libraries whose layout a weights kind knows."""

from __future__ import annotations

from maemm.errors import MaemmError
from maemm.export.handover import library_kinds
from maemm.export.written import FORMATS, Write
from maemm.nearest import advice


def check_target(to: str) -> None:
    """Raises :class:`MaemmError` for an unknown target."""
    known = [*library_kinds(), *FORMATS]
    if to not in known:
        raise MaemmError(f"unknown target {to!r} (--to); {advice(to, known)}")


def writer_of(to: str) -> Write:
    """The function that writes a target."""
    if to == "torch":
        from maemm.export.graph_torch import write
    elif to == "onnx":
        from maemm.export.graph_onnx import write
    elif to == "safetensors":
        from maemm.export.plain import write
    else:
        from maemm.export.library import writer

        return writer(to)
    return write
