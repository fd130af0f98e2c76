"""Rules of the manifest and of its parts as classes."""

from __future__ import annotations

import inspect
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

from maemm import contract, registry
from maemm.config.messages import MISSING
from maemm.config.options import Option, options_of, problems
from maemm.contract.version import CONTRACT_VERSION
from maemm.data.pack import Packer
from maemm.registry import Plugin
from maemm.testing.case import ROWS, Case, check
from maemm.testing.edges import at_edges, beyond_edges
from maemm.testing.outcome import ALL, DoesNotApply, NotUsed

BASES = {
    "modalities": contract.Modality,
    "maskings": contract.Masking,
    "encoders": contract.Encoder,
    "decoders": contract.Decoder,
    "targets": contract.Target,
    "objectives": contract.Objective,
    "heads": contract.Head,
    "trackers": contract.Tracker,
    "weights": contract.CheckpointFormat,
    "packs": Packer,
}
HEAVY = ("torch", "torchvision", "timm", "matplotlib")
PARTS = tuple(registry.ROLES)
WITH_OPTIONS = tuple(role for role in PARTS if role not in ("samples", "weights"))


@check(ALL)
def manifest_is_complete(case: Case) -> None:
    """A manifest has a version, a one-line summary, this maemm's contract version, a part, and its folder's name."""
    plugin, change = case.plugin, "write it in Plugin(...) in the package's __init__.py"
    case.require(isinstance(plugin, Plugin), "manifest", type(plugin).__name__, "a maemm.Plugin", change)
    case.require(plugin.contract == CONTRACT_VERSION, "manifest: contract", plugin.contract, CONTRACT_VERSION, change)
    for name in ("version", "summary"):
        text = getattr(plugin, name)
        good = text.strip() and "\n" not in text
        case.require(good, f"manifest: {name}", repr(text), "one line of text", change)
    case.require(list(plugin.parts()), "manifest: parts", "none", "at least one modality or other part", change)
    home, _, folder = case.package.rpartition(".")
    if home == "maemm_plugins":
        good = folder in (plugin.name, f"maemm_{plugin.name}")
        case.require(good, "manifest: name", repr(plugin.name), f"the folder's name {folder!r}", change)


@check(ALL)
def manifest_is_light(case: Case) -> None:
    """Importing the manifest imports neither torch nor another slow package."""
    code = f"import sys, {case.package}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    rule, change = "importing the manifest is cheap", "import heavy modules in the parts' modules only"
    reason = (done.stderr.strip().splitlines() or [""])[-1]
    case.require(done.returncode == 0, rule, reason, f"{case.package} to import in a fresh process", change)
    case.require(not done.stdout.strip(), rule, f"{done.stdout.strip()} imported", "no heavy import", change)


@check(*PARTS)
def part_can_be_imported(case: Case) -> None:
    """Each name of the manifest leads to a subclass of its role's base, or to a function for sources and samples."""
    target = getattr(case.plugin, case.role)[case.part]
    part = registry.find(case.role, case.part)
    base, change = BASES.get(case.role), f"fix {target!r} in the manifest, or the class's base"
    if base is None:
        case.require(callable(part), f"{target} is a function", type(part).__name__, "a callable", change)
        return
    good = inspect.isclass(part) and issubclass(part, base)
    case.require(
        good, f"{target} has its role's base class", part, f"a subclass of {base.__module__}.{base.__name__}", change
    )
    missing = sorted(getattr(part, "__abstractmethods__", ()))
    case.require(not missing, f"{target} is complete", f"no {', '.join(missing)}", "all abstract methods", change)


@check(*WITH_OPTIONS, needs=["part_can_be_imported"])
def options_are_documented(case: Case) -> None:
    """Each keyword-only parameter has a type hint and a line below "Options" in the docstring."""
    change = 'add "name: text" below a line "Options" in the docstring, and a type hint in the constructor'
    options = options_of(registry.find(case.role, case.part))
    silent = [name for name, option in options.items() if not option.doc]
    case.require(not silent, "options are documented", f"no text for {', '.join(silent)}", "a line for each", change)
    untyped = [name for name, option in options.items() if option.type == "any"]
    case.require(not untyped, "options are typed", f"no type for {', '.join(untyped)}", "a type hint for each", change)


