"""Optimisers by name, parameter groups, and a step that leaves no trace when its gradient is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from maemm import registry
from maemm.config.options import check, options_of
from maemm.contract.errors import MaemmError

NO_DECAY = ("*.bias",)


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    no_decay: Sequence[str] = NO_DECAY,
    lr_scale: Callable[[str], float] | None = None,
) -> list[dict[str, Any]]:
    """Groups for an optimiser: one for each weight decay and learning rate scale.

    Parameters with at most one axis, and those whose name matches a pattern of ``no_decay``, are not decayed.
    Frozen parameters stand in no group. ``lr_scale`` gives a factor of the learning rate by parameter name.
    Each group also holds the ``names`` of its parameters.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or any(fnmatchcase(name, pattern) for pattern in no_decay)
        key = (0.0 if plain else weight_decay, 1.0 if lr_scale is None else lr_scale(name))
        group = groups.setdefault(key, {"params": [], "names": [], "weight_decay": key[0], "lr_scale": key[1]})
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise MaemmError("the model has nothing to train: all its parameters are frozen")
    return list(groups.values())


def layer_of(model: nn.Module) -> tuple[Callable[[str], int], int]:
    """(layer of a parameter by name, the top layer: that of the final norm, whether it is there, and of the head).

    From the encoder's ``layer_of``; what modalities embed with counts as layer 0.
    """
    top = model.encoder.layer_of("norm.weight")

    def layer(name: str) -> int:
        if name.startswith("encoder."):
            return model.encoder.layer_of(name.removeprefix("encoder."))
        return 0 if name.startswith("modalities.") and ".decoder." not in name else top

    return layer, top


def layer_scales(model: nn.Module, decay: float, head: float = 1.0) -> Callable[[str], float]:
    """Learning rate scales ``decay ** (top - layer)``, see :func:`layer_of` (MAE's lr_decay); ``head``: of the head."""
    layer, top = layer_of(model)
    return lambda name: head if name.startswith("head.") else decay ** (top - layer(name))


HALF = ("*.norm2.*", "*.mlp.*")  # the second half of a block, by the names that timm gives


def freeze(model: nn.Module, trainable: str) -> None:
    """Leave only a part to be trained (MAE, section 5, partial fine-tuning).

    ``all``; ``head``; ``last_2_blocks``: the last blocks, the final norm and the head; ``half_block``: the MLP of the
    last block, the final norm and the head.
    """
    if trainable == "all":
        return
    layer, top = layer_of(model)
    blocks = int(trainable.split("_")[1]) if trainable.startswith("last_") else 0
    if blocks >= top:
        raise MaemmError(f"train.trainable is {trainable}, the encoder has {top - 1} blocks; use all")

    def trains(name: str) -> bool:
        if name.startswith("head."):
            return True
        if trainable == "head" or not name.startswith("encoder."):
            return False
        half = layer(name) == top - 1 and any(fnmatchcase(name, pattern) for pattern in HALF)
        return layer(name) > top - 1 - blocks or (trainable == "half_block" and half)

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and trains(name))


# ---------------------------------------------------------------------------------------------- optimisers
def adamw(
    groups: list[dict[str, Any]],
    *,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.05,
) -> Optimizer:
    """AdamW; the defaults are those of the MAE recipe.

    Options
        betas: decay of the moments
        eps: added to the root of the second moment
        weight_decay: decoupled, times the learning rate
    """
    return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=_fused(groups))


def adam(
    groups: list[dict[str, Any]],
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam, where weight decay is added to the gradient.

    Options
        betas: decay of the moments
        eps: added to the root of the second moment
        weight_decay: L2 penalty
    """
    return torch.optim.Adam(groups, betas=betas, eps=eps, fused=_fused(groups))


def sgd(
    groups: list[dict[str, Any]], *, momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 0.0
) -> Optimizer:
    """Stochastic gradient descent.

    Options
        momentum: of the gradient
        nesterov: Nesterov's momentum
        weight_decay: L2 penalty
    """
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov, fused=_fused(groups))


def lars(
    groups: list[dict[str, Any]], *, momentum: float = 0.9, trust: float = 0.001, weight_decay: float = 0.0
) -> Optimizer:
    """LARS as in MoCo v3 and MAE's linear probe: matrices are adapted, parameters of one axis are not.

    Options
        momentum: of the adapted gradient
        trust: the trust coefficient
        weight_decay: L2 penalty
    """
    from timm.optim import Lars

    adapted = [part for group in groups for part in _by_axes(group)]
    return Lars(adapted, lr=0.0, momentum=momentum, trust_coeff=trust, eps=0.0)


def _by_axes(group: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """timm's Lars skips adaptation where the weight decay is 0 unless told otherwise by group."""
    for adapt in (True, False):
        kept = [i for i, one in enumerate(group["params"]) if (one.ndim > 1) == adapt]
        if kept:
            chosen = {key: [group[key][i] for i in kept] for key in ("params", "names")}
            yield group | chosen | {"always_adapt": adapt}


def _fused(groups: list[dict[str, Any]]) -> bool:
    """One kernel for all parameters, where torch has one; it can also skip a step without asking the device."""
    parameters = [one for group in groups for one in group["params"]]
    return all(one.device.type in ("cuda", "cpu") and one.is_floating_point() for one in parameters)


def make_optimizer(model: nn.Module, train: Mapping[str, Any]) -> Optimizer:
    """The optimiser of a recipe's ``train`` part: ``optimizer`` (a part; ``adamw``), ``no_decay``, ``layer_decay``."""
    name, options = registry.part_of(train.get("optimizer"), default="adamw")
    make = registry.find("optimizers", name)
    options = check(make, options, "train.optimizer")
    decay = options.get("weight_decay", options_of(make)["weight_decay"].default)
    no_decay = train.get("no_decay")
    layers, head = train.get("layer_decay") or 1.0, train.get("head_lr_scale") or 1.0
    lr_scale = layer_scales(model, layers, head) if layers != 1 or head != 1 else None
    return make(parameter_groups(model, decay, NO_DECAY if no_decay is None else no_decay, lr_scale), **options)


# ------------------------------------------------------------------------------------------------- stepping
def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of all groups, each times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def grad_norm(optimizer: Optimizer, clip: float | None) -> Tensor:
    """The L2 norm of the whole gradient, a scalar on the device, which is then clipped to ``clip``."""
    parameters = [one for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
    norm = torch.nn.utils.get_total_norm([one.grad for one in parameters])
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm


def step_unless(optimizer: Optimizer, bad: Tensor) -> None:
    """An optimiser step, or nothing at all where the scalar ``bad`` is true: no parameter, moment or count moves.

    Fused optimisers look at ``found_inf`` on the device, as torch's GradScaler has them do, so that the host
    need not wait; for the others it waits.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.grad_scale, optimizer.found_inf = None, bad.float()
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf
    elif not bad.item():
        optimizer.step()
