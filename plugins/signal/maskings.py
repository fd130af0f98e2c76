"""Maskings of signals: spans of time, whole channels, both, and random tokens of each channel.

The ratio is one of time steps, channels, or tokens of a channel, and counts are exact for each sample. In a ragged
batch it applies to the valid ones of each sample, of which at least one step or channel stays visible: a recording
with a single channel has nothing to predict under the channel masking.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maemm.contract import Plan, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction, PositiveInt
from maemm.contract.rng import Rng
from maemm.contract.small import small_tensor
from maemm.model.masking.counts import Count, plan_from_hidden, visible_count
from maemm.model.masking.ratio import Ratio, RatioMasking, read_ratio


class TimeBlock(RatioMasking):
    """Hide the same spans of time in all channels.

    ``span: 1``: single time steps at random (MaeFE's masked time autoencoder).

    Options
        ratio: fraction of the time steps that is hidden; or drawn for each batch, as of random
        span: time steps (patches) of a span; null: all hidden steps in one span
        count: how the ratio is rounded to a number
    """

    def __init__(self, *, ratio: Ratio = 0.5, span: PositiveInt | None = None, count: Count = "floor_visible"):
        self.ratio, self.span, self.count = read_ratio(ratio), span, count

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        channels, steps = _channels_and_steps(tokens)
        valid = _valid(tokens, channels, steps)
        keep = _visible_counts(steps, self.ratio_of(name, rng), self.count)
        hidden = _hidden_steps(name, valid.any(1), keep, self.span, rng)
        hidden = hidden[:, None].expand(-1, channels, -1).flatten(1)
        return plan_from_hidden(hidden, tokens, channels * keep[steps], channels * (steps - keep[steps]))


class Channel(RatioMasking):
    """Hide whole channels (MaeFE's masked lead autoencoder).

    Options
        ratio: fraction of the channels that is hidden; or drawn for each batch, as of random
        count: how the ratio is rounded to a number
    """

    def __init__(self, *, ratio: Ratio = 0.5, count: Count = "floor_visible"):
        self.ratio, self.count = read_ratio(ratio), count

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        channels, steps = _several_channels(name, tokens)
        keep = _visible_counts(channels, self.ratio_of(name, rng), self.count)
        hidden = _hidden_channels(name, _valid(tokens, channels, steps).any(2), keep, rng)
        hidden = hidden[..., None].expand(-1, -1, steps).flatten(1)
        return plan_from_hidden(hidden, tokens, steps * keep[channels], steps * (channels - keep[channels]))


class ChannelTime(RatioMasking):
    """Hide whole channels, and spans of time in the others (MaeFE's masked lead and time autoencoder).

    Options
        ratio: fraction of the time steps that is hidden in the other channels; or drawn for each batch, as of random
        channels: fraction of the channels that is hidden as a whole
        span: time steps (patches) of a span; null: all hidden steps in one span
        count: how a ratio is rounded to a number
    """

    def __init__(
        self,
        *,
        ratio: Ratio = 0.5,
        channels: Fraction = 0.25,
        span: PositiveInt | None = None,
        count: Count = "floor_visible",
    ):
        self.ratio, self.channels, self.span, self.count = read_ratio(ratio), channels, span, count

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        channels, steps = _several_channels(name, tokens)
        valid = _valid(tokens, channels, steps)
        keep_channels = _visible_counts(channels, self.channels, self.count)
        keep_steps = _visible_counts(steps, self.ratio_of(name, rng), self.count)
        rows = _hidden_channels(name, valid.any(2), keep_channels, rng)
        columns = _hidden_steps(name, valid.any(1), keep_steps, self.span, rng)
        seen = keep_channels[channels] * keep_steps[steps]
        hidden = (rows[..., None] | columns[:, None]).flatten(1)
        return plan_from_hidden(hidden, tokens, seen, tokens.count - seen)


class PerChannel(RatioMasking):
    """Keep the same number of random tokens in every channel, drawn independently (ST-MEM).

    Options
        ratio: fraction of each channel's tokens that is hidden; or drawn for each batch, as of random
        count: how the ratio is rounded to a number
    """

    def __init__(self, *, ratio: Ratio = 0.75, count: Count = "floor_visible"):
        self.ratio, self.count = read_ratio(ratio), count

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        channels, steps = _channels_and_steps(tokens)
        valid = _valid(tokens, channels, steps)
        keep = _visible_counts(steps, self.ratio_of(name, rng), self.count)
        noise = rng.uniform(f"mask/{name}", channels, steps, device=valid.device)
        hidden = _hidden(noise, valid, keep).flatten(1)
        return plan_from_hidden(hidden, tokens, channels * keep[steps], channels * (steps - keep[steps]))


# ------------------------------------------------------------------------------------------------- helpers
def _channels_and_steps(tokens: Tokens) -> tuple[int, int]:
    """(channels, time steps); tokens of all channels together count as one channel."""
    if tokens.grid is None or len(tokens.grid) > 2:
        raise MaemmError(f"this masking needs tokens of channels and time, not a grid {tokens.grid}; use random")
    channels, steps = (1, *tokens.grid)[-2:]
    return channels, steps


def _several_channels(name: str, tokens: Tokens) -> tuple[int, int]:
    channels, steps = _channels_and_steps(tokens)
    if channels < 2:
        raise MaemmError(
            f"there is no channel to hide: the tokens have one channel (modalities.{name}.masking); "
            "use time_block, or tokens: channel_time with several channels"
        )
    return channels, steps


def _valid(tokens: Tokens, channels: int, steps: int) -> Tensor:
    """(B, channels, steps) bool."""
    if tokens.valid is None:
        device = tokens.values.device
        return torch.ones(1, dtype=torch.bool, device=device).expand(tokens.batch, channels, steps)
    return tokens.valid.unflatten(1, (channels, steps))


def _visible_counts(most: int, ratio: float, count: Count) -> list[int]:
    """How many of n = 0 .. ``most`` stay visible; at least one for n > 0."""
    return [min(n, max(1, visible_count(n, ratio, count))) for n in range(most + 1)]


def _hidden(noise: Tensor, valid: Tensor, keep: list[int]) -> Tensor:
    """Along the last axis all but the ``keep[n]`` lowest of the n valid ones: bool."""
    rank = noise.masked_fill(~valid, math.inf).argsort(dim=-1, stable=True).argsort(dim=-1)
    visible = small_tensor(keep, noise.device)[valid.sum(-1, keepdim=True)]
    return (rank >= visible) & valid


def _hidden_channels(name: str, valid: Tensor, keep: list[int], rng: Rng) -> Tensor:
    """(B, channels) bool."""
    noise = rng.uniform(f"mask/{name}/channels", valid.shape[1], device=valid.device)
    return _hidden(noise, valid, keep)


def _hidden_steps(name: str, valid: Tensor, keep: list[int], span: int | None, rng: Rng) -> Tensor:
    """(B, steps) bool: spans of ``span`` steps, the last one shorter, at random positions among the valid steps.

    With n steps of which h are hidden, each span is inserted between two of the n - h visible ones, or at an end;
    several may be inserted at the same position. So no rejection is needed and the count is exact.
    """
    steps, device = valid.shape[1], valid.device
    have = valid.sum(1, keepdim=True)
    seen = small_tensor(keep, device)[have]
    hide = have - seen
    most = max(n - keep[n] for n in range(steps + 1))
    span = span or max(most, 1)
    number = torch.arange(-(-most // span), device=device)
    lengths = (hide - number * span).clamp(0, span)  # (B, spans), 0 where a sample has fewer
    slots = (rng.uniform(f"mask/{name}/time", len(number), device=device) * (seen + 1)).long().clamp(max=steps)
    slots, order = slots.sort(dim=1, stable=True)
    lengths = lengths.gather(1, order)
    starts = slots + lengths.cumsum(1) - lengths
    edges = torch.zeros(len(valid), steps + 1, dtype=torch.long, device=device)
    edges.scatter_add_(1, starts.clamp(max=steps), (lengths > 0).long())
    edges.scatter_add_(1, (starts + lengths).clamp(max=steps), -(lengths > 0).long())
    by_rank = edges.cumsum(1)[:, :steps] > 0
    rank = (valid.cumsum(1) - 1).clamp(min=0)  # of each step among the valid ones
    return by_rank.gather(1, rank) & valid
