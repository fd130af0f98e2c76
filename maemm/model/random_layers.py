"""Layers whose output is another one in each pass."""

from __future__ import annotations

from timm.layers import DropPath
from torch import nn
from torch.nn.modules.dropout import _DropoutNd


def random_layers(*parts: nn.Module) -> list[str]:
    """The layers of these parts that draw random numbers in a forward pass, as they are now: "TYPE NAME" of each."""
    names: dict[str, None] = {}
    for part in parts:
        for name, module in part.named_modules():
            if module.training and _rate(module):
                names[f"{type(module).__name__} {name}"] = None
    return [*names]


def _rate(module: nn.Module) -> float:
    if isinstance(module, DropPath):
        return module.drop_prob or 0.0
    return module.p if isinstance(module, _DropoutNd) else 0.0
