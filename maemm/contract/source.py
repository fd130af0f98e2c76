"""Where samples come from."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from maemm.contract.data import (
    Label,
    Sample,
)
from maemm.contract.rng import Rng


class Source(ABC):
    """Where samples come from. Runs in worker processes: keep it light and picklable, open files in ``read``.

    A plugin registers a function ``open(root: str | None, list: str | None, *, name: str = MODALITY, ...) -> Source``,
    or a class with such a constructor: it receives ``data.root`` and ``data.list``, then its options. ``name`` is the
    key of ``Sample.raw``: the modality that the samples are for. A recipe may call it differently, and ``paired``
    combines several sources.
    """

    classes: Sequence[str] | None = None  # names of the labels; None: no labels
    multilabel: bool = False  # True: a sample may have several labels, each label is a tuple
    tta_views: int = 1  # number of views of a sample that ``tta_view`` offers

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def read(self, index: int, rng: Rng) -> Sample:
        """Read one sample. If it cannot be read, raise any exception: its text is logged as the reason."""

    def name(self, index: int) -> str:
        """How messages and logs identify a sample that could not be read: a path, ``file#index``. Reads nothing."""
        return f"sample {index}"

    def label(self, index: int) -> Label | None:
        """The label of a sample, None if it has none. By default reads the sample."""
        return self.read(index, Rng(("label", index))).label

    def read_ahead(self, indices: Sequence[int]) -> None:
        """These samples are read next, in this process and this order: a source may fetch several at once."""
        return None

    def paths(self, index: int) -> Mapping[str, str | os.PathLike[str]] | None:
        """{modality: the file that holds it}, for copies of the sample; None: it is not in files of its own."""
        return None

    @property
    def shard_sizes(self) -> np.ndarray | None:
        """(S,) int64: numbers of neighbouring samples that are best read together, in order; None: no matter."""
        return None

    def tta_view(self, index: int, number: int) -> Sample:
        """View ``number`` (of ``tta_views``) of a sample. A classifier averages its outputs over all views."""
        return self.read(index, Rng(("view", index)))

    def files(self) -> Iterable[str | bytes | os.PathLike[str]]:
        """The files or folders that hold the samples: cached features are stale once one of them has changed.

        By default those of the sources among its attributes. If there are none, ``data.root`` is used instead.
        """
        for attribute in vars(self).values():
            if isinstance(attribute, Source):
                yield from attribute.files()

    def fingerprint(self) -> str:
        """A text that changes when the data change: it guards exact resuming. By default the number of samples."""
        return f"{type(self).__name__}:{len(self)}"
