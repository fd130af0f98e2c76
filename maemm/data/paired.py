"""Several sources side by side: a sample is what they hold under one name, such as a sound and its picture."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Literal

from maemm import registry
from maemm.config.options import check, options_of
from maemm.contract import Label, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.files import fingerprint


class Paired(Source):
    """Samples of several parts, matched by name; the label is that of the first part that has one.

    ``parts``: {modality: source}. ``rows``: for every sample the index in each part, None where the part lacks it.
    """

    def __init__(self, parts: Mapping[str, Source], names: list[str], rows: list[tuple[int | None, ...]]):
        self.parts, self.names, self.rows = dict(parts), names, rows
        known = [[*one.classes] for one in self.parts.values() if one.classes is not None]
        self.classes = sorted(set().union(*known)) if any(one != known[0] for one in known) else next(iter(known), None)
        self.multilabel = any(one.multilabel for one in self.parts.values())

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int, rng: Rng) -> Sample:
        raw: dict[str, Any] = {}
        label = None
        for (modality, part), at in zip(self.parts.items(), self.rows[index], strict=True):
            if at is None:
                continue
            try:
                sample = part.read(at, rng.fold_in(modality))
            except MemoryError:
                raise
            except Exception as error:
                raise ValueError(f"{modality}: {error}") from error
            raw[modality] = sample.raw[modality]
            label = self._own(part, sample.label) if label is None else label
        return Sample(raw, self.names[index], label)

    def label(self, index: int) -> Label | None:
        pairs = zip(self.parts.values(), self.rows[index], strict=True)
        found = (self._own(part, part.label(at)) for part, at in pairs if at is not None)
        return next((one for one in found if one is not None), None)

    def _own(self, part: Source, label: Label | None) -> Label | None:
        """A part's label in the numbers of all parts together, whose lists of classes may differ."""
        if label is None or part.classes is None or [*part.classes] == self.classes:
            return label
        if isinstance(label, tuple):
            return tuple(sorted(self.classes.index(part.classes[one]) for one in label))
        return self.classes.index(part.classes[label])

    def files(self) -> Iterator[str | bytes | os.PathLike]:
        for one in self.parts.values():
            yield from one.files()

    def fingerprint(self) -> str:
        return fingerprint("paired", self.names, *(f"{k}={one.fingerprint()}" for k, one in self.parts.items()))


def open_paired(
    root: str | None,
    list: str | None = None,
    *,
    parts: dict[str, dict[str, Any]],
    missing: Literal["refuse", "skip", "allow"] = "refuse",
    by: Literal["path", "stem"] = "path",
) -> Source:
    """A source for several modalities from one source each.

    ``clips/audio/dog/7.wav`` and ``clips/image/dog/7.jpg`` are one sample of ``data.root=clips`` with
    ``parts: {audio: {}, image: {}}``. Raises :class:`MaemmError` where a part cannot be opened, where names are not
    unique, and where a part lacks samples that another has, unless ``missing`` says otherwise.

    Options
        parts: {modality: {type (default: the modality), root (default: data.root/modality), list, options}}
        missing: what becomes of names that not every part has: refuse; skip those samples; allow: they are samples that
            lack a modality, which data.missing must allow too
        by: match by path: below the root, without the ending; stem: the file's name alone, without the ending
    """
    if list is not None:
        raise MaemmError("paired takes no data.list; give each part its own (data.source.parts.NAME.list)")
    if len(parts) < 2:
        raise MaemmError("paired puts at least two sources together (data.source.parts); name one per modality")
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
        raise MaemmError(f"source {kind!r} cannot be told which modality it is for ({where}); it lacks the option name")
    return opener(own, listed, **{**check(opener, spec, where), "name": modality})


def _keys(modality: str, source: Source, by: str) -> dict[str, int]:
    """What the samples of a part are matched by -> their index."""
    found: dict[str, int] = {}
    for index in range(len(source)):
        path = PurePosixPath(source.name(index))
        key = path.stem if by == "stem" else str(path.with_suffix("")) if path.suffix else str(path)
        if key in found:
            other = source.name(found[key])
            raise MaemmError(
                f"{modality} has two samples called {key!r} ({other}, {path}); pairs need one of each name "
                f"(data.source.by: {by})"
            )
        found[key] = index
    return found


def _shared(keys: Mapping[str, Mapping[str, int]], missing: str) -> list[str]:
    """Names of the samples, sorted: those that all parts have, or with ``missing`` allow any part."""
    first = next(iter(keys.values()))
    shared = sorted(set(first).intersection(*keys.values()))
    every = set().union(*keys.values())
    lacking = {modality: sorted(every - set(one)) for modality, one in keys.items()}
    worst = max(lacking, key=lambda modality: len(lacking[modality]))
    if missing == "allow":
        return sorted(every)
    if not shared:
        raise MaemmError(
            f"no name is in all of {', '.join(keys)} (first: {', '.join(min(one) for one in keys.values() if one)}); "
            "pairs have one path below their roots, or set data.source.by=stem"
        )
    if lacking[worst] and missing == "refuse":
        raise MaemmError(
            f"{worst} lacks {len(lacking[worst]):,} of {len(every):,} samples (first: {lacking[worst][0]}); "
            "add them, or set data.source.missing to skip or allow"
        )
    return shared
