"""The files of a checkout in numbers: texts of random keys, imports and their circles, sizes. Read, not imported."""

from __future__ import annotations

import ast
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCES = {"maemm": "maemm", "plugins": "maemm_plugins"}  # folders, and the packages that they are
NAMES = ("one", "found", "known", "what", "given")  # counted as identifiers
SHORT, LONG = 40, 400  # lines of a file
# Calls whose texts go into a seed -> what they are called here, under the names of either state.
METHODS = {
    "rand": "uniform",
    "uniform": "uniform",
    "uniform_at": "uniform",
    "normal": "uniform",
    "floats": "uniform",
    "under": "fold_in",
    "fold_in": "fold_in",
    "seed": "seed",
    "generator": "generator",
    "numpy": "numpy",
}
FUNCTIONS = {"Draw": "key", "Rng": "key", "derive": "derive", "seeded": "seeded"}


@dataclass
class Module:
    """A Python file of the checkout."""

    name: str  # as it is imported
    path: str  # relative to the checkout
    lines: int
    tree: ast.Module

    @property
    def package(self) -> list[str]:
        """Names of the package in which its relative imports begin."""
        return self.name.split(".")[: None if self.path.endswith("__init__.py") else -1]

    @property
    def place(self) -> str:
        """maemm/FOLDER or plugins/FOLDER, or the file itself where it lies in no folder below."""
        return "/".join(self.path.split("/")[:2])


def modules(checkout: Path) -> dict[str, Module]:
    """{name: module} of both packages; templates of new plugins are no modules."""
    record = {}
    for folder, package in SOURCES.items():
        for path in sorted((checkout / folder).rglob("*.py")):
            inner = path.relative_to(checkout / folder).with_suffix("")
            if "templates" in inner.parts:
                continue
            name = ".".join([package, *inner.parts]).removesuffix(".__init__")
            text = path.read_text(encoding="utf-8")
            record[name] = Module(name, path.relative_to(checkout).as_posix(), text.count("\n"), ast.parse(text))
    return record


def random_keys(files: Mapping[str, Module]) -> dict[str, dict[str, int]]:
    """{kind of call: {text: how often}}; what is filled into a text is written {}."""
    record: dict[str, Counter[str]] = defaultdict(Counter)
    for module in files.values():
        for call in ast.walk(module.tree):
            if not isinstance(call, ast.Call):
                continue
            kind = None
            if isinstance(call.func, ast.Attribute):
                kind = METHODS.get(call.func.attr)
            name = getattr(call.func, "attr", getattr(call.func, "id", None))
            kind = kind or FUNCTIONS.get(str(name))
            if kind is not None:
                values = [*call.args, *(keyword.value for keyword in call.keywords)]
                record[kind].update(text for value in values for text in _texts(value))
    return {kind: dict(sorted(texts.items())) for kind, texts in sorted(record.items()) if texts}


def _texts(value: ast.expr) -> Iterator[str]:
    """Texts that a value consists of; calls inside it, and keys into dictionaries, are something else."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in value.values)
    elif isinstance(value, ast.Tuple | ast.List | ast.IfExp | ast.BinOp | ast.Starred):
        for inner in ast.iter_child_nodes(value):
            if isinstance(inner, ast.expr):
                yield from _texts(inner)


# ------------------------------------------------------------------------------------------------------- imports
@dataclass(frozen=True)
class Import:
    """One module that a statement imports from another."""

    origin: str
    target: str
    statement: int  # its line
    in_function: bool
    for_types: bool  # under TYPE_CHECKING


def imports(files: Mapping[str, Module]) -> list[Import]:
    """Every import between modules. That importing a module runs the packages around it first is not counted."""
    return [
        Import(module.name, target, node.lineno, in_function, for_types)
        for module in files.values()
        for node, in_function, for_types in _statements(module.tree)
        for target in _targets(node, module, files)
        if target != module.name
    ]


def _statements(
    node: ast.AST, in_function: bool = False, for_types: bool = False
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, in_function, for_types
    in_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for_types |= isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    for inner in ast.iter_child_nodes(node):
        yield from _statements(inner, in_function, for_types)


def _targets(node: ast.Import | ast.ImportFrom, module: Module, files: Mapping[str, Module]) -> set[str]:
    if isinstance(node, ast.Import):
        wanted = [alias.name for alias in node.names]
    else:
        above = module.package[: len(module.package) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        wanted = [f"{base}.{alias.name}" for alias in node.names]
    return {target for name in wanted if (target := _nearest(name, files))}


def _nearest(name: str, files: Mapping[str, Module]) -> str | None:
    """The module of that name, or the one that it is a name in."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name or None


