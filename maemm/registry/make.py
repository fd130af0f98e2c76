"""Parts made from what a recipe says: ``{type: NAME, **options}``."""

from __future__ import annotations

import inspect
from typing import Any

from maemm.contract.errors import MaemmError
from maemm.registry.discovery import all
from maemm.registry.lookup import find


def part_of(spec: Any, default: str | None = None) -> tuple[str, dict[str, Any]]:
    """``{type: NAME, **options}`` or ``NAME`` -> (name, options)."""
    if isinstance(spec, str):
        return spec, {}
    options = dict(spec or {})
    name = options.pop("type", default)
    if name is None:
        raise MaemmError(f"a part needs a type, got {spec!r}")
    return name, options


def make(role: str, spec: Any, *positional: Any, default: str | None = None, where: str = "") -> Any:
    """Find the class of a part and construct it; a wrong option is a :class:`MaemmError` that names the part."""
    name, options = part_of(spec, default)
    found = find(role, name)
    if lacking := missing_methods(found):
        raise MaemmError(f"{lacking} ({where or role}: {name}); add it to the class")
    try:
        return found(*positional, **options)
    except TypeError as error:
        raise MaemmError(f"{error} ({where or role}: {name})") from None


def who(part: Any) -> str:
    """The plugin and the class of a part, as messages name them: ``plugin 'sonar' (Sonar)``."""
    cls = part if inspect.isclass(part) else type(part)
    module = f"{cls.__module__}."
    owners = [one for one in all() if module.startswith(f"{one.package}.")]
    owner = max(owners, key=lambda one: len(one.package), default=None)
    return f"plugin {owner.name if owner else module.split('.')[0]!r} ({cls.__name__})"


def missing_methods(part: type) -> str | None:
    """What an abstract class lacks, with what the contract says of each method; None for a class that is whole."""
    names = sorted(getattr(part, "__abstractmethods__", ()))
    if not names:
        return None
    said = [
        f"{name}(): {inspect.getdoc(getattr(part, name)) or inspect.signature(getattr(part, name))}" for name in names
    ]
    return f"{who(part)} lacks {'; '.join(' '.join(one.split()) for one in said)}"
