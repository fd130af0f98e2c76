"""Channels by name: which rows of a recording are channels of the model, and their positions among the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from maemm.contract import Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.positions import make_position


def plain(name: str) -> str:
    """A channel's name for comparison: casefolded, without outer blanks and trailing dots ("Fp1." is "fp1")."""
    return name.strip().rstrip(".").casefold()


def checked_names(channels: int | Sequence[str]) -> tuple[str, ...]:
    """Names of the model's channels; a number gives "0", "1", ... Raises :class:`MaemmError`."""
    names = tuple(str(i) for i in range(channels)) if isinstance(channels, int) else tuple(channels)
    seen: dict[str, str] = {}
    for name in names:
        key = plain(name).replace(".", "_")  # parameter names have no dots
        if not key or key in seen:
            other = f" and {seen[key]!r}" if key in seen else ""
            raise MaemmError(
                f"channel {name!r}{other} cannot be told apart (modalities.signal.channels); give each its own name"
            )
        seen[key] = name
    return names


def matching_rows(recording: Sequence[str], model: Sequence[str]) -> list[tuple[int, int]]:
    """(row in the recording, row in the model) of each channel that both have, by name."""
    row = {plain(name): i for i, name in reversed(list(enumerate(recording)))}  # of equal names the first
    return [(row[plain(name)], i) for i, name in enumerate(model) if plain(name) in row]


def _parameter_name(channel: str) -> str:
    """The channel's name without dots, and apart from what torch's ParameterDict has of its own (values, items)."""
    name = plain(channel).replace(".", "_")
    return f"{name}_channel" if hasattr(nn.ParameterDict(), name) else name


class ChannelTime(nn.Module):
    """Position of a token of one channel: that of its time, plus a learned vector of its channel.

    The vectors are parameters under the channels' names, so that weights of one set of channels load into another.
    """

    def __init__(self, kind: str, dim: int, names: Sequence[str], steps: int):
        super().__init__()
        self.time = make_position(kind, dim, (steps,))
        keys = [_parameter_name(name) for name in names]
        self.channels = nn.ParameterDict({key: nn.Parameter(torch.randn(dim) * 0.02) for key in keys})
        self._keys = keys

    def forward(self, tokens: Tokens, index: Tensor) -> Tensor:
        """(R, V) -> (R, V, D) of tokens on the lattice (channels, steps)."""
        assert tokens.grid is not None
        steps = tokens.grid[1]
        line = replace(tokens, coords=tokens.coords[:, :steps, 1:], grid=(steps,))
        vectors = torch.stack([self.channels[key] for key in self._keys])
        return self.time(line, index % steps) + vectors[torch.div(index, steps, rounding_mode="floor")]
