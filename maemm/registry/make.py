"""Make parts from what a recipe says: ``{type: NAME, **options}``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from maemm.contract.errors import MaemmError
from maemm.registry.discovery import all_plugins
from maemm.registry.lookup import find


def part_of(spec: Any, default: str | None = None) -> tuple[str, dict[str, Any]]:
    """``{type: NAME, **options}`` or ``NAME`` -> (name, options). ``default``: the name where there is no type."""
    if isinstance(spec, str):
        return spec, {}
    if not isinstance(spec, Mapping | None):
        raise MaemmError(f"a part is a name or a mapping, got {spec!r:.60}; write {{type: NAME}}")
    options = dict(spec or {})
    name = options.pop("type", default)
    if not isinstance(name, str):
        raise MaemmError(f"a part needs a type, got {spec!r:.60}; write {{type: NAME}}")
    return name, options


def make(role: str, spec: Any, *positional: Any, default: str | None = None, where: str = "") -> Any:
    """Find a part and call it with ``positional`` and the options of ``spec``, see :func:`part_of`.

    Raises :class:`MaemmError` for an unknown part, a wrong option or an abstract class; it names the part and ``where``
    in the recipe it stands.
    """
    name, options = part_of(spec, default)
    part = find(role, name)
    if problem := missing_methods(part):
        raise MaemmError(f"{problem} ({where or role}: {name}); add it to the class")
    try:
        return part(*positional, **options)
    except TypeError as error:
        text = str(error).split("\n")[0]  # torch adds its stack to some
        raise MaemmError(f"{text} ({where or role}: {name})") from None
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError) as error:
        # Hints of a plugin may leave out bounds; torch then refuses what the part does with the numbers.
        text = str(error).split("\n")[0]
        raise MaemmError(
            f"{describe_owner(part)} cannot be made of these options: {type(error).__name__}: {text} "
            f"({where or role}: {name}); change them, or fix the plugin"
        ) from error


def describe_owner(part: Any) -> str:
    """The plugin and the class of a part, for messages: ``plugin 'sonar' (Sonar)``."""
    cls = part if inspect.isclass(part) or inspect.isroutine(part) else type(part)
    module = f"{cls.__module__}."
    owners = [plugin for plugin in all_plugins() if module.startswith(f"{plugin.package}.")]
    owner = max(owners, key=lambda plugin: len(plugin.package), default=None)
    return f"plugin {owner.name if owner else module.split('.')[0]!r} ({cls.__name__})"


def missing_methods(part: type) -> str | None:
    """What an abstract class must still implement, each with the summary of its docstring; None if it is complete."""
    names = sorted(getattr(part, "__abstractmethods__", ()))
    if not names:
        return None
    texts = []
    for name in names:
        method = getattr(part, name)
        summary = (inspect.getdoc(method) or str(inspect.signature(method))).split("\n\n")[0]
        texts.append(f"{name}(): {' '.join(summary.split())}")
    return f"{describe_owner(part)} lacks {'; '.join(texts)}"
