"""Parameter groups, optimisers, and a step that changes nothing where the gradient is not finite.

An optimiser of the registry is a function of the groups of :func:`parameter_groups` and of options, which are keywords
with defaults; one of them is ``weight_decay``. The groups hold the weight decay already, and the learning rate is set
before every step, so that the function uses neither: ``return Lion(groups, lr=0.0, betas=betas)``. One that treats
hidden matrices in their own way has a second parameter, ``matrices``: {name of a parameter: number of matrices that
stand one below the other in it} (:func:`maemm.model.matrices.hidden_matrices`), with names as in the groups.

A step that must not be done (a loss that is not finite, a spike) is left out. Where the optimiser has
``_step_supports_amp_scaling = True``, as torch's fused ones have, that is decided on the device: its ``step`` changes
nothing where ``self.found_inf``, a scalar that is there during the step alone, is above 0. Otherwise the host waits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from maemm import registry
from maemm.config.options import check, options_of
from maemm.contract import Phase
from maemm.contract.errors import MaemmError, advice
from maemm.contract.options import NonNegative, Positive, Rate
from maemm.model.matrices import hidden_matrices
from maemm.model.model import Model
from maemm.model.sharded import is_sharded
from maemm.train.schedules import decay_curve
from maemm.train.sharding import total_norm

NO_DECAY = ("*.bias",)


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    no_decay: Sequence[str] = NO_DECAY,
    lr_scale: Callable[[str], float] | None = None,
    without: Collection[nn.Parameter] = (),
    decay_all: bool = False,
) -> list[dict[str, Any]]:
    """Groups for an optimiser: one for each pair of weight decay and learning rate scale.

    Parameters with at most one axis, and those whose name matches a pattern of ``no_decay``, are not decayed,
    unless ``decay_all`` says so. Frozen parameters and those of ``without`` are in no group. ``lr_scale``: parameter
    name -> factor of the learning rate. Each group also has the ``names`` of its parameters. Raises
    :class:`MaemmError` where all are frozen.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    excluded = {id(parameter) for parameter in without}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in excluded:
            continue
        undecayed = parameter.ndim <= 1 or any(fnmatchcase(name, pattern) for pattern in no_decay)
        undecayed = undecayed and not decay_all
        key = (0.0 if undecayed else weight_decay, 1.0 if lr_scale is None else lr_scale(name))
        group = groups.setdefault(key, {"params": [], "names": [], "weight_decay": key[0], "lr_scale": key[1]})
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise MaemmError("the model has nothing to train: all its parameters are frozen")
    return list(groups.values())


def layer_of(model: nn.Module) -> tuple[Callable[[str], int], int]:
    """(function: parameter name -> layer, number of the top layer).

    Layers are those of the encoder's ``layer_of``. The embeddings of modalities are in layer 0; the final norm, present
    or not, and all else, such as the head, in the top layer.
    """
    encoder: Any = model.encoder
    top: int = encoder.layer_of("norm.weight")

    def layer(name: str) -> int:
        if name.startswith("encoder."):
            return encoder.layer_of(name.removeprefix("encoder."))
        return 0 if name.startswith("modalities.") and ".decoder." not in name else top

    return layer, top


def layer_scales(model: nn.Module, decay: float, head: float = 1.0) -> Callable[[str], float]:
    """Function: parameter name -> learning rate scale, ``decay ** (top - layer)`` (see :func:`layer_of`), or ``head``.

    The formula is ``util/lr_decay.py`` of facebookresearch/mae; ``head`` is the scale of the head's parameters.
    """
    layer, top = layer_of(model)
    return lambda name: head if name.startswith("head.") else decay ** (top - layer(name))


HALF_BLOCK = ("*.norm2.*", "*.mlp.*")  # the second half of a block, by timm's names


def freeze(model: nn.Module, trainable: str) -> None:
    """Freeze all but a part of the model (partial fine-tuning, MAE, section 5).

    ``trainable``: ``all``; ``head``; ``last_N_blocks``: the last N blocks, the final norm and the head; ``half_block``:
    the MLP of the last block, the final norm and the head. Raises :class:`MaemmError` where N is not below the number
    of blocks.
    """
    if trainable == "all":
        return
    layer, top = layer_of(model)
    blocks = int(trainable.split("_")[1]) if trainable.startswith("last_") else 0
    if blocks >= top:
        raise MaemmError(f"train.trainable is {trainable}, the encoder has {top - 1} blocks; use all")

    def is_trainable(name: str) -> bool:
        if name.startswith("head."):
            return True
        if trainable == "head" or not name.startswith("encoder."):
            return False
        in_half_block = layer(name) == top - 1 and any(fnmatchcase(name, pattern) for pattern in HALF_BLOCK)
        return layer(name) > top - 1 - blocks or (trainable == "half_block" and in_half_block)

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and is_trainable(name))


