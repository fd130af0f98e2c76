"""No role without a part, no hook that nobody implements or calls, no option that nothing sets."""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from pathlib import Path

from maemm import registry
from maemm.config.options import options_of
from maemm.contract import formats, learning, masking, modality, networks, source

REPOSITORY = Path(__file__).parents[2]

# What waits for its first user, and the work that brings it.
WAITING: dict[str, str] = {}
BASES = {
    name: base
    for module in (source, modality, masking, networks, learning, formats)
    for name, base in vars(module).items()
    if inspect.isclass(base) and base.__module__ == module.__name__
}


@cache
def text_of(*patterns: str) -> str:
    files = [path for pattern in patterns for path in sorted(REPOSITORY.glob(pattern))]
    return "\n".join(path.read_text(encoding="utf-8") for path in files if path != Path(__file__))


@cache
def definitions() -> dict[str, set[str]]:
    """{method: classes of the core and the bundled plugins that define it}, the contract itself left out."""
    methods: dict[str, set[str]] = {}
    for path in [*REPOSITORY.glob("maemm/**/*.py"), *REPOSITORY.glob("plugins/**/*.py")]:
        if "templates" in path.parts or path.parent.name in ("contract", "testing"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                for statement in node.body:
                    if isinstance(statement, ast.FunctionDef):
                        methods.setdefault(statement.name, set()).add(node.name)
    return methods


def unused_roles() -> set[str]:
    return {f"role {role}" for role in registry.ROLES if not registry.names(role)}


def unused_hooks() -> set[str]:
    """Methods of the contract's base classes that no part overrides, or that nothing calls."""
    calls = text_of("maemm/**/*.py", "plugins/**/*.py")
    hooks = set()
    for name, base in BASES.items():
        for method, function in vars(base).items():
            if method.startswith("_") or not inspect.isfunction(function):
                continue
            called = re.search(rf"\.{method}\(|\"{method}\"", calls) or method == "forward"
            if not definitions().get(method) or not called:
                hooks.add(f"hook {name}.{method}")
    return hooks


def unused_options() -> set[str]:
    """Options that no recipe sets, no code passes, no page explains and no test tries."""
    recipes, code = text_of("configs/**/*.yaml"), text_of("maemm/**/*.py", "plugins/**/*.py")
    pages = text_of("README.md", "docs/plugins.md", "docs/evaluation.md", "docs/architecture.md")
    tests = text_of("tests/**/*.py")
    options = set()
    for role in registry.ROLES:
        for name in registry.names(role) if role not in ("weights", "samples") else ():
            for option in options_of(registry.find(role, name)):
                used = re.search(rf"\b{option}:", recipes) or re.search(rf"[\"']{option}[\"']", code)
                if not used and not re.search(rf"\b{option}\b", pages) and not re.search(rf"\b{option}\b", tests):
                    options.add(f"option {role}.{name}.{option}")
    return options


def test_everything_has_a_user():
    assert unused_roles() | unused_hooks() | unused_options() == set(WAITING)
