"""The manifest of a plugin: strings only, so that listing plugins imports neither torch nor readers of files::

plugin = Plugin(name="sonar", version="0.1.0", contract=2, summary="side-scan sonar",
                modalities={"sonar": "modality:Sonar"}, sources={"sonar": "sources:open_sonar"})
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from maemm.contract.errors import MaemmError
from maemm.contract.version import CONTRACT_VERSION

ROLES = (
    "modalities",
    "sources",
    "maskings",
    "encoders",
    "decoders",
    "targets",
    "objectives",
    "heads",
    "optimizers",
    "schedules",
    "trackers",
    "weights",
    "packs",
    "samples",
)
SINGULAR = {role: role[:-1] for role in ROLES} | {
    "modalities": "modality",
    "weights": "checkpoint format",
    "samples": "sample set",
}
PLURAL = {role: role for role in ROLES} | {"weights": "checkpoint formats", "samples": "sample sets"}

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_OBJECT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Plugin:
    """The manifest of a plugin. Each role maps names to ``"module:Name"``, relative to the manifest's package.

    Raises :class:`MaemmError` where it is made for another version of the contract or where an entry is malformed.
    """

    name: str
    version: str
    contract: int
    summary: str = ""
    modalities: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    maskings: Mapping[str, str] = field(default_factory=dict)
    encoders: Mapping[str, str] = field(default_factory=dict)
    decoders: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)
    objectives: Mapping[str, str] = field(default_factory=dict)
    heads: Mapping[str, str] = field(default_factory=dict)
    optimizers: Mapping[str, str] = field(default_factory=dict)
    schedules: Mapping[str, str] = field(default_factory=dict)
    trackers: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    packs: Mapping[str, str] = field(default_factory=dict)
    samples: Mapping[str, str] = field(default_factory=dict)
    demo: str | None = None  # the recipe that ``maemm demo`` runs
    files: Mapping[str, str] = field(default_factory=dict)  # {recipe: ".ply .xyz"}: the recipe for files ending so
    deviations: Mapping[str, str] = field(default_factory=dict)  # {"check[part]": why the part need not pass it}
    # {modality or "role.part": options with which it is checked}: small sizes, and what has no default.
    check_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise MaemmError(f"plugin name {self.name!r} is not a plain name; use letters, digits and _")
        title = f"plugin {self.name!r}"
        if self.contract != CONTRACT_VERSION:
            raise MaemmError(
                f"{title} is made for contract {self.contract!r}, this maemm has {CONTRACT_VERSION}; "
                "install matching versions"
            )
        for key in ("version", "summary"):
            if not isinstance(getattr(self, key), str):
                raise MaemmError(f"{title}: {key} must be a text")
        if self.demo is not None and not isinstance(self.demo, str):
            raise MaemmError(f"{title}: demo must be the name of a recipe")
        if not _is_text_dict(self.files) or any(
            ending[0] != "." or ending != ending.lower() for text in self.files.values() for ending in text.split()
        ):
            raise MaemmError(f"{title}: files must be a dict of recipe: '.ending .ending', in lower case")
        if not _is_text_dict(self.deviations) or not all(reason.strip() for reason in self.deviations.values()):
            raise MaemmError(f"{title}: deviations must be a dict of 'check[part]': reason")
        options = self.check_options
        if not isinstance(options, Mapping) or not all(isinstance(values, Mapping) for values in options.values()):
            raise MaemmError(f"{title}: check_options must be a dict of part: {{option: value}}")
        for role in ROLES:
            parts = getattr(self, role)
            if not isinstance(parts, Mapping):
                raise MaemmError(f"{title}: {role} must be a dict of name: 'module:Name'")
            for name, target in parts.items():
                if not isinstance(name, str) or not NAME.fullmatch(name):
                    raise MaemmError(f"{title}: {role} has the name {name!r}; use letters, digits and _")
                if not isinstance(target, str) or not _OBJECT.fullmatch(target):
                    raise MaemmError(f"{title}: {role}.{name} is {target!r}; write 'module:Name'")

    def parts(self) -> Iterator[tuple[str, str, str]]:
        """(role, name, "module:Name") of each of its parts."""
        for role in ROLES:
            for name, target in getattr(self, role).items():
                yield role, name, target


def _is_text_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(text, str) for pair in value.items() for text in pair)
