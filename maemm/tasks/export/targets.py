"""Where a model can go: formats that the core writes, and libraries whose layout a checkpoint format knows."""

from __future__ import annotations

from maemm.contract.errors import MaemmError, advice
from maemm.tasks.export.exported_state import library_kinds
from maemm.tasks.export.written import FORMATS, Write


def check_target(to: str) -> None:
    """Raises :class:`MaemmError` for an unknown target."""
    known = [*library_kinds(), *FORMATS]
    if to not in known:
        raise MaemmError(f"unknown target {to!r} (--to); {advice(to, known)}")


def writer_of(to: str) -> Write:
    """The function that writes a target."""
    if to == "torch":
        from maemm.tasks.export.graph_torch import write
    elif to == "onnx":
        from maemm.tasks.export.graph_onnx import write
    elif to == "safetensors":
        from maemm.tasks.export.plain import write
    else:
        from maemm.tasks.export.library import writer

        return writer(to)
    return write
