"""The signals of a picture, before they are drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Rows:
    """Pictures of one modality: a column of signals for each caption, a row for each sample. NaN is not drawn."""

    columns: dict[str, Tensor] = field(default_factory=dict)  # caption -> (R, ...)
    note: str = ""  # why there are no columns
    names: list[str] = field(default_factory=list)  # written into the first picture of each row

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))
