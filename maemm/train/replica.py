"""Copies of a model with all its weights on one rank, however they lie in training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from maemm.model.model import Model


class Replica:
    """The structure of a model, of which copies with weights are made. To be made before weights are sharded."""

    def __init__(self, model: Model):
        weightless: dict[int, Any] = {
            id(parameter): nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
            for parameter in model.parameters()
        }
        #: the model without weights, its buffers on their device
        self.structure: Model = copy.deepcopy(model, weightless)

    def filled(self, model: Model, device: torch.device | None = None, *, wanted: bool = True) -> Model | None:
        """A copy with the weights of ``model``, the one that this was made of or its average, on this rank.

        Of sharded weights all ranks call this; those that have no use for it (``wanted=False``) get None. ``device``:
        where the copy is to be; None: where the weights are.
        """
        result: Model | None = copy.deepcopy(self.structure) if wanted else None
        copies = [None] * sum(1 for _ in model.modules()) if result is None else list(result.modules())
        gathered: dict[int, nn.Parameter] = {}
        for module, own in zip(copies, model.modules(), strict=True):
            for name, parameter in own._parameters.items():
                if parameter is None:
                    continue
                if id(parameter) not in gathered:  # parts may share it
                    values = full(parameter.detach())
                    values = values.to(device or values.device) if wanted else values.new_empty(0)
                    gathered[id(parameter)] = nn.Parameter(values, requires_grad=False)
                if module is not None:
                    module._parameters[name] = gathered[id(parameter)]
            for name, buffer in own._buffers.items():
                if buffer is not None and module is not None:
                    module._buffers[name] = buffer.detach().clone().to(device or buffer.device)
        return None if result is None else result.train(model.training)


def full(tensor: Tensor) -> Tensor:
    """A sharded tensor whole, on every rank, all of which call this; a copy of any other."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def on_host(tree: Any) -> Any:
    """A copy of dicts and lists, their tensors in the memory of the host."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: on_host(value) for key, value in tree.items()}
    return [on_host(value) for value in tree] if isinstance(tree, list) else tree
