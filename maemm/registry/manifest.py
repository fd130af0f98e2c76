"""The manifest of a plugin: an object of strings, so that listing plugins imports neither torch nor readers of files::

plugin = Plugin(name="sonar", version="0.1.0", contract=1, summary="side-scan sonar",
                modalities={"sonar": "modality:Sonar"}, sources={"sonar": "sources:open_sonar"})
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
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

    Raises :class:`MaemmError` when it is made for another contract or when a name or an object is malformed.
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
    weights: Mapping[str, str] = field(default_factory=dict)
    packs: Mapping[str, str] = field(default_factory=dict)
    samples: Mapping[str, str] = field(default_factory=dict)
    demo: str | None = None  # the recipe that ``maemm demo`` runs
    files: Mapping[str, str] = field(default_factory=dict)  # {recipe: ".ply .xyz"}: what show takes for such files
    deviations: Mapping[str, str] = field(default_factory=dict)  # {"check[part]": why that rule is not for that part}

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise MaemmError(f"plugin name {self.name!r} is not a plain name; use letters, digits and _")
        if self.contract != CONTRACT_VERSION:
            raise MaemmError(
                f"plugin {self.name!r} is made for contract {self.contract!r}, this maemm has {CONTRACT_VERSION}; "
                "install matching versions"
            )
        for one in fields(self)[:4]:
            if one.name != "contract" and not isinstance(getattr(self, one.name), str):
                raise MaemmError(f"plugin {self.name!r}: {one.name} must be a text")
        if self.demo is not None and not isinstance(self.demo, str):
            raise MaemmError(f"plugin {self.name!r}: demo must be the name of a recipe")
        self._check_files()
        self._check_deviations()
        for role in ROLES:
            self._check_role(role, getattr(self, role))

    def _check_files(self) -> None:
        good = isinstance(self.files, Mapping)  # all() is this module's own
        good = good and not any(not isinstance(one, str) for pair in self.files.items() for one in pair)
        if not good or any(one[0] != "." or one.lower() != one for text in self.files.values() for one in text.split()):
            raise MaemmError(f"plugin {self.name!r}: files must be a dict of recipe: '.ending .ending', in lower case")

    def _check_deviations(self) -> None:
        texts = self.deviations.items() if isinstance(self.deviations, Mapping) else [(None, None)]
        for rule, reason in texts:
            if not isinstance(rule, str) or not isinstance(reason, str) or not reason.strip():
                raise MaemmError(f"plugin {self.name!r}: deviations must be a dict of 'check[part]': reason")

    def _check_role(self, role: str, parts: Any) -> None:
        if not isinstance(parts, Mapping):
            raise MaemmError(f"plugin {self.name!r}: {role} must be a dict of name: 'module:Name'")
        for name, target in parts.items():
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise MaemmError(f"plugin {self.name!r}: {role} has the name {name!r}; use letters, digits and _")
            if not isinstance(target, str) or not _OBJECT.fullmatch(target):
                raise MaemmError(f"plugin {self.name!r}: {role}.{name} is {target!r}; write 'module:Name'")

    def parts(self) -> Iterator[tuple[str, str, str]]:
        """(role, name, "module:Name") of everything it brings."""
        for role in ROLES:
            for name, target in getattr(self, role).items():
                yield role, name, target
