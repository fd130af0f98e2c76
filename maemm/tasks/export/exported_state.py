"""Which checkpoint format hands a model over to which library."""

from __future__ import annotations

from maemm import registry
from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.model.model import Model
from maemm.tasks.export.written import FORMATS


def library_kinds() -> dict[str, list[CheckpointFormat]]:
    """{library: the kinds that hand weights over to it}."""
    found: dict[str, list[CheckpointFormat]] = {}
    for name in registry.names("weights"):
        kind = registry.find("weights", name)()
        if kind.library is not None:
            found.setdefault(kind.library, []).append(kind)
    return dict(sorted(found.items()))


def kind_for(model: Model, to: str) -> CheckpointFormat:
    """The kind that hands this model over to the library ``to``; an error says why none can, and what can be done."""
    kinds, reasons = library_kinds(), {}
    for kind in kinds[to]:
        try:
            kind.exported_state(model)
        except MaemmError as error:
            reasons[kind.name] = str(error)
        else:
            return kind
    possible = [one for one in kinds if one != to and _fits(kinds[one], model)]
    whole = "; ".join(dict.fromkeys(reasons.values()))
    raise MaemmError(f"this model cannot go to {to} ({whole}); choose --to {', '.join([*possible, *FORMATS])}")


def _fits(kinds: list[CheckpointFormat], model: Model) -> bool:
    for kind in kinds:
        try:
            kind.exported_state(model)
        except MaemmError:
            continue
        return True
    return False
