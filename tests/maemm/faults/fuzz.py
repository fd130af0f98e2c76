"""Seeded generators of broken inputs, and what must become of each: it works, or ends in a line for its user.

A generator yields :class:`Case` objects; the n-th of a seed is always the same, so that a failure is run again by its
number alone. :func:`outcome` runs one within bounds of time and memory. Other kinds of input (command lines,
checkpoints, run folders) are further functions like :func:`recipes`.
"""

from __future__ import annotations

import random
import resource
import signal
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import numpy as np

from maemm import config, registry
from maemm.config.options import describe
from maemm.config.schema import DataConfig, TrainConfig, keys_of
from maemm.contract.errors import MaemmError
from maemm.testing.edges import at_edges, beyond_edges

LONGEST_LINE = 700  # characters of a line of a message

# ------------------------------------------------------------------------------------------------ running a case


@dataclass(frozen=True)
class Case:
    """One broken input."""

    number: int  # with the seed, all that is needed to make it again
    note: str  # what was changed, for messages
    value: Any  # what is run: for recipes a dict, or the text of a file

    def __str__(self) -> str:
        return f"case {self.number}: {self.note}"


class TooSlow(BaseException):
    """Not an Exception, so that no handler of the code under test takes it for its own."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise :class:`TooSlow` in the main thread after so long. A call into native code is not interrupted."""

    def stop(number: int, frame: Any) -> None:
        raise TooSlow(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_memory() -> int:
    """Bytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def outcome(case: Case, run: Callable[[Any], Any], seconds: float = 20.0) -> str:
    """ "" where ``run(case.value)`` works, else the text of its :class:`MaemmError`.

    Raises :class:`AssertionError`, which names the case, for any other exception, for more than ``seconds`` and for a
    message that is no line a user can read.
    """
    try:
        with within(seconds):
            run(case.value)
        return ""
    except MaemmError as error:
        text = str(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
    for line in text.split("\n"):
        readable = line.strip() and line.isprintable() and len(line) <= LONGEST_LINE and "internal:" not in line
        assert readable, f"{case}: not a line for a user: {line[:2000]!r}"
    return text


# ---------------------------------------------------------------------------------------------------- odd values

NUMBERS = (0, 1, 2, 3, 7, -1, -2, 10**3, 10**6, 10**9, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63, 10**25, 10**400)
FLOATS = (0.0, -0.0, 0.5, 1.0, -0.5, 1.5, 1e-30, 1e-320, 1e9, 1e18, 1e38, 1e300, -1e300, float("inf"), float("nan"))
TEXTS = (
    "", " ", "3", "0.5", "true", "null", "none", "random", "vit", "sincos", "a.b", "a\nb", "\x00", "ä", "../x", "=",
    "&a", "*a", "!!int 3", "{", "x" * 300, "y" * 20_000, "\udcff",
)  # fmt: skip


def odd_scalar(draw: random.Random) -> Any:
    """A number, a text, a truth or nothing, as YAML, JSON or NumPy may bring them."""
    numpy = (np.int64(3), np.float32(0.5), np.bool_(True), np.float64("nan"), np.int8(-1), np.array(2), np.str_("x"))
    return draw.choice((*NUMBERS, *FLOATS, *TEXTS, True, False, None, *numpy))


def odd_value(draw: random.Random, depth: int = 0) -> Any:
    """A scalar, list or mapping of any shape."""
    kind = draw.random()
    if depth > 3 or kind < 0.6:
        return odd_scalar(draw)
    count = draw.choice((0, 1, 2, 3, 4, 9))
    if kind < 0.8:
        return [odd_value(draw, depth + 1) for _ in range(count)]
    keys: tuple[Any, ...] = ("type", "x", "name", "ratio", "dim", "masking", "a b", "", 3, None, True, 1.5, "k" * 300)
    return {draw.choice(keys): odd_value(draw, depth + 1) for _ in range(count)}


def nested(value: Any, depth: int) -> Any:
    """``value`` in ``depth`` lists."""
    for _ in range(depth):
        value = [value]
    return value


# ------------------------------------------------------------------------------------------------------- recipes

SMALL = {"dim": 48, "heads": 3, "depth": 1, "joint_depth": 1}  # of encoders and decoders, to be built in no time
ROLES = {"encoder": "encoders", "decoder": "decoders", "head": "heads", "masking": "maskings"}


def recipes(seed: int, count: int) -> Iterator[Case]:
    """Packaged recipes, made small, each with one to three changes."""
    for number in range(count):
        yield recipe(seed, number)


def recipe(seed: int, number: int) -> Case:
    """The recipe ``number`` of a seed."""
    draw = random.Random(f"recipe {seed} {number}")
    names = list(small_recipes())
    name = names[number % len(names)] if number < len(names) else draw.choice(names)
    values, notes = deepcopy(small_recipes()[name]), []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        change = draw.choices((_by_nudge, _by_option, _by_value, _by_shape, _by_type), (6, 6, 2, 3, 1))[0]
        notes.append(change(values, draw))
    value: Any = values
    if draw.random() < 0.25:
        value, note = _as_text(values, draw)
        notes.append(note)
    return Case(number, f"{name}: {'; '.join(notes)}"[:500], value)


@cache
def small_recipes() -> dict[str, dict[str, Any]]:
    """{name: values} of all packaged recipes, resolved, with few and narrow blocks."""
    small = {}
    for name in config.packaged():
        values = config.load(name, training=True)
        for part in ("encoder", "decoder"):
            spec = values.get(part) or {}
            spec |= {key: value for key, value in SMALL.items() if key in spec or key != "joint_depth"}
            if part == "encoder" and spec.get("type") != "streams":
                spec.pop("joint_depth", None)
            if part == "decoder":
                spec.pop("joint_depth", None)
                if not values.get(part) or spec.get("type") == "linear":
                    continue
            values[part] = spec
        values["train"] |= {"batch": 4, "micro_batch": None, "warmup_epochs": 0.0, "epochs": None, "steps": 1}
        values["data"] |= {"workers": 0}
        small[name] = {key: value for key, value in values.items() if key not in ("init", "name")} | {"out": "run"}
    return small


def _paths(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each value below mappings and lists."""
    inner = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from _paths(value, (*path, key))


def _at(values: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def _set(values: Any, path: tuple[Any, ...], value: Any) -> str:
    _at(values, path[:-1])[path[-1]] = value
    return f"{'.'.join(map(str, path))} = {value!r}"[:200]


def _options(values: dict[str, Any]) -> list[tuple[tuple[Any, ...], Any]]:
    """(path, type hint) of every option of every part, and of every key of ``data`` and ``train``."""
    parts: list[tuple[tuple[Any, ...], str]] = [((key,), role) for key, role in ROLES.items()]
    modalities = values.get("modalities")
    for name in modalities if isinstance(modalities, dict) else ():
        parts += [(("modalities", name), "modalities"), (("modalities", name, "masking"), "maskings")]
    objectives = values.get("objectives")
    parts += [(("objectives", name), "objectives") for name in (objectives if isinstance(objectives, dict) else ())]
    parts += [
        (("data", "source"), "sources"),
        (("train", "optimizer"), "optimizers"),
        (("train", "schedule"), "schedules"),
    ]
    options = []
    for path, role in parts:
        try:
            spec = _at(values, path)
            part = registry.find(role, str(spec["type"]))
            options += [((*path, option.name), option.hint) for option in describe(part)]
        except (KeyError, TypeError, IndexError, MaemmError):
            continue  # an earlier change has broken it
    for key, schema in (("data", DataConfig), ("train", TrainConfig)):
        if isinstance(values.get(key), dict):
            options += [((key, option.name), option.hint) for option in keys_of(schema)]
    return options


def _by_option(values: dict[str, Any], draw: random.Random) -> str:
    """Set one option to a value at its bounds, beyond them, or of an odd kind."""
    options = _options(values)
    if not options:
        return _by_value(values, draw)
    path, hint = draw.choice(options)
    choices = [*at_edges(hint), *beyond_edges(hint), *_literals(hint)]
    value = draw.choice(choices) if choices and draw.random() < 0.6 else odd_value(draw)
    if "." in path[-1]:  # an inner option: NAME.KEY
        outer, inner = path[-1].split(".")
        return _set(values, (*path[:-1], outer), {inner: value})
    return _set(values, path, value)


def _by_nudge(values: dict[str, Any], draw: random.Random) -> str:
    """Change one value a little: a number to another, a truth to its opposite, a word to another that is allowed."""
    options = [(path, hint) for path, hint in _options(values) if "." not in path[-1]]
    draw.shuffle(options)
    for path, hint in options:
        old = _at(values, path[:-1]).get(path[-1])
        if isinstance(old, bool):
            return _set(values, path, not old)
        if isinstance(old, (int, float)):
            factor = draw.choice((0, 0.5, 2, 3, 10))
            return _set(values, path, type(old)(old * factor) + draw.choice((0, 0, 1)))
        if words := [word for word in _literals(hint) if word != old]:
            return _set(values, path, draw.choice(words))
    return _by_value(values, draw)


def _literals(hint: Any) -> list[Any]:
    """The words that a hint allows."""
    base, args = typing.get_origin(hint), typing.get_args(hint)
    if base is typing.Literal:
        return list(args)
    return [word for arg in (args[:1] if base is Annotated else args) for word in _literals(arg)]


def _by_value(values: dict[str, Any], draw: random.Random) -> str:
    """Replace any value by an odd one."""
    path = draw.choice(list(_paths(values)) or [("modalities",)])
    return _set(values, path, odd_value(draw))


def _by_type(values: dict[str, Any], draw: random.Random) -> str:
    """Another part where one stands, of the same role or of another."""
    places = [path for path in _paths(values) if path[-1] == "type"]
    role = draw.choice([role for role in registry.ROLES if registry.names(role)])
    if not places:
        return _by_value(values, draw)
    return _set(values, draw.choice(places), draw.choice(registry.names(role)))


def _by_shape(values: dict[str, Any], draw: random.Random) -> str:
    """Take out, rename, wrap, unwrap or move a piece of the recipe."""
    path = draw.choice(list(_paths(values)) or [("modalities",)])
    holder, old = _at(values, path[:-1]), _at(values, path)
    kind = draw.choice(("remove", "rename", "list", "mapping", "typed", "deep", "keys", "move", "swap"))
    shown = f"{kind} {'.'.join(map(str, path))}"
    if kind == "remove":
        del holder[path[-1]]
    elif kind == "rename" and isinstance(holder, dict):
        holder[
            draw.choice(
                (f"{path[-1]}s", str(path[-1])[:-1], str(path[-1]).upper(), 7, None, "same_as", "items", "training")
            )
        ] = holder.pop(path[-1])
    elif kind == "keys":
        _set(values, path, {3: old, None: old, True: old})
    elif kind == "deep":
        _set(values, path, nested(old, draw.choice((3, 60, 300))))
    elif kind == "mapping":
        _set(values, path, {"value": old})
    elif kind == "typed":
        _set(values, path, {"type": {"type": old}})
    elif kind in ("move", "swap"):
        other = draw.choice(list(_paths(values)))
        _set(values, path, deepcopy(_at(values, other)))
        shown += f" from {'.'.join(map(str, other))}"
    else:
        _set(values, path, [old])
    return shown


def _as_text(values: dict[str, Any], draw: random.Random) -> tuple[str, str]:
    """A recipe as YAML with a fault in the text, and what it is; another recipe where YAML cannot hold this one."""
    try:
        text = config.dump(values)
    except (MaemmError, RecursionError):
        text = config.dump(next(iter(small_recipes().values())))
    lines = text.splitlines()
    place = draw.randrange(len(lines))
    kind = draw.choice(tuple(FAULTS))
    return FAULTS[kind](lines, place), f"text: {kind} at line {place + 1}"


def _inserted(lines: list[str], place: int, *new: str) -> str:
    """The text with new lines in front of a line, indented like it."""
    indent = " " * (len(lines[place]) - len(lines[place].lstrip(" -")))
    return "\n".join([*lines[:place], *(indent + line for line in new), *lines[place:]])


FAULTS: dict[str, Callable[[list[str], int], str]] = {
    "a line twice": lambda lines, place: _inserted(lines, place, lines[place].lstrip(" -")),
    "a line left out": lambda lines, place: "\n".join(lines[:place] + lines[place + 1 :]),
    "the end left out": lambda lines, place: "\n".join(lines)[: place * 20],
    "an anchor": lambda lines, place: _inserted(lines, place, "extra: &a {x: 1}", "more: *a"),
    "a merge key": lambda lines, place: _inserted(lines, place, "base: &b {x: 1}", "train: {<<: *b, steps: 1}"),
    "a date": lambda lines, place: _inserted(lines, place, "name: 2024-01-01", "out: 12:30:00"),
    "a tab": lambda lines, place: _inserted(lines, place, "\tname: x"),
    "a tag": lambda lines, place: _inserted(lines, place, "name: !!python/object/apply:os.system [echo]"),
    "a number as key": lambda lines, place: _inserted(lines, place, "3: x", "null: y", "[1, 2]: z"),
    "deep nesting": lambda lines, place: _inserted(lines, place, f"name: {'[' * 3000}{']' * 3000}"),
    "deep mappings": lambda lines, place: _inserted(lines, place, "name: " + "{a: " * 400 + "1" + "}" * 400),
    "a long text": lambda lines, place: _inserted(lines, place, f"name: {'x' * 100_000}"),
    "a long number": lambda lines, place: _inserted(lines, place, f"name: {'9' * 100_000}", f"out: 0x{'f' * 9000}"),
    "two documents": lambda lines, place: _inserted(lines, place, "---", "modalities: {}"),
    "control characters": lambda lines, place: _inserted(lines, place, "name: a\x07b"),
    "another indent": lambda lines, place: _inserted(lines, place, f"   {lines[place]}"),
}
