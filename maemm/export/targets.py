"""Where a model can go: formats that the core writes, and libraries whose layout a weights kind knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from maemm import plugins
from maemm.contract import WeightsKind
from maemm.errors import MaemmError
from maemm.export.subject import Answers, Subject
from maemm.model import Model
from maemm.nearest import advice

Read = Callable[[Mapping[str, Tensor]], Answers]
FORMATS = {"safetensors": ".safetensors", "torch": ".pt2", "onnx": ".onnx"}  # of the core: name -> ending


@dataclass(frozen=True)
class Written:
    """What a target wrote into a folder, and how it is read there."""

    name: str  # of the file, or of the folder, that is asked for
    read: Read  # loaded from what was written: {input: (B, ...)} -> answers
    output: str  # what ``read`` answers
    call: str  # Python that loads it; {path} stands for its place
    by: str  # what read it back for the check
    beside: tuple[str, ...] = ()  # names of further files


Write = Callable[[Subject, Path, str], Written]  # (subject, folder, name)


def library_kinds() -> dict[str, list[WeightsKind]]:
    """{library: the kinds that hand weights over to it}."""
    found: dict[str, list[WeightsKind]] = {}
    for name in plugins.names("weights"):
        kind = plugins.find("weights", name)()
        if kind.library is not None:
            found.setdefault(kind.library, []).append(kind)
    return dict(sorted(found.items()))


def check_target(to: str) -> None:
    """Raises :class:`MaemmError` for an unknown target."""
    known = [*library_kinds(), *FORMATS]
    if to not in known:
        raise MaemmError(f"unknown target {to!r} (--to); {advice(to, known)}")


def kind_for(model: Model, to: str) -> WeightsKind:
    """The kind that hands this model over to the library ``to``; an error says why none can, and what can be done."""
    kinds, reasons = library_kinds(), {}
    for kind in kinds[to]:
        try:
            kind.handover(model)
        except MaemmError as error:
            reasons[kind.name] = str(error)
        else:
            return kind
    possible = [one for one in kinds if one != to and _fits(kinds[one], model)]
    whole = "; ".join(dict.fromkeys(reasons.values()))
    raise MaemmError(f"this model cannot go to {to} ({whole}); choose --to {', '.join([*possible, *FORMATS])}")


def _fits(kinds: list[WeightsKind], model: Model) -> bool:
    for kind in kinds:
        try:
            kind.handover(model)
        except MaemmError:
            continue
        return True
    return False


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
