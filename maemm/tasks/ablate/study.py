"""What a comparison consists of: a recipe, its variants, seeds and steps. From a file or from ``--set``."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from maemm import config
from maemm.config import reader
from maemm.config.layers import from_overrides
from maemm.config.names import studies
from maemm.contract.errors import MaemmError, advice
from maemm.contract.options import MOST_REPEATS
from maemm.tasks.ablate.grammar import Grammar
from maemm.tasks.ablate.study_file import MEASURES, StudyFile, base_of, file_of, read, recipe_of

BASE = "base"  # the name of the recipe as it is
LINES = 20  # of metrics.jsonl, at least, where the steps allow it: the curves
_LONGEST = 60  # characters of a folder's name
_OTHER_FILES = (".json", ".csv", ".html", ".lock")  # what stands beside the folders
_UNIMPORTANT = ("out", "name", "train.seed")  # keys in which runs of one variant differ, or which say nothing


@dataclass(frozen=True)
class Variant:
    """A recipe with some keys changed."""

    name: str
    overrides: dict[str, Any]  # by whole dotted keys
    recipe: dict[str, Any] = field(repr=False)  # resolved, of the first seed
    differs: tuple[str, ...] = ()  # "key: base -> own" of all keys that differ from the base

    @property
    def folder(self) -> str:
        """The name of its folder."""
        plain = re.sub(r"[^\w.+-]+", "-", self.name).strip("-.")
        if 0 < len(plain) <= _LONGEST and not plain.endswith(_OTHER_FILES):
            return plain
        digest = hashlib.blake2b(self.name.encode("utf-8", "backslashreplace"), digest_size=3).hexdigest()
        return f"{plain[:_LONGEST]}-{digest}".strip("-")

    def predicts(self) -> tuple[str, ...]:
        """The differences that change what is predicted, so that its loss is not that of the base."""
        return tuple(line for line in self.differs if line.split(".")[0] in ("modalities", "masking", "objectives"))


@dataclass(frozen=True)
class Study:
    """A comparison, checked: every variant is a recipe that can be trained."""

    name: str
    base: dict[str, Any] = field(repr=False)  # the resolved recipe
    variants: list[Variant]  # the reference is among them
    reference: str
    seeds: int
    steps: int | None
    measures: tuple[str, ...]
    samples: int | None

    @cached_property
    def notes(self) -> list[str]:
        """What a reader must know: keys that make runs unequal beyond what is compared."""
        unequal = ("train.batch", "data.", "train.aug_repeats")
        lines = {line.partition(": ")[0] for variant in self.variants for line in variant.differs}
        keys = sorted(key for key in lines if key.startswith(unequal) and not key.startswith("data.workers"))
        return [f"the variants differ in {', '.join(keys)}: they do not see the same batches"] if keys else []


def make_study(
    what: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | Iterable[str] | None = None,
    *,
    sets: Sequence[str] = (),
    variants: Mapping[str, Mapping[str, Any] | None] | None = None,
    one_at_a_time: bool = False,
    only: Sequence[str] | None = None,
    reference: str | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    measures: Sequence[str] | None = None,
    samples: int | None = None,
) -> Study:
    """A study from a recipe, or from the file of a study, which the other arguments change; see :func:`ablate`.

    Raises :class:`MaemmError` with a line for each mistake of any variant.
    """
    for value, words in ((seeds, "seeds"), (steps, "steps"), (samples, "samples")):
        if value is not None and value < 1:
            raise MaemmError(f"{value} {words} compare nothing (--{words}); give 1 or more")
    if seeds is not None and seeds > MOST_REPEATS:
        raise MaemmError(f"{seeds} seeds are too many (--seeds); give {MOST_REPEATS:,} at most")
    path = file_of(str(what)) if isinstance(what, str | Path) else None
    if path is None:
        file, recipe = StudyFile.model_validate({"recipe": "", "one_at_a_time": one_at_a_time}), what
        name = what if isinstance(what, str | Path) else what.get("name")
    else:
        name = str(what) if str(what) in studies() else path.stem
        file = read(path, config.shown(path))
        recipe = recipe_of(path, file.recipe)
        if (sets or variants) and (file.sets or file.variants):
            raise MaemmError(f"{what} has variants of its own (--set); leave --set out, or give its recipe {recipe}")
    common = {**base_of(file), **_flat(overrides)}
    base = _resolved(recipe, common, file.steps if steps is None else steps)
    grammar = Grammar(base)
    changes = _named(file.variants, grammar) | _named(variants or {}, grammar)
    changes |= _combined([*file.sets, *sets], grammar, one_at_a_time or file.one_at_a_time)
    if not changes:
        raise MaemmError("nothing is compared; add --set KEY=VALUE,VALUE, such as --set decoder.depth=1,4")
    return _checked(
        str(name or "study"),
        base,
        changes,
        only,
        file.reference if reference is None else reference,
        file.seeds if seeds is None else seeds,
        file.steps if steps is None else steps,
        tuple(file.measures if measures is None else measures),
        file.samples if samples is None else samples,
    )


def _flat(overrides: Mapping[str, Any] | Iterable[str] | None) -> dict[str, Any]:
    """Overrides, as words or as a mapping, by dotted keys."""
    if overrides is None:
        return {}
    if isinstance(overrides, Mapping):
        return {str(key): value for key, value in overrides.items()}
    words = list(overrides)
    from_overrides(words)  # says what is wrong with them
    return {key: reader.value(text, key) for key, _, text in (word.partition("=") for word in words)}


def _resolved(recipe: Any, overrides: Mapping[str, Any], steps: int | None) -> dict[str, Any]:
    """A recipe of the first seed, for so many steps."""
    for key in ("out", "train.seed"):
        if key in overrides:
            sets = "--out" if key == "out" else "--seeds"
            raise MaemmError(f"{key} is not the same in all runs (override {key}); leave it out: {sets} sets it")
    length = {} if steps is None else {"train.steps": steps, "train.epochs": None}
    resolved = config.load(recipe, {**overrides, **length, "train.seed": 0, "out": "runs/ablation"}, training=True)
    if resolved.get("stages"):
        names = ", ".join(resolved["stages"])
        raise MaemmError(f"the recipe has several stages ({names}), and one is compared; choose it: stage=NAME")
    train = resolved["train"]
    if steps is not None:
        train["log_every"] = min(train["log_every"], max(1, steps // LINES))
    return resolved


def _named(variants: Mapping[str, Mapping[str, Any] | None], grammar: Grammar) -> dict[str, dict[str, Any]]:
    named = {}
    for name, values in variants.items():
        if not str(name).strip() or not str(name).isprintable():
            raise MaemmError(f"{name!r} cannot be the name of a variant; use letters, digits and -")
        try:
            named[str(name)] = grammar.overrides(values or {})
        except MaemmError as error:
            raise MaemmError(_of_variant(name, str(error))) from None
    return named


def _combined(sets: Sequence[str], grammar: Grammar, one_at_a_time: bool) -> dict[str, dict[str, Any]]:
    """All combinations of the values of ``--set`` words, or each value alone."""
    axes: list[tuple[str, str, list[tuple[str, Any]]]] = []
    for word in sets:
        key, values = grammar.words(word)
        if key in [axis[0] for axis in axes]:
            raise MaemmError(f"{key} is given twice (--set {word}); give all its values at once")
        axes.append((key, word.partition("=")[0].strip(), values))
    choices = [[(key, f"{name}={text}", value) for text, value in values] for key, name, values in axes]
    count = math.prod(map(len, choices)) if choices and not one_at_a_time else 0
    if count > MOST_REPEATS:
        raise MaemmError(f"{count:,} variants are too many (--set); give fewer values, or --one-at-a-time")
    rows: Iterable[tuple[Any, ...]] = itertools.product(*choices) if choices else ()
    if one_at_a_time:
        rows = ((choice,) for axis in choices for choice in axis)
    combined = {}
    for row in rows:
        # A part before its options, or the part would take their place.
        ordered = sorted(row, key=lambda choice: choice[0].count("."))
        combined[", ".join(text for _, text, _ in row)] = {key: value for key, _, value in ordered}
    return combined


def _of_variant(name: Any, text: str) -> str:
    return "\n".join(f"variant {str(name)!r}: {line}" for line in text.splitlines())


def _checked(
    name: str,
    base: dict[str, Any],
    changes: Mapping[str, dict[str, Any]],
    only: Sequence[str] | None,
    reference: str | None,
    seeds: int,
    steps: int | None,
    measures: tuple[str, ...],
    samples: int | None,
) -> Study:
    for measure in measures:
        if measure not in MEASURES:
            raise MaemmError(f"unknown measure {measure!r} (--measures); {advice(measure, MEASURES)}")
    variants, mistakes = [], []
    for own, overrides in changes.items():
        try:
            resolved = _resolved(base, overrides, steps)
        except MaemmError as error:
            mistakes.append(_of_variant(own, str(error)))
            continue
        differs = tuple(line for line in config.diff(base, resolved) if line.partition(":")[0] not in _UNIMPORTANT)
        variants.append(Variant(own, overrides, resolved, differs))
    if mistakes:
        raise MaemmError("\n".join(mistakes))
    variants, reference = _with_reference(variants, reference, base)
    variants = _selected(variants, only, reference)
    _refuse_equal(variants)
    return Study(name, base, variants, reference, seeds, steps, measures, samples)


def _with_reference(variants: list[Variant], reference: str | None, base: dict[str, Any]) -> tuple[list[Variant], str]:
    """The variants with the reference first: the one of that name, or else the recipe as it is."""
    names = [variant.name for variant in variants]
    if reference is not None:
        if reference == BASE and BASE not in names:
            reference = None
        elif reference not in names:
            raise MaemmError(f"no variant is called {reference!r} (--reference); {advice(reference, [*names, BASE])}")
    if reference is None:
        same = [variant.name for variant in variants if not variant.differs]
        if not same:
            if BASE in names:
                raise MaemmError(f"a variant is called {BASE!r} and is not the recipe as it is; give it another name")
            variants = [Variant(BASE, {}, base), *variants]
        reference = same[0] if same else BASE
    return sorted(variants, key=lambda variant: variant.name != reference), reference


def _selected(variants: list[Variant], only: Sequence[str] | None, reference: str) -> list[Variant]:
    """Those of the names ``only``, and the reference."""
    if only is None:
        return variants
    names = [variant.name for variant in variants]
    for name in only:
        if name not in names:
            raise MaemmError(f"no variant is called {name!r} (--only); {advice(name, names)}")
    return [variant for variant in variants if variant.name in {*only, reference}]


def _refuse_equal(variants: Sequence[Variant]) -> None:
    """Raises :class:`MaemmError` for two variants that are the same, or whose folders are."""
    for first, second in itertools.combinations(variants, 2):
        alike = "are the same recipe" if first.differs == second.differs else ""
        alike = alike or ("have the same folder" if first.folder == second.folder else "")
        if alike:
            raise MaemmError(f"the variants {first.name!r} and {second.name!r} {alike}; leave one out, or rename it")
