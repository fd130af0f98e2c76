"""What may import what: one table, held for every import of every module, also those inside functions and for types."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

# THE TABLE. A folder of maemm/ imports itself and the folders before it.
RINGS = ("contract", "registry", "config", "data", "model", "weights", "ui", "train", "testing", "tasks")
# A task imports itself, tasks/_shared and, where one verb builds on another, that verb.
TASKS = {
    ("ablate", "pretrain"),
    ("ablate", "probe"),
    ("finetune", "pretrain"),
    ("finetune", "evaluate"),
    ("demo", "pretrain"),
    ("demo", "retrieve"),
    ("knn", "probe"),
    ("modalities", "probe"),
}
# What a plugin imports of maemm. Plugins do not import each other, but for helpers without a manifest (_NAME), and
# where one puts others together.
PLUGINS = {"contract", "registry", "config", "data", "model", "weights"}
COMPOSITIONS = {("cav", "audio"), ("cav", "image"), ("cav", "video"), ("multimae", "image")}
# The lazy root re-exports everything, the command line calls every verb.
ABOVE = {"maemm", "maemm.__main__"}


def modules(root: Path) -> dict[str, Path]:
    """{import name: file} of maemm/ and plugins/ below ``root``; templates are code of other packages."""
    names = {}
    for folder, package in (("maemm", "maemm"), ("plugins", "maemm_plugins")):
        for path in sorted((root / folder).rglob("*.py")):
            inner = path.relative_to(root / folder).with_suffix("")
            if "templates" not in inner.parts:
                parts = [package, *inner.parts]
                names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """(line, module) of everything that a module imports; ``from a import b`` is a.b where that is a module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *base.split(".")] if base else above)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base


def allowed(importer: str, imported: str) -> bool:
    """Whether the table has this edge; what is not of this repository is not its business."""
    source, target = importer.split("."), imported.split(".")
    if target[0] not in ("maemm", "maemm_plugins") or importer in ABOVE:
        return True
    if source[0] == "maemm_plugins":
        if target[0] == "maemm":
            return len(target) > 1 and target[1] in PLUGINS
        return (
            len(target) == 1
            or target[1].startswith("_")
            or target[1] == source[1]
            or (source[1], target[1]) in COMPOSITIONS
        )
    if target[0] == "maemm_plugins" or len(target) == 1 or not {source[1], target[1]} <= {*RINGS}:
        return False
    if RINGS.index(target[1]) > RINGS.index(source[1]):
        return False
    if source[1] == target[1] == "tasks" and len(source) > 2 and len(target) > 2:
        return target[2] in (source[2], "_shared") or (source[2], target[2]) in TASKS
    return True


def violations(files: dict[str, Path], known: dict[str, Path]) -> list[str]:
    return [
        f"{name}, line {line}: imports {imported}"
        for name, path in files.items()
        for line, imported in imports(name, path, known)
        if not allowed(name, imported)
    ]


def cycles(root: Path) -> list[set[str]]:
    """Groups of modules that import each other, directly or on the way (Tarjan 1972)."""
    known = modules(root)
    edges = {name: {target for _, target in imports(name, path, known) if target in known} - {name}
             for name, path in known.items()}  # fmt: skip
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[set[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for target in edges[name]:
            if target not in order:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], order[target])
        if low[name] == order[name]:
            start = stack.index(name)
            groups.append(set(stack[start:]))
            del stack[start:]

    for name in known:
        if name not in order:
            visit(name)
    return [group for group in groups if len(group) > 1]


def test_every_import_is_in_the_table():
    known = modules(REPOSITORY)
    assert len(known) > 300 and violations(known, known) == []


def test_no_modules_import_each_other():
    assert not cycles(REPOSITORY)


@pytest.mark.parametrize(
    ("name", "line", "planted"),
    [
        ("maemm.model.pooling", "from maemm.ui import page", "maemm.ui.page"),
        ("maemm.data.loader", "def late():\n    import maemm.train.loop", "maemm.train.loop"),
        ("maemm.tasks.embed.run", "if TYPE_CHECKING:\n    from ..probe.run import probe", "maemm.tasks.probe.run"),
        ("maemm.contract.data", "from maemm import load", "maemm"),
        ("maemm_plugins.audio.modality", "from maemm.tasks.probe.run import probe", "maemm.tasks.probe.run"),
        ("maemm_plugins.audio.modality", "from ..image.modality import Image", "maemm_plugins.image.modality"),
    ],
)
def test_a_planted_import_is_seen(tmp_path, name, line, planted):
    known = modules(REPOSITORY)
    copy = tmp_path / known[name].name
    copy.write_text(known[name].read_text(encoding="utf-8"), encoding="utf-8")
    assert not violations({name: copy}, known)
    copy.write_text(copy.read_text(encoding="utf-8") + f"\n\n{line}\n", encoding="utf-8")
    (violation,) = violations({name: copy}, known)
    assert violation.endswith(f"imports {planted}")


def test_a_planted_cycle_is_seen(tmp_path):
    package = tmp_path / "maemm"
    package.mkdir()
    (tmp_path / "plugins").mkdir()
    for name, other in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")):
        (package / f"{name}.py").write_text(f"def late():\n    from maemm import {other}\n")
    assert cycles(tmp_path) == [{"maemm.a", "maemm.b", "maemm.c"}]


def test_the_architecture_page_has_the_same_rings():
    text = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `maemm/([a-z]+)/` \|", text, re.M)
    assert tuple(table) == RINGS
