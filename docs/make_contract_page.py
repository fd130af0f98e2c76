"""docs/contract.md, made from the docstrings of the contract.

``python docs/make_contract_page.py > docs/contract.md``
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_origin

from maemm import contract
from maemm.config.messages import type_text
from maemm.contract import grid, options
from maemm.contract.data import gather_tokens
from maemm.contract.exact import exact_matmul, full_float32
from maemm.contract.means import mean_of_counted, mean_over_known
from maemm.contract.rng import Rng
from maemm.data import arrays, files, lists
from maemm.model.masking import counts
from maemm.model.pooling import mean_of_tokens
from maemm.train import optim, schedules

HEADER = """\
# The contract

Generated from the docstrings of `maemm/contract/`; do not edit. To update it: `{command}`.
Tutorials that use it are [plugins.md](plugins.md) and, for sets, [sets.md](sets.md); `maemm plugins check NAME` checks
a plugin against it.
"""
COMMAND = "python docs/make_contract_page.py > docs/contract.md"
DATA = (
    "Sample",
    "Preprocessed",
    "Tokens",
    "Plan",
    "ModalityInput",
    "Latents",
    "Term",
    "Output",
    "ExportedState",
    "TrackedRun",
)
PARTS = (
    "Source", "Modality", "Masking", "PerModalityMasking", "Encoder", "Decoder", "Target", "Objective", "Phase",
    "Head", "CheckpointFormat", "Tracker",
)  # fmt: skip


HELPERS = (
    counts.check_ratio, counts.visible_count, counts.noise_order, counts.plan_from_order, counts.plan_from_hidden,
    counts.as_sets, gather_tokens, mean_over_known, mean_of_counted, mean_of_tokens,
    exact_matmul, full_float32,
)  # fmt: skip
FILE_HELPERS = (
    arrays.open_arrays, arrays.open_array_file, arrays.array_key, arrays.read_array, arrays.plain, files.existing,
    files.fingerprint, lists.find_files, lists.read_list, lists.class_labels,
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
    pieces.append("## Optimisers and schedules")
    pieces += [_text((module.__doc__ or "").partition("\n\n")[2].strip()) for module in (optim, schedules)]
    pieces.append("## Helpers of maskings and losses")
    pieces += [_function(function) for function in HELPERS]
    pieces.append(f"## Bounds of options\n\nIn `maemm.contract.options`. {_text(inspect.getdoc(options) or '')}")
    pieces.append("\n".join(["| name | in messages |", "|---|---|", *_aliases()]))
    pieces.append("## Helpers of sources")
    pieces += [_function(function) for function in FILE_HELPERS]
    pieces.append("## The modality of signals on a grid\n\nWhat it adds to, and how it fills in, `Modality`.")
    pieces.append(_class(grid.GridModality))
    return "\n\n".join(pieces) + "\n"


def _aliases() -> Iterator[str]:
    """The types with bounds of maemm.contract.options, and their words."""
    for name, hint in vars(options).items():
        if get_origin(hint) is Annotated and name != "Interval":
            yield f"| `{name}` | `{type_text(hint)}` |"
    yield f"| `Interval[Positive]` | `{type_text(options.Interval[options.Positive])}` |"


def _function(function: Callable[..., Any]) -> str:
    signature = re.sub(r"<function (\w+) at \w+>", r"\1", str(inspect.signature(function)).replace("'", ""))
    doc = _text(inspect.getdoc(function) or "")
    head = f"- `{function.__module__}.{function.__name__}{signature}`  "
    return "\n".join([head, *(f"  {line}".rstrip() for line in doc.splitlines())])


def methods_of(cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class itself defines, in the order of its source."""
    for name, member in vars(cls).items():
        public = not name.startswith("_") or name in ("__len__", "__call__")
        documented = inspect.isfunction(member) or isinstance(member, (property, classmethod))
        if public and documented and function_of(member).__module__ == cls.__module__:
            yield name, member


def function_of(member: Any) -> Callable[..., Any]:
    """The function behind a method, a class method or a property."""
    if isinstance(member, property):
        assert member.fget is not None
        return member.fget
    return getattr(member, "__func__", member)


def _class(cls: type) -> str:
    bases = [base.__name__ for base in cls.__bases__ if base.__module__.startswith("maemm")]
    title = f"### {cls.__name__}" + (f" ({', '.join(bases)})" if bases else "")
    pieces = [title, _text(inspect.cleandoc(cls.__doc__ or ""))]
    if fields := list(_fields(cls)):
        pieces.append("\n".join(["| field | type | what it is |", "|---|---|---|", *fields]))
    pieces += [_method(cls, name, member) for name, member in methods_of(cls)]
    return "\n\n".join(piece for piece in pieces if piece)


def _method(cls: type, name: str, member: Any) -> str:
    must = " **must**" if name in getattr(cls, "__abstractmethods__", ()) else ""
    head = f"`{name}`"
    if not isinstance(member, property):
        signature = re.sub(r"\b(self|cls)(, )?", "", str(inspect.signature(function_of(member))), count=1)
        head = f"`{name}{signature}`".replace("'", "")
    doc = inspect.getdoc(getattr(cls, name))
    return f"- {head}{must}  \n" + "\n".join(f"  {line}".rstrip() for line in _text(doc or "").splitlines())


def _text(doc: str) -> str:
    """reStructuredText marks of docstrings -> Markdown; indented blocks (options, diagrams) stay as they are."""
    doc = re.sub(r":(?:class|func|meth|mod|data):`[~.]*([^`]+)`", r"``\1``", doc)
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


def _fields(cls: type) -> Iterator[str]:
    """Annotated names of a class, with their types and the comments behind them."""
    lines = inspect.getsource(cls).splitlines()
    (tree,) = ast.parse("\n".join(lines)).body
    assert isinstance(tree, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assert node.end_lineno is not None
            comment = lines[node.end_lineno - 1][node.end_col_offset :].strip().lstrip("# ") or _above(
                lines, node.lineno
            )
            default = "" if node.value is None else f" = {ast.unparse(node.value)}"
            annotation = ast.unparse(node.annotation).replace("|", "\\|")
            type_and_default = annotation if "field(" in default else f"{annotation}{default}"
            yield f"| `{node.target.id}` | `{type_and_default}` | {_text(comment)} |"


def _above(lines: list[str], number: int) -> str:
    """The comment in the lines directly above line ``number`` (from 1)."""
    comment: list[str] = []
    for line in reversed(lines[: number - 1]):
        if not line.strip().startswith("#"):
            break
        comment.insert(0, line.strip().lstrip("# "))
    return " ".join(comment)


if __name__ == "__main__":
    print(page(), end="")
