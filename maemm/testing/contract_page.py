"""docs/contract.md, made from the docstrings of the contract.

``python -m maemm.testing.contract_page > docs/contract.md``
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator

from maemm import contract
from maemm.contract import grid
from maemm.contract.rng import Rng

HEADER = """\
# The contract

Made from the docstrings of `maemm/contract/`; do not edit. Again: `{command}`.
A tutorial that uses it is [plugins.md](plugins.md); `maemm plugins check NAME` looks whether a plugin keeps it.
"""
COMMAND = "python -m maemm.testing.contract_page > docs/contract.md"
DATA = ("Sample", "Preprocessed", "Tokens", "Plan", "ModalityInput", "Latents", "Term", "Output", "ExportedState")
PARTS = (
    "Source", "Modality", "Masking", "PerModalityMasking", "Encoder", "Decoder", "Target", "Objective", "Head",
    "CheckpointFormat",
)  # fmt: skip


def page() -> str:
    """The whole page as Markdown."""
    intro = inspect.getdoc(contract) or ""
    pieces = [HEADER.format(command=COMMAND), _text(intro)]
    pieces.append("## Data that travels")
    pieces += [_class(getattr(contract, name)) for name in DATA]
    pieces.append("## Random numbers")
    pieces.append(_class(Rng))
    pieces.append("## Parts\n\n**must** marks methods that a part has to write; the others have a default.")
    pieces += [_class(getattr(contract, name)) for name in PARTS]
    pieces.append("## The modality of signals on a grid\n\nWhat it adds to, and how it fills in, `Modality`.")
    pieces.append(_class(grid.GridModality))
    return "\n\n".join(pieces) + "\n"


def methods_of(cls: type) -> Iterator[tuple[str, object]]:
    """The public methods and properties that a class itself defines, in the order of its source."""
    for name, one in vars(cls).items():
        plain = inspect.isfunction(one) or isinstance(one, (property, classmethod))
        if (
            plain
            and (not name.startswith("_") or name in ("__len__", "__call__"))
            and _function(one).__module__ == cls.__module__
        ):
            yield name, one


def _function(one: object) -> object:
    return one.fget if isinstance(one, property) else getattr(one, "__func__", one)


def _class(cls: type) -> str:
    tree, lines = _source(cls)
    bases = [base.__name__ for base in cls.__bases__ if base.__module__.startswith("maemm")]
    title = f"### {cls.__name__}" + (f" ({', '.join(bases)})" if bases else "")
    pieces = [title, _text(inspect.cleandoc(cls.__doc__ or ""))]
    if fields := list(_fields(tree, lines)):
        pieces.append("\n".join(["| field | type | what it is |", "|---|---|---|", *fields]))
    pieces += [_method(cls, name, one) for name, one in methods_of(cls)]
    return "\n\n".join(piece for piece in pieces if piece)


def _method(cls: type, name: str, one: object) -> str:
    must = " **must**" if name in getattr(cls, "__abstractmethods__", ()) else ""
    if isinstance(one, property):
        head = f"`{name}`"
    else:
        shown = re.sub(r"\b(self|cls)(, )?", "", str(inspect.signature(_function(one))), count=1)
        head = f"`{name}{shown}`".replace("'", "")
    doc = inspect.getdoc(getattr(cls, name)) if not isinstance(one, property) else inspect.getdoc(one)
    return f"- {head}{must}  \n" + "\n".join(f"  {line}".rstrip() for line in _text(doc or "").splitlines())


def _text(doc: str) -> str:
    """reStructuredText marks of docstrings -> Markdown; indented blocks (options, diagrams) stay as they are."""
    doc = re.sub(r":(?:class|func|meth|mod):`[~.]*([^`]+)`", r"``\1``", doc)
    doc = re.sub(r"``([^`]*)``", r"`\1`", doc)
    lines, inside = [], False
    for line in doc.splitlines():
        block = line.startswith("    ") or (inside and not line.strip())
        if block and not inside:
            lines.append("```")
        if inside and not block:
            closing = len(lines)
            while lines[closing - 1] == "":
                closing -= 1
            lines.insert(closing, "```")
        inside = block
        lines.append(line[4:] if block else line)
    return "\n".join([*lines, "```"] if inside else lines)


def _source(cls: type) -> tuple[ast.ClassDef, list[str]]:
    lines = inspect.getsource(cls).splitlines()
    (tree,) = ast.parse("\n".join(lines)).body
    return tree, lines


def _fields(tree: ast.ClassDef, lines: list[str]) -> Iterator[str]:
    """Annotated names of a class, with their types and the comments behind them."""
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            comment = lines[node.end_lineno - 1][node.end_col_offset :].strip().lstrip("# ")
            default = "" if node.value is None else f" = {ast.unparse(node.value)}"
            kind = ast.unparse(node.annotation).replace("|", "\\|")
            shown = kind if "field(" in default else f"{kind}{default}"
            yield f"| `{node.target.id}` | `{shown}` | {_text(comment)} |"


def main() -> None:
    print(page(), end="")


if __name__ == "__main__":
    main()
