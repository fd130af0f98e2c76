"""Relative positions: a learned number of each head for each offset between two tokens, added to attention scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maemm.contract import Modality, ModalityInput, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.positions import resize_table
from maemm.contract.small import small_tensor

RelativeBiasKind = Literal["shared", "per_block"]

_ALIGNED = 8  # fused attention copies a bias whose rows do not begin at multiples of this
_MOST_CACHED = 64


class RelativeBias(nn.Module):
    """Tables (entries, heads) of what is added to the scores of attention (BEiT, published code; Raffel et al. 2020).

    The entries are, for each modality on a grid of sides n, those of the offsets query minus key in raster order,
    prod(2 n - 1); then one for each ordered pair of different modalities; and with prefix tokens three: from prefix to
    token, from token to prefix, among prefix tokens. With one modality this is the order of timm and of published
    files. On a longer grid a table is resized, on a shorter one the same offsets have the same entries.
    """

    def __init__(self, grids: Mapping[str, tuple[int, ...]], heads: int, tables: int, prefix: bool):
        super().__init__()
        self.grids, self.prefix = dict(grids), prefix
        pairs = len(grids) * (len(grids) - 1)
        entries = sum(_offsets(grid) for grid in grids.values()) + pairs + 3 * prefix
        self.tables = nn.ParameterList(nn.Parameter(torch.zeros(entries, heads)) for _ in range(tables))
        self._cache: dict[Any, tuple[Tensor, ...]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}

    # ------------------------------------------------------------------------------------------------- which entry
    def index(self, inputs: Mapping[str, ModalityInput], prefix: int, hidden: bool, order: Tensor | None) -> Tensor:
        """(R, L, L') int64, the entry of each query and key; one row where all rows see the same. L' >= L is a multiple
        of 8, where the last keys stand for nothing.

        The sequence is that of the encoder: ``prefix`` tokens, then the visible and, if ``hidden``, the predicted
        tokens of each modality. ``order`` (R, L): where its tokens come from, if it has only some of them.
        """
        sides = self._sides(inputs)
        places, lengths = [], []
        for name, x in inputs.items():
            sections = [x.plan.visible, x.plan.predict] if hidden else [x.plan.visible]
            own = self._places(x.tokens, sides[name])
            # Nothing hidden: rows are views of one row, and so is the bias.
            places += [own[section[:1] if section.stride(0) == 0 else section] for section in sections]
            lengths.append(sum(section.shape[1] for section in sections))
        rows = max(len(part) for part in places)
        if prefix:
            places.insert(0, places[0].new_zeros(1, prefix))
        place = torch.cat([part.expand(rows, -1) for part in places], 1)
        kinds = [self._kind(None)] * prefix
        for name, length in zip(inputs, lengths, strict=True):
            kinds += [self._kind(name)] * length
        first, alike = self._pairs(kinds, sides, place.device, order)
        if order is not None:
            place = place.expand(len(order), -1).gather(1, order)
        index = first + (place[:, :, None] - place[:, None, :]) * alike
        return F.pad(index, (0, -index.shape[-1] % _ALIGNED))

    def _sides(self, inputs: Mapping[str, ModalityInput]) -> dict[str, tuple[int, ...]]:
        """The sides of the grids that the tables are used for: those that they have, or longer ones."""
        sides = dict(self.grids)
        for name, x in inputs.items():
            grid = x.tokens.grid
            if grid is None or x.tokens.coords.shape[0] != 1 or len(grid) != len(self.grids[name]):
                raise MaemmError(
                    f"relative biases are for tokens on a grid of {len(self.grids[name])} axes, {name!r} has {grid} "
                    "(encoder.relative_bias); use encoder.rotary, or leave it out"
                )
            sides[name] = tuple(max(pair) for pair in zip(grid, self.grids[name], strict=True))
        return sides

    def _places(self, tokens: Tokens, sides: tuple[int, ...]) -> Tensor:
        """(N,) int64, whose differences are offsets in raster order; on a grid the coordinates are the lattice."""

        def places() -> tuple[Tensor]:
            steps = [math.prod(2 * side - 1 for side in sides[axis + 1 :]) for axis in range(len(sides))]
            coords = tokens.coords[0].long()
            return ((coords * small_tensor(steps, coords.device)).sum(-1),)

        return self._cached((sides, tokens.grid, tokens.coords.device), places)[0]

    def _kind(self, name: str | None) -> int:
        return len(self.grids) if name is None else list(self.grids).index(name)

    def _pairs(
        self, kinds: list[int], sides: dict[str, tuple[int, ...]], device: torch.device, order: Tensor | None
    ) -> tuple[Tensor, ...]:
        """For all pairs of tokens, (L, L) each or (R, L, L): the entry of no offset, and 1 where offsets count, else
        0."""

        def pairs(kind: Tensor) -> tuple[Tensor, Tensor]:
            table = self._entries(sides)
            entries = small_tensor([entry for row in table for entry in row], device).view(len(table), -1)
            query, key = kind[..., :, None], kind[..., None, :]
            return entries[query, key], (query == key).long()

        if order is not None:
            return pairs(small_tensor(kinds, device)[order])
        key = (tuple(kinds), tuple(sides.items()), device)
        return self._cached(key, lambda: pairs(small_tensor(kinds, device)))

    def _entries(self, sides: Mapping[str, tuple[int, ...]]) -> list[list[int]]:
        """By kinds of query and key (modalities, then prefix): the entry of no offset between them."""
        count = len(sides)
        entries = [[0] * (count + 1) for _ in range(count + 1)]
        after = 0
        for kind, grid in enumerate(sides.values()):
            entries[kind][kind] = after + _offsets(grid) // 2  # the middle
            after += _offsets(grid)
        for query in range(count):
            for key in range(count):
                if query != key:
                    entries[query][key] = after
                    after += 1
        if self.prefix:
            entries[count] = [after] * count + [after + 2]
            for query in range(count):
                entries[query][count] = after + 1
        return entries

    def _cached(self, key: Any, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        if key not in self._cache:
            if len(self._cache) >= _MOST_CACHED:
                self._cache.clear()
            self._cache[key] = compute()
        return self._cache[key]

    # ------------------------------------------------------------------------------------------------- what is added
    def forward(
        self, inputs: Mapping[str, ModalityInput], number: int, index: Tensor, mask: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """(R or 1, H, L, L) of ``dtype``, of the table ``number`` and :meth:`index`; -inf where ``mask`` (R, 1, 1, L)
        is False."""
        length = index.shape[1]
        bias = F.embedding(index, self._table(number, inputs)).movedim(-1, 1).to(dtype).contiguous()
        if mask is not None:
            bias = bias.masked_fill(~F.pad(mask, (0, index.shape[2] - length)), -torch.inf)
        return bias[..., :length]

    def _table(self, number: int, inputs: Mapping[str, ModalityInput]) -> Tensor:
        sides, table = self._sides(inputs), self.tables[number]
        if sides == self.grids:
            return table
        sizes = [_offsets(grid) for grid in self.grids.values()]
        *parts, rest = table.split([*sizes, len(table) - sum(sizes)])
        for kind, (grid, longer) in enumerate(zip(self.grids.values(), sides.values(), strict=True)):
            old, new = (tuple(2 * side - 1 for side in each) for each in (grid, longer))
            parts[kind] = resize_table(parts[kind][None], old, new)[0].to(table.dtype)
        return torch.cat([*parts, rest])


def make_relative_bias(modalities: Mapping[str, Modality], heads: int, *, tables: int, prefix: bool) -> RelativeBias:
    """:class:`RelativeBias` for the grids of modalities. Raises :class:`MaemmError` where one has none."""
    grids = {}
    for name, modality in modalities.items():
        grid = getattr(modality, "grid", None)
        if not isinstance(grid, tuple):
            raise MaemmError(
                f"relative biases are for tokens on a grid, which {name!r} does not have (encoder.relative_bias); "
                "use encoder.rotary, or leave it out"
            )
        grids[name] = grid
    return RelativeBias(grids, heads, tables, prefix)


def _offsets(grid: tuple[int, ...]) -> int:
    return math.prod(2 * side - 1 for side in grid)