def graph(files: Mapping[str, Module]) -> dict[str, Any]:
    """Counts of imports, and what imports itself in a circle, by file and by folder."""
    every = imports(files)
    first = [line for line in every if not line.in_function and not line.for_types]  # run when a module is imported
    folders: Counter[str] = Counter()
    for module in files.values():
        folders[module.place] += module.lines
    lines = {name: module.lines for name, module in files.items()}

    def pairs(some: list[Import], by_folder: bool) -> set[tuple[str, str]]:
        ends = [(line.origin, line.target) for line in some]
        if by_folder:
            ends = [(files[origin].place, files[target].place) for origin, target in ends]
        return {(origin, target) for origin, target in ends if origin != target}

    edges = pairs(every, True)
    statements = {(line.origin, line.statement): line for line in every}.values()
    return {
        "modules": len(files),
        "edges": len(pairs(every, False)),
        "import statements": len(statements),
        "in functions": sum(line.in_function for line in statements),
        "for types only": sum(line.for_types for line in statements),
        "folders": len(folders),
        "folder edges": len(edges),
        "largest circle of files": circle(pairs(every, False), lines),
        "largest circle of files, at import": circle(pairs(first, False), lines),
        "largest circle of folders": circle(edges, folders),
        "largest circle of folders, at import": circle(pairs(first, True), folders),
        "folder edges of": {
            origin: sorted(target for start, target in edges if start == origin) for origin in sorted(folders)
        },
    }


def circle(edges: set[tuple[str, str]], lines: Mapping[str, int]) -> dict[str, Any]:
    """The largest strongly connected component: how many, how many lines, which."""
    after: dict[str, set[str]] = defaultdict(set)
    for origin, target in edges:
        after[origin].add(target)
    reached = {name: _reach(name, after) for name in after}
    groups = [{other for other in reached[name] if name in reached.get(other, ())} for name in reached]
    largest = max(groups, key=lambda group: (len(group), sum(lines[name] for name in group)), default=set())
    return {"size": len(largest), "lines": sum(lines[name] for name in largest), "members": sorted(largest)}


def _reach(name: str, after: Mapping[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    left = [name]
    while left:
        new = after.get(left.pop(), set()) - reached
        reached |= new
        left += new
    return reached


# --------------------------------------------------------------------------------------------------------- sizes
def sizes(checkout: Path, files: Mapping[str, Module]) -> dict[str, Any]:
    """Lines, files, functions and names."""
    lines: Counter[str] = Counter()
    number: Counter[str] = Counter()
    for module in files.values():
        for place in {module.place, module.place.split("/")[0]}:
            lines[place] += module.lines
            number[place] += 1
    for place in ("tests", "benchmarks"):
        texts = [path.read_text(encoding="utf-8") for path in (checkout / place).rglob("*.py")]
        lines[place], number[place] = sum(text.count("\n") for text in texts), len(texts)
    nodes = [node for module in files.values() for node in ast.walk(module.tree)]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]
    words = Counter(getattr(node, "id", getattr(node, "arg", None)) for node in nodes if _is_name(node))
    return {
        "lines": dict(sorted(lines.items())),
        "files": dict(sorted(number.items())),
        f"files under {SHORT} lines": sum(module.lines < SHORT for module in files.values()),
        f"files over {LONG} lines": sum(module.lines > LONG for module in files.values()),
        "functions": len(functions),
        "median lines of a function": statistics.median(lengths),
        "private functions": sum(_is_private(node.name) for node in functions),
        "private functions used once": sum(_used_once(module.tree) for module in files.values()),
        "def take": sum(node.name == "take" for node in functions),
        "names": {name: words[name] for name in NAMES},
    }


def _is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Name | ast.arg)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _used_once(tree: ast.Module) -> int:
    """Private functions and methods of a file, each of another name, whose name is written once beside its own."""
    nodes = list(ast.walk(tree))
    functions = Counter(node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    uses = Counter(getattr(node, "id", getattr(node, "attr", None)) for node in nodes if not isinstance(node, ast.arg))
    return sum(_is_private(name) and count == 1 and uses[name] == 1 for name, count in functions.items())
