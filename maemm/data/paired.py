"""Several sources side by side: a sample is what they have under one name, such as a sound and its picture."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from annotated_types import MinLen

from maemm import registry
from maemm.config.options import check, options_of
from maemm.contract import Label, Sample, Source
from maemm.contract.errors import MaemmError, RunEnds
from maemm.contract.options import PartOf
from maemm.contract.rng import Rng
from maemm.data.files import fingerprint

_NUMBER = re.compile(r"#\d+\Z")  # of a sample in a file of many


class Paired(Source):
    """Samples of several sources, matched by name; the label is that of the first source that has one.

    ``parts``: {modality: source}. ``rows``: for every sample its index in each part, None where the part has none.
    """

    def __init__(self, parts: Mapping[str, Source], names: list[str], rows: list[tuple[int | None, ...]]):
        self.parts, self.names, self.rows = dict(parts), names, rows
        lists = [[*part.classes] for part in self.parts.values() if part.classes is not None]
        if any(classes != lists[0] for classes in lists):
            self.classes = sorted({name for classes in lists for name in classes})
        else:
            self.classes = lists[0] if lists else None
        self.multilabel = any(part.multilabel for part in self.parts.values())

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int, rng: Rng) -> Sample:
        raw: dict[str, Any] = {}
        sides: dict[str, Mapping[str, Any]] = {}
        label = None
        for (modality, part), row in zip(self.parts.items(), self.rows[index], strict=True):
            if row is None:
                continue
            try:
                sample = part.read(row, rng.fold_in(modality))
            except (MemoryError, RunEnds):
                raise
            except Exception as error:
                raise ValueError(f"{modality}: {error}") from error
            raw[modality] = sample.raw[modality]
            sides |= sample.sides
            label = self._renumbered(part, sample.label) if label is None else label
        return Sample(raw, self.names[index], label, sides)

    def label(self, index: int) -> Label | None:
        pairs = zip(self.parts.values(), self.rows[index], strict=True)
        labels = (self._renumbered(part, part.label(row)) for part, row in pairs if row is not None)
        return next((label for label in labels if label is not None), None)

    def read_ahead(self, indices: Sequence[int]) -> None:
        for number, part in enumerate(self.parts.values()):
            part.read_ahead([row for index in indices if (row := self.rows[index][number]) is not None])

    def paths(self, index: int) -> Mapping[str, str | os.PathLike[str]] | None:
        files: dict[str, str | os.PathLike[str]] = {}
        for part, row in zip(self.parts.values(), self.rows[index], strict=True):
            if row is not None:
                own = part.paths(row)
                if own is None:
                    return None
                files |= own
        return files

    def _renumbered(self, part: Source, label: Label | None) -> Label | None:
        """The label of a part as a label of ``self.classes``, since the classes of the parts may differ."""
        names, classes = part.classes, self.classes
        if label is None or names is None or classes is None or [*names] == classes:
            return label
        if isinstance(label, tuple):
            return tuple(sorted(classes.index(names[number]) for number in label))
        return classes.index(names[label])

    def files(self) -> Iterator[str | bytes | os.PathLike]:
        for part in self.parts.values():
            yield from part.files()

    def fingerprint(self) -> str:
        return fingerprint("paired", self.names, *(f"{k}={part.fingerprint()}" for k, part in self.parts.items()))


_READ_HERE = ("name", "root", "list")  # keys of a part that are no options of it


def open_paired(
    root: str | None,
    list: str | None = None,
    *,
    parts: Annotated[dict[str, Annotated[dict[str, Any], PartOf("sources", besides=_READ_HERE)]], MinLen(2)],
    missing: Literal["refuse", "skip", "allow"] = "refuse",
    by: Literal["path", "stem"] = "path",
) -> Source:
    """A source for several modalities, made of one source for each.

    ``clips/audio/dog/7.wav`` and ``clips/image/dog/7.jpg`` are one sample of ``data.root=clips`` with
    ``parts: {audio: {}, image: {}}``. Raises :class:`MaemmError` where a part cannot be opened, where names are not
    unique, and, with ``missing`` "refuse", where a part lacks samples that another has.

    Options
        parts: {modality: {type (default: the modality), root (default: data.root/modality), list, options}}
        missing: names that not every part has: refuse: an error; skip: leave these samples out; allow: samples without
            that modality, which data.missing must allow too
        by: match by path: below the root, without the ending; stem: the file's name alone, without the ending
    """
    if list is not None:
        raise MaemmError("paired has no data.list; give each part its own (data.source.parts.NAME.list)")
    opened = {modality: _open(modality, dict(spec or {}), root) for modality, spec in parts.items()}
    keys = {modality: _keys(modality, source, by) for modality, source in opened.items()}
    shared = _shared(keys, missing)
    rows = [tuple(keys[modality].get(name) for modality in opened) for name in shared]
    return Paired(opened, shared, rows)


def _open(modality: str, spec: dict[str, Any], root: str | None) -> Source:
    where = f"data.source.parts.{modality}"
    kind = spec.pop("type", modality)
    opener = registry.find("sources", kind)
    own, listed = spec.pop("root", None), spec.pop("list", None)
    if own is None and listed is None and root is not None:
        own = f"{root}/{modality}"
    if "name" not in options_of(opener):
        raise MaemmError(f"source {kind!r} cannot be part of pairs ({where}); add the option name to it")
    return opener(own, listed, **{**check(opener, spec, where), "name": modality})


def _keys(modality: str, source: Source, by: str) -> dict[str, int]:
    """{what a sample is matched by: its index in the part}. Of ``a/b.npz#3`` that is ``a/b#3``, by stem ``b#3``."""
    keys: dict[str, int] = {}
    for index in range(len(source)):
        file, number = _NUMBER.sub("", source.name(index)), _NUMBER.search(source.name(index))
        path = PurePosixPath(file)
        key = path.stem if by == "stem" else str(path.with_suffix("")) if path.suffix else str(path)
        key += number.group() if number else ""
        if key in keys:
            raise MaemmError(
                f"{modality} has two samples called {key!r} ({source.name(keys[key])}, {source.name(index)}); pairs "
                f"need one of each name, a path relative to the root or file#number (data.source.by: {by})"
            )
        keys[key] = index
    return keys


def _shared(keys: Mapping[str, Mapping[str, int]], missing: str) -> list[str]:
    """Names of the samples, sorted: those that all parts have, or with ``missing`` "allow" those that any part has."""
    union = {name for names in keys.values() for name in names}
    if missing == "allow":
        return sorted(union)
    shared = sorted(name for name in union if all(name in names for names in keys.values()))
    if not shared:
        first = ", ".join(min(names) for names in keys.values() if names)
        raise MaemmError(
            f"no name is in all of {', '.join(keys)} (first: {first}); "
            "pairs have the same path below their roots (or file#number) but for the ending, or set data.source.by=stem"
        )
    absent = {modality: sorted(union - set(names)) for modality, names in keys.items()}
    worst = max(absent, key=lambda modality: len(absent[modality]))
    if absent[worst] and missing == "refuse":
        raise MaemmError(
            f"{worst} lacks {len(absent[worst]):,} of {len(union):,} samples (first: {absent[worst][0]}); "
            "add them, or set data.source.missing to skip or allow"
        )
    return shared