def freeze_parts(model: Model, names: Sequence[str]) -> None:
    """Freeze parts of the model by name: ``encoder``, ``modalities.image``, ``encoder.blocks.0``, ``encoder.prefix``.

    Frozen modules stay in evaluation mode, so that nothing in them is dropped and no statistic moves. Raises
    :class:`MaemmError` for a name under which there are no parameters.
    """
    for name in names:
        inside = [p for key, p in model.named_parameters() if f"{key}.".startswith(f"{name}.")]
        if not inside:
            known = [*dict(model.named_children()), *(f"modalities.{key}" for key in model.modalities)]
            raise MaemmError(f"the model has no parameters in {name!r} (train.freeze); {advice(name, known)}")
        for parameter in inside:
            parameter.requires_grad_(False)
    modules = dict(model.named_modules())
    model.frozen = tuple(name for name in names if name in modules)


def freeze_unused(model: Model) -> None:
    """Freeze the parameters that no objective uses, by what objectives and heads say (``unused_parameters``)."""
    unused = [{id(parameter) for parameter in part.unused_parameters(model)} for part in model.objectives.values()]
    everywhere = set.intersection(*unused) if unused else set()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and id(parameter) not in everywhere)


# ---------------------------------------------------------------------------------------------- optimisers
def adamw(
    groups: list[dict[str, Any]],
    *,
    betas: tuple[Rate, Rate] = (0.9, 0.95),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.05,
) -> Optimizer:
    """AdamW, with the defaults of MAE's recipe.

    Options
        betas: decay of the moments
        eps: added to the root of the second moment
        weight_decay: decoupled weight decay
    """
    return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=has_fused_kernels(groups))


def adam(
    groups: list[dict[str, Any]],
    *,
    betas: tuple[Rate, Rate] = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Optimizer:
    """Adam, with weight decay as an L2 penalty.

    Options
        betas: decay of the moments
        eps: added to the root of the second moment
        weight_decay: L2 penalty
    """
    return torch.optim.Adam(groups, betas=betas, eps=eps, fused=has_fused_kernels(groups))


def sgd(groups: list[dict[str, Any]], *, momentum: Rate = 0.9, weight_decay: NonNegative = 0.0) -> Optimizer:
    """Stochastic gradient descent.

    Options
        momentum: momentum of the gradient
        weight_decay: L2 penalty
    """
    # Torch has no fused step of shards.
    sharded = any(is_sharded(parameter) for group in groups for parameter in group["params"])
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=has_fused_kernels(groups) and not sharded)


def lars(
    groups: list[dict[str, Any]], *, momentum: Rate = 0.9, trust: Positive = 0.001, weight_decay: NonNegative = 0.0
) -> Optimizer:
    """LARS as in MoCo v3 and MAE's linear probe: the rate of matrices is adapted, that of vectors is not.

    Options
        momentum: momentum of the adapted gradient
        trust: the trust coefficient
        weight_decay: L2 penalty
    """
    from timm.optim import Lars

    split_groups = [part for group in groups for part in _matrices_and_vectors(group)]
    return Lars(split_groups, lr=0.0, momentum=momentum, trust_coeff=trust, eps=0.0)


