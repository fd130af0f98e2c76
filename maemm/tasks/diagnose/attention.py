"""Where each head attends: mean distance and entropy of its attention weights, and their picture.

The weights are computed again from the inputs of the layers, beside an ordinary forward pass.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maemm.contract import Preprocessed
from maemm.data.transfer import Work, on_host, to_device
from maemm.model.model import Model
from maemm.model.rotary import rotate
from maemm.ui.figures import drawing

_COLOURS = ("#0f6fb5", "#b4572a")  # of the networks in the picture
_ATTRIBUTES = ("qkv", "num_heads", "scale", "q_norm", "k_norm")  # of timm's attention, and of layers like it


@dataclass
class Attention:
    """Means over samples for one modality. Layers are in the order in which the forward pass runs them."""

    layers: list[str] = field(default_factory=list)  # names of the attention layers
    distance: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # (layers, heads) in token coordinates
    entropy: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # (layers, heads) nats
    even_distance: float = math.nan  # of uniform attention
    even_entropy: float = math.nan
    note: str = ""  # why there are no values


class AttentionStatistics:
    """Accumulates attention over batches of one modality: the work ``add`` for each, then ``result``."""

    def __init__(self, model: Model, name: str):
        self.model, self.name = model, name
        prefix = getattr(model.encoder, "prefix", None)
        self.prefix = 0 if prefix is None else prefix.shape[1]
        self.sums: dict[str, Tensor] = {}  # {layer: (2, heads) distance and entropy}
        self.even = np.zeros(2)  # sums of distance and entropy of uniform attention
        self.samples = 0

    def add(self, preprocessed: Preprocessed) -> Work[None]:
        """Run the encoder on this modality alone with all tokens visible: a sequence is [prefix, tokens]."""
        inputs = self.model.with_all_visible({self.name: preprocessed})
        tokens, plan = inputs[self.name].tokens, inputs[self.name].plan
        coords = tokens.gather_coords(plan.visible).float()  # (B, N, A)
        valid = yield plan.visible_valid
        indices: list[Tensor | None] = [None] * len(coords)  # of the tokens of each sample that are no padding
        if valid is not None:
            indices = to_device([row.nonzero()[:, 0] for row in valid], coords.device)

        def add_layer(layer: str, weights: Tensor, row: int) -> None:
            self._add_layer(layer, weights, coords[row], indices[row])

        with recording(self.model.encoder, add_layer):
            self.model.encoder(inputs, self.model.modalities)
        even = []
        for own, index in zip(coords, indices, strict=True):
            points = own if index is None else own[index]
            if len(points):
                even.append((torch.cdist(points, points).mean(), math.log(len(points) + self.prefix)))
        for distance, entropy in (yield even):
            self.even += [float(distance), entropy]
            self.samples += 1

    def _add_layer(self, layer: str, weights: Tensor, coords: Tensor, index: Tensor | None) -> None:
        """One sample: ``weights`` (heads, L, L), ``coords`` (N, A), ``index`` of the tokens that are no padding."""
        prefix = weights.shape[-1] - len(coords)
        if prefix not in (0, self.prefix):  # another sequence than the class tokens and these tokens
            return
        rows = slice(None) if index is None else index
        if index is not None and not len(index):
            return
        from_tokens = weights[:, prefix:][:, rows]  # queries are tokens, keys are tokens and the prefix
        entropy = torch.special.entr(from_tokens).sum(-1).mean(-1)
        to_tokens = from_tokens[..., prefix:][..., rows]
        distances = torch.cdist(coords[rows], coords[rows])
        total = to_tokens.sum(-1).clamp(min=1e-12)
        distance = ((to_tokens * distances).sum(-1) / total).mean(-1)
        both = torch.stack([distance, entropy]).double()
        self.sums[layer] = self.sums.get(layer, 0) + both

    def result(self) -> Attention:
        """The means; without values where the encoder has no such layers."""
        if not self.sums or not self.samples:
            return Attention(note="no attention to show: this encoder has no attention layers that can be read")
        width = max(both.shape[1] for both in self.sums.values())
        means = [
            np.pad(both.numpy() / self.samples, ((0, 0), (0, width - both.shape[1])), constant_values=np.nan)
            for both in on_host(self.sums).values()
        ]
        distance, entropy = np.stack(means, 1)
        even = self.even / self.samples
        return Attention(list(self.sums), distance, entropy, float(even[0]), float(even[1]))


# ------------------------------------------------------------------------------------------------ the hooks
@contextmanager
def recording(encoder: nn.Module, record: Callable[[str, Tensor, int], None]) -> Iterator[None]:
    """Call ``record(layer, weights (heads, L, L), row)`` for each sample and attention layer of the passes inside.

    A layer that runs twice in a pass gets a second name.
    """
    runs: dict[str, int] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], None]:
        def before_forward(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            runs[name] = runs.get(name, 0) + 1
            layer = name if runs[name] == 1 else f"{name} ({runs[name]})"
            mask = kwargs.get("attn_mask", args[1] if len(args) > 1 else None)
            for row in range(len(args[0])):  # sample by sample: the weights of a batch would not fit into memory
                own_mask = mask if mask is None or mask.shape[0] == 1 else mask[row : row + 1]
                rotation = kwargs.get("rotation")
                own_rotation = rotation
                if rotation is not None and rotation.shape[1] > 1:
                    own_rotation = rotation[:, row : row + 1]
                record(layer, weights_of(module, args[0][row : row + 1], own_mask, own_rotation)[0], row)

        return before_forward

    handles = [
        module.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, module in encoder.named_modules()
        if all(hasattr(module, attribute) for attribute in _ATTRIBUTES) and isinstance(module.qkv, nn.Module)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def weights_of(layer: Any, x: Tensor, mask: Tensor | None, rotation: Tensor | None = None) -> Tensor:
    """Attention weights (B, heads, L, L) of a layer like timm's ``Attention`` for its input (B, L, D).

    ``mask``: bool, True where keys are attended to, or added to the scores. ``rotation``: of queries and keys, see
    :class:`maemm.model.rotary.RotaryAttention`.
    """
    q, k, _ = layer.qkv(x).float().unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = layer.q_norm(q), layer.k_norm(k)
    if rotation is not None:
        q, k = rotate(q, rotation), rotate(k, rotation)
    scores = q @ k.transpose(-2, -1) * layer.scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).nan_to_num(0.0)


# ------------------------------------------------------------------------------------------------ the picture
def draw_attention(attention: Mapping[str, Attention]) -> bytes:
    """A PNG with two panels, distance and entropy of each head by layer. {network: its attention}, the first in front.

    Networks must have the same layers.
    """
    with drawing() as figure_class:
        figure = figure_class(figsize=(9.6, 3.4), dpi=120, layout="constrained")
        _draw_panels(figure, attention)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})  # the same bytes for the same picture
        return file.getvalue()


def _draw_panels(figure: Any, attention: Mapping[str, Attention]) -> None:
    left, right = figure.subplots(1, 2)
    first = next(iter(attention.values()))
    distances = {network: result.distance for network, result in attention.items()}
    entropies = {network: result.entropy for network, result in attention.items()}
    _draw_panel(left, distances, first.even_distance, first.layers, "distance of attention")
    _draw_panel(right, entropies, first.even_entropy, first.layers, "entropy of attention, nats")
    left.legend(frameon=False, fontsize=8)


def _draw_panel(axes: Any, networks: Mapping[str, np.ndarray], even: float, layers: list[str], title: str) -> None:
    """A dot for each head of {network: (layers, heads)}, and a line for uniform attention."""
    for number, (network, values) in reversed(list(enumerate(networks.items()))):
        x = np.repeat(np.arange(len(values)), values.shape[1]) + 0.12 * number
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(x, values.ravel(), "o", color=colour, markersize=4, alpha=0.75, label=network, markeredgewidth=0)
    axes.axhline(even, color="#8a8f94", linestyle=":", linewidth=1.2, label="uniform attention")
    axes.set_ylim(0, 1.1 * max(even, *(float(np.nanmax(values)) for values in networks.values())))
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(axis="y", color="#e2e0db", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    names = [layer.replace(".attn", "").removeprefix("blocks.") for layer in layers]
    axes.set_xticks(range(len(layers)), names, fontsize=8)
    if not all(name.isdigit() for name in names):
        axes.tick_params(axis="x", rotation=60)
    axes.set_xlabel("block", fontsize=9)
