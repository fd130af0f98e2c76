"""Muon: the momentum of hidden matrices is made orthogonal (Jordan et al. 2024), all else is trained by AdamW.

The formula is that of ``torch.optim.Muon``, which has the published defaults and one knob with AdamW
(``match_rms_adamw``, Liu et al. 2025, arXiv 2502.16982). Its class cannot be used: it takes no fused queries, keys and
values, orthogonalises one matrix after the other, and cannot leave out a step without a wait of the host. Neither can
``timm.optim.Muon``, whose Nesterov momentum also turns AdamW for the rest into NAdamW. Tests compare with both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from maemm.contract.errors import MaemmError
from maemm.contract.options import NonNegative, Positive, PositiveInt, Rate, Repeats
from maemm.model.sharded import local
from maemm.train.optim import has_fused_kernels
from maemm.train.sharding import shard_like

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, https://kellerjordan.github.io/posts/muon/
EPS = 1e-7  # a matrix with a smaller norm stays small
AT_ONCE = 2**26  # elements that are stacked at a time, 256 MiB in float32

Adjust = Literal["match_rms_adamw", "original"]
Precision = Literal["auto", "bf16", "fp32"]
# Factor on the learning rate by rows and columns. The root mean square of an orthogonal (rows, columns) matrix is
# 1 / sqrt(max), that of an update of AdamW about 0.2.
_ADJUST: dict[str, Callable[[int, int], float]] = {
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
}


def muon(
    groups: list[dict[str, Any]],
    matrices: Mapping[str, int],
    *,
    momentum: Rate = 0.95,
    nesterov: bool = True,
    iterations: Repeats = 5,
    precision: Precision = "auto",
    adjust: Adjust = "match_rms_adamw",
    hidden: Sequence[str] | None = None,
    split: Mapping[str, PositiveInt] | None = None,
    betas: tuple[Rate, Rate] = (0.9, 0.95),
    eps: NonNegative = 1e-8,
    adamw_lr_scale: Positive = 1.0,
    weight_decay: NonNegative = 0.05,
) -> Optimizer:
    """Muon for hidden matrices, AdamW for all else, with one learning rate and one weight decay.

    Options
        momentum: decay of the mean gradient of hidden matrices
        nesterov: look ahead along that mean
        iterations: Newton-Schulz iterations
        precision: of their products; auto: bf16 on CUDA, fp32 elsewhere
        adjust: factor on the learning rate of a matrix: match_rms_adamw moves weights by as much as AdamW; original is
            sqrt(rows / columns), at least 1, for learning rates around 0.02
        hidden: name patterns of the hidden matrices; null: the linear layers inside blocks
        split: {name pattern: matrices that stand one below the other in it}; null: 3 in qkv, 2 in kv
        betas: decay of the moments of AdamW
        eps: added to the root of the second moment of AdamW
        adamw_lr_scale: factor on the learning rate of what AdamW trains
        weight_decay: decoupled weight decay
    """
    counts = _counts(groups, matrices, hidden, split or {})
    parts = [part for group in groups for part in _by_count(group, counts, adamw_lr_scale)]
    fused = has_fused_kernels(groups)
    return Muon(
        parts, betas=betas, eps=eps, fused=fused, momentum=momentum, nesterov=nesterov, iterations=iterations,
        precision=precision, adjust=adjust,
    )  # fmt: skip


def _counts(
    groups: Sequence[Mapping[str, Any]],
    matrices: Mapping[str, int],
    hidden: Sequence[str] | None,
    split: Mapping[str, int],
) -> dict[str, int]:
    """{parameter: how many matrices stand in it} of hidden ones. Raises :class:`MaemmError` for useless patterns."""
    shapes = {
        name: parameter.shape
        for group in groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
    for key, patterns in (("hidden", hidden or ()), ("split", split)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in shapes):
                raise MaemmError(
                    f"no parameter that is trained has a name like {pattern!r} (train.optimizer.{key}); names are "
                    f"those of the weights, such as {next(iter(shapes))!r}"
                )
    chosen = [name for name in shapes if name in matrices]
    if hidden is not None:
        chosen = [name for name in shapes if any(fnmatchcase(name, pattern) for pattern in hidden)]
    counts = {}
    for name in chosen:
        of_patterns = [count for pattern, count in split.items() if fnmatchcase(name, pattern)]
        count, shape = of_patterns[0] if of_patterns else matrices.get(name, 1), tuple(shapes[name])
        if len(shape) != 2:
            raise MaemmError(
                f"{name} {shape} is not a matrix (train.optimizer.hidden); use patterns that name matrices alone"
            )
        if shape[0] % count:
            raise MaemmError(
                f"{name} {shape} is not {count} equal matrices, one below the other (train.optimizer.split); set "
                f"split={{{name}: 1}}"
            )
        counts[name] = count
    return counts


def _by_count(group: dict[str, Any], counts: Mapping[str, int], lr_scale: float) -> Iterator[dict[str, Any]]:
    """The group in several: what AdamW trains, and hidden matrices by ``stacked``, their number in a parameter."""
    of_each = [counts.get(name, 0) for name in group["names"]]
    for stacked in sorted(set(of_each)):
        numbers = [number for number, count in enumerate(of_each) if count == stacked]
        chosen = {key: [group[key][number] for number in numbers] for key in ("params", "names")}
        scale = group["lr_scale"] * (1.0 if stacked else lr_scale)
        yield group | chosen | {"lr_scale": scale} | ({"stacked": stacked} if stacked else {})


class Muon(torch.optim.AdamW):
    """Groups with ``stacked`` are matrices, of which that many stand one below the other; AdamW trains the others.

    A step that is not to be done is left out on the device: like fused optimisers of torch it reads ``found_inf``,
    which :func:`~maemm.train.optim.step_unless` sets. Matrices of one shape are made orthogonal together. Sharded ones
    (DTensor) are gathered for it, and every rank keeps the momentum and the update of its shard alone.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        fused: bool = False,
        momentum: float = 0.95,
        nesterov: bool = True,
        iterations: int = 5,
        precision: Precision = "auto",
        adjust: Adjust = "match_rms_adamw",
    ):
        super().__init__(groups, betas=betas, eps=eps, fused=fused)
        self.momentum, self.nesterov, self.adjust = momentum, nesterov, adjust
        self.iterations, self.precision = iterations, precision

    def __setstate__(self, state: dict[str, Any]) -> None:
        Optimizer.__setstate__(self, state)  # that of Adam wants a step count of every parameter

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update. ``closure`` is for AdamW's signature; nothing here calls it."""
        groups = self.param_groups
        for (stacked, *_), members in self._batches([group for group in groups if group.get("stacked")]):
            self._step_matrices(members, stacked)
        self.param_groups = [group for group in groups if not group.get("stacked")]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups

    def _batches(
        self, groups: Sequence[dict[str, Any]]
    ) -> Iterator[tuple[tuple[Any, ...], list[tuple[Tensor, dict[str, Any]]]]]:
        """((stacked, ...), [(parameter, its group), ...]): equal ones, as many as are stacked at a time."""
        equal: dict[tuple[Any, ...], list[tuple[Tensor, dict[str, Any]]]] = {}
        for group in groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    key = group["stacked"], parameter.shape, parameter.dtype, parameter.device, _placement(parameter)
                    equal.setdefault(key, []).append((parameter, group))
        for key, members in equal.items():
            count = max(1, AT_ONCE // max(1, members[0][0].numel()))
            for first in range(0, len(members), count):
                yield key, members[first : first + count]

    def _step_matrices(self, members: Sequence[tuple[Tensor, dict[str, Any]]], stacked: int) -> None:
        """Update parameters of one shape, or leave them and their momentum as they are where ``found_inf`` says so."""
        parameters = [parameter for parameter, _ in members]
        found_inf = getattr(self, "found_inf", None)
        bad = None if found_inf is None else found_inf > 0
        update = self._momenta(parameters, bad)
        matrices = torch.stack([_gathered(part, like) for part, like in zip(update, parameters, strict=True)])
        flat = matrices.unflatten(1, (stacked, -1)).flatten(0, 1)  # (parameters * stacked, rows, columns)
        factor = _ADJUST[self.adjust](*flat.shape[1:])
        flat = orthogonalized(flat, self.iterations, self.precision).to(matrices.dtype)
        if bad is not None:
            flat = torch.where(bad, 0.0, flat)
        updates = list(flat.unflatten(0, (-1, stacked)).flatten(1, 2).unbind())
        for group in {id(group): group for _, group in members}.values():
            numbers = [number for number, (_, other) in enumerate(members) if other is group]
            of_group = [local(parameters[number]) for number in numbers]
            moves = [local(shard_like(updates[number], parameters[number])) for number in numbers]
            kept = 1 - group["lr"] * group["weight_decay"]
            if bad is None:
                torch._foreach_mul_(of_group, kept)
            else:
                torch._foreach_mul_(of_group, torch.where(bad, 1.0, kept).to(of_group[0].dtype))
            torch._foreach_add_(of_group, moves, alpha=-group["lr"] * factor)

    def _momenta(self, parameters: Sequence[Tensor], bad: Tensor | None) -> Tensor:
        """Move the means of the gradients; returns what is to be made orthogonal, (parameters, rows, columns).

        Of a sharded parameter these are the rows of the shard.
        """
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [local(self.state[parameter]["momentum_buffer"]) for parameter in parameters]
        before = torch.stack(buffers)
        gradients = torch.stack([local(parameter.grad) for parameter in parameters if parameter.grad is not None])
        if bad is not None:
            gradients = torch.where(bad, before, gradients)  # a mean that moves towards itself stays, bit for bit
        means = before.lerp(gradients, 1 - self.momentum)
        torch._foreach_copy_(buffers, list(means.unbind()))
        return gradients.lerp(means, self.momentum) if self.nesterov else means


def orthogonalized(matrices: Tensor, iterations: int = 5, precision: Precision = "auto") -> Tensor:
    """(N, rows, columns) -> the same singular vectors, with singular values of about 0.7 to 1.2.

    Newton-Schulz iterations on matrices of norm 1. Those of bfloat16 are exact to 3 digits, and fast where a processor
    has such products; ``auto`` takes them on a GPU.
    """
    bf16 = matrices.device.type == "cuda" if precision == "auto" else precision == "bf16"
    x = matrices.to(torch.bfloat16 if bf16 else torch.float32)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


# ------------------------------------------------------------------------------------------------ sharded matrices
def _placement(tensor: Tensor) -> Any:
    return (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None


def _gathered(part: Tensor, like: Tensor) -> Tensor:
    """The whole of what is split over ranks as ``like`` is, of which this rank has ``part``."""
    if not isinstance(like, DTensor):
        return part
    shape, stride = like.shape, like.stride()
    return DTensor.from_local(part, like.device_mesh, like.placements, shape=shape, stride=stride).full_tensor()
