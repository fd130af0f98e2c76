"""Batches of any size, as shapes alone: small ones, of two sizes, tell how each shape grows."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def grown(small: Any, large: Any, sizes: tuple[int, int], rows: int) -> Any:
    """Two trees of the same kind, made of ``sizes`` samples -> that of ``rows`` samples, of empty tensors.

    Trees are dataclasses, dictionaries, lists, tuples and tensors. A side, or a number, that is in proportion to the
    samples stays so; of others, such as the most tokens of any sample, the larger counts. What is one object in
    ``small`` is one in the result. Call it within a mode of fake tensors.
    """
    return _Growth(sizes, rows)(small, large)


class _Growth:
    def __init__(self, sizes: tuple[int, int], rows: int):
        self.sizes, self.rows = sizes, rows
        self.memo: dict[int, Any] = {}

    def __call__(self, small: Any, large: Any) -> Any:
        if id(small) not in self.memo:
            self.memo[id(small)] = small, self._grown(small, large)  # kept, so that no other gets its id
        return self.memo[id(small)][1]

    def _grown(self, small: Any, large: Any) -> Any:
        if isinstance(small, Tensor):
            return self._tensor(small, large)
        if dataclasses.is_dataclass(small) and not isinstance(small, type):
            result = copy.copy(small)
            for field in dataclasses.fields(small):
                value = self(getattr(small, field.name), getattr(large, field.name))
                object.__setattr__(result, field.name, value)  # also of frozen ones
            return result
        if isinstance(small, Mapping):
            return {key: self(value, large[key]) for key, value in small.items()}
        if isinstance(small, (list, tuple)):
            return type(small)(map(self, small, large)) if not hasattr(small, "_fields") else small
        if isinstance(small, int) and not isinstance(small, bool):
            return self._number(small, large)
        return small

    def _tensor(self, small: Tensor, large: Tensor) -> Tensor:
        shape = [self._number(a, b) for a, b in zip(small.shape, large.shape, strict=True)]
        repeated = [size > 1 and stride == 0 for size, stride in zip(shape, small.stride(), strict=True)]
        stored = [1 if again else size for size, again in zip(shape, repeated, strict=True)]
        return torch.empty(stored, dtype=small.dtype).expand(shape)

    def _number(self, small: int, large: int) -> int:
        a, b = self.sizes
        return small // a * self.rows if small * b == large * a and small % a == 0 else max(small, large)