@check(*WITH_OPTIONS, needs=["part_can_be_imported"])
def defaults_fit_their_types(case: Case) -> None:
    """The default of each option is a value that a recipe may set."""
    part = registry.find(case.role, case.part)
    for name, option in options_of(part).items():
        if option.default is MISSING:
            continue
        default = option.default.model_dump() if isinstance(option.default, BaseModel) else option.default
        wrong = [line for line in problems(part, {name: default}, "option")[1] if line.startswith(f"option.{name} ")]
        case.require(
            not wrong, f"default of {name}", "".join(wrong[:1]), option.type, "fix the type hint or the default"
        )


def _how_to_bound(numbers: Mapping[str, Option]) -> str:
    """What to write beside options that are numbers without bounds."""
    name, option = next(iter(numbers.items()))
    short, spelt = ("Fraction", "float, Ge(0), Le(1)") if "float" in option.type else ("PositiveInt", "int, Ge(1)")
    return (
        f"no bounds stand beside {', '.join(numbers)}; where there are some, write for example `{name}: {short}` "
        f"(names in maemm.contract.options) or `{name}: Annotated[{spelt}]` (constraints in annotated_types)"
    )


@check(*WITH_OPTIONS, needs=["part_can_be_imported"])
def bounds_hold(case: Case) -> None:
    """Values at the bounds of an option are accepted, and each value beyond them is refused with one line."""
    part = registry.find(case.role, case.part)
    numbers = {name: option for name, option in options_of(part).items() if any(_is_number(option.hint))}
    bounded = {name: list(beyond_edges(option.hint)) for name, option in numbers.items()}
    if numbers and not any(bounded.values()):
        raise DoesNotApply(_how_to_bound(numbers))
    change = "fix the type hint"
    for name, values in bounded.items():
        for value in at_edges(numbers[name].hint):
            wrong = _mistakes(part, name, value)
            case.require(not wrong, f"{name}={value}, at its bound", "".join(wrong[:1]), "accepted", change)
        for value in values:
            wrong = _mistakes(part, name, value)
            good = len(wrong) == 1 and "\n" not in wrong[0]
            case.require(good, f"{name}={value}, beyond its bounds", wrong or "accepted", "one line", change)


def _is_number(hint: Any) -> Iterator[bool]:
    """For each type in a hint, whether it is int or float."""
    args = get_args(hint)
    yield hint in (int, float)
    for arg in args[:1] if get_origin(hint) is Annotated else args:
        yield from _is_number(arg)


def _mistakes(part: Any, name: str, value: Any) -> list[str]:
    """What is wrong with one option; others may be missing."""
    return [line for line in problems(part, {name: value}, "option")[1] if line.startswith(f"option.{name} ")]


@check("modalities", needs=["part_can_be_imported"])
def worker_gets_it_cheaply(case: Case) -> None:
    """Before connect() a modality has no parameters and can be pickled, so that workers receive it cheaply."""
    modality = case.modality()
    names = [name for name, _ in modality.named_parameters()]
    rule = "no parameters before connect()"
    case.require(not names, rule, ", ".join(names), "none", "make parameters in connect()")
    try:
        pickle.loads(pickle.dumps(modality))
    except Exception as error:
        case.require(False, "it can be pickled", error, "no error", "keep open files and lambdas out of the attributes")


@check("heads", needs=["model_is_built"])
def head_answers(case: Case) -> None:
    """A head returns logits (B, classes)."""
    model = case.model()
    logits = model.logits({case.signal: case.example()})
    if isinstance(logits, dict):
        raise NotUsed("several streams answer")
    assert model.head is not None
    expected, change = (ROWS, model.head.classes), "return (B, classes) from forward()"
    case.require(logits.shape == expected, "logits have one column per class", tuple(logits.shape), expected, change)
