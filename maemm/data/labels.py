"""A source whose every sample has one of the labels that a classifier knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from maemm.contract import Sample, Source
from maemm.draws import Draw
from maemm.errors import MaemmError


class Labelled(Source):
    """``source`` with labels numbered as in ``classes``: names in their order, or how many numbers there are.

    A sample without a label, or with one that is not among them, is unreadable: it is counted, named and replaced as
    a broken file is. Raises :class:`MaemmError` where names are asked for and the source has none.
    """

    def __init__(self, source: Source, classes: Sequence[str] | int):
        self.source = source
        count = classes if isinstance(classes, int) else len(classes)
        if count < 2:
            raise MaemmError(f"{count} class is nothing to tell apart (data.classes); a classifier needs two at least")
        if not isinstance(classes, int) and source.classes is None:
            raise MaemmError(
                f"the labels are numbers without names, so data.classes cannot name them; set data.classes={count}"
            )
        self.count = count
        self.classes = source.classes if isinstance(classes, int) else list(classes)
        self._number = None if isinstance(classes, int) else {name: i for i, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def read(self, index: int, draw: Draw) -> Sample:
        sample = self.source.read(index, draw)
        if sample.label is None or sample.label < 0:
            raise ValueError("it has no label")
        label = sample.label
        if self._number is not None:
            name = self.source.classes[label]
            label = self._number.get(name, -1)
            if label < 0:
                raise ValueError(f"its class {name!r} is none of the {self.count} in data.classes")
        elif label >= self.count:
            raise ValueError(f"its label is {label}, the {self.count} labels of data.classes count from 0")
        return replace(sample, label=label)

    def fingerprint(self) -> str:
        known = self.count if self._number is None else ",".join(self.classes)
        return f"{self.source.fingerprint()}:{known}"