def _matrices_and_vectors(group: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """The group in two: by itself timm's Lars would adapt whatever has weight decay."""
    for adapt in (True, False):
        indices = [i for i, parameter in enumerate(group["params"]) if (parameter.ndim > 1) == adapt]
        if indices:
            chosen = {key: [group[key][i] for i in indices] for key in ("params", "names")}
            yield group | chosen | {"always_adapt": adapt}


def has_fused_kernels(groups: list[dict[str, Any]]) -> bool:
    """Whether torch has one kernel for all parameters, which can also skip a step without synchronising the host."""
    parameters = [p for group in groups for p in group["params"]]
    return all(p.device.type in ("cuda", "cpu") and p.is_floating_point() for p in parameters)


def make_optimizer(model: nn.Module, train: Mapping[str, Any], without: Collection[nn.Parameter] = ()) -> Optimizer:
    """The optimiser for a recipe's ``train``: ``optimizer`` (default ``adamw``), ``no_decay``, ``layer_decay``,
    ``head_lr_scale``; for all parameters but those of ``without``."""
    make, options, decay = _part(train.get("optimizer"), "train.optimizer")
    no_decay = train.get("no_decay")
    layers, head = train.get("layer_decay") or 1.0, train.get("head_lr_scale") or 1.0
    lr_scale = layer_scales(model, layers, head) if layers != 1 or head != 1 else None
    patterns = NO_DECAY if no_decay is None else no_decay
    groups = parameter_groups(model, decay, patterns, lr_scale, without, bool(train.get("decay_all")))
    return make(groups, **_matrices(make, groups, model), **options)


def make_phase_optimizer(phase: Phase, where: str, model: nn.Module | None = None) -> Optimizer:
    """The optimiser for the parameters of a phase; ``where`` names it in messages, ``model`` is what they belong to."""
    make, options, decay = _part(phase.optimizer, where)
    groups: dict[float, dict[str, Any]] = {}
    for number, parameter in enumerate([*phase.parameters, *phase.shared]):
        key = 0.0 if parameter.ndim <= 1 else decay
        group = groups.setdefault(key, {"params": [], "names": [], "weight_decay": key, "lr_scale": phase.lr_scale})
        group["params"].append(parameter)
        group["names"].append(str(number))
    listed = list(groups.values())
    return make(listed, **_matrices(make, listed, model), **options)


def _part(spec: Any, where: str) -> tuple[Any, dict[str, Any], float]:
    """(function, checked options, weight decay) of an optimiser of a recipe."""
    name, options = registry.part_of(spec, default="adamw")
    make = registry.find("optimizers", name)
    options = check(make, options, where)
    if "weight_decay" not in options_of(make):
        raise MaemmError(f"{registry.describe_owner(make)} has no option weight_decay (train.optimizer); add it")
    return make, options, options.get("weight_decay", options_of(make)["weight_decay"].default)


def _matrices(make: Any, groups: Sequence[Mapping[str, Any]], model: nn.Module | None) -> dict[str, dict[str, int]]:
    """The argument ``matrices``, for an optimiser that asks for it."""
    if "matrices" not in signature(make).parameters:
        return {}
    counts: dict[int, int] = {}
    if model is not None:
        counts = {id(model.get_parameter(name)): count for name, count in hidden_matrices(model).items()}
    named = [pair for group in groups for pair in zip(group["names"], group["params"], strict=True)]
    return {"matrices": {name: counts[id(parameter)] for name, parameter in named if id(parameter) in counts}}


# ------------------------------------------------------------------------------------------------- stepping
def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of all groups, each times its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


class WeightDecay:
    """Sets the weight decay of the groups that have one, as a function of the step."""

    def __init__(self, optimizer: Optimizer, train: Mapping[str, Any], steps: int):
        """Raises :class:`MaemmError` where ``train.final_weight_decay`` has no start from which to go there."""
        decays = [group.get("weight_decay", 0.0) for group in optimizer.param_groups]
        self.groups = [number for number, decay in enumerate(decays) if decay > 0]
        self.at_step = decay_curve(train, max(decays), steps)
        if self.at_step is not None and not self.groups:
            raise MaemmError(
                "train.final_weight_decay needs a weight decay to begin with (train.optimizer.weight_decay is 0); set "
                "one above 0, such as 1e-8"
            )

    def set(self, optimizer: Optimizer, step: int) -> None:
        """Before the update of ``step``, counted from 0."""
        if self.at_step is not None:
            for number in self.groups:
                optimizer.param_groups[number]["weight_decay"] = self.at_step(step)


def grad_norm(optimizer: Optimizer, clip: float | None) -> Tensor:
    """The L2 norm of the whole gradient, a scalar on the device. The gradient is then clipped to the norm ``clip``."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = total_norm(p.grad for p in parameters)
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm


def step_unless(optimizer: Optimizer, bad: Tensor) -> None:
    """An optimiser step, or nothing where the bool scalar ``bad`` is true: no parameter, moment or step count changes.

    Fused optimisers check ``found_inf`` on the device, as with :class:`torch.amp.GradScaler`, so that the host need
    not wait for it; for others it waits.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False) and _has_momentum(optimizer):
        fused: Any = optimizer
        fused.grad_scale, fused.found_inf = None, bad.float()
        try:
            fused.step()
        finally:
            del fused.grad_scale, fused.found_inf
    elif not bad.item():
        optimizer.step()


def _has_momentum(optimizer: Optimizer) -> bool:
    """Give SGD the momentum of parameters that have none yet: 0, which makes the same first update.

    Its fused step would make it of uninitialised memory, and leave that as it is where the step is skipped. False where
    0 would not be the same, since dampening spares the first step: such an optimiser is to wait for the host.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return True
    for group in optimizer.param_groups:
        if group["momentum"] == 0:
            continue
        with_gradient = [parameter for parameter in group["params"] if parameter.grad is not None]
        new = [p for p in with_gradient if optimizer.state[p].get("momentum_buffer") is None]
        if new and group["dampening"]:
            return False
        for parameter in new:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.grad)
    return True
