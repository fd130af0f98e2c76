"""Weights, gradients, moments and averages in shards on several ranks: FSDP2, and copies that have them whole.

The blocks of encoder, decoder and teachers are gathered one at a time, where they are called; all else (embeddings,
tokens, norms, heads), a small part, is gathered once for a step, so that a plugin's modality never meets a shard.
"""

from __future__ import annotations

import socket
import warnings
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from maemm.contract.errors import MaemmError
from maemm.model.model import Model
from maemm.model.repeated import call_for_others, repeated_blocks
from maemm.model.sharded import is_sharded
from maemm.train.distributed import DistContext
from maemm.train.replica import Replica

PARALLEL = ("ddp", "fsdp", "hsdp")  # train.parallel


def mesh_of(parallel: str, shard: int | None, dist_context: DistContext) -> DeviceMesh | None:
    """The ranks among which weights are sharded: (world,) for fsdp, (copies, ranks of a copy) for hsdp; None for ddp
    and where there is one rank.

    ``shard``: ranks of a copy; None: those of a machine. Raises :class:`MaemmError` where it does not divide them.
    """
    if shard is not None and parallel != "hsdp":
        raise MaemmError(f"train.shard is for train.parallel=hsdp, not {parallel}; leave it out")
    world, device = dist_context.world_size, dist_context.device.type
    if parallel == "ddp" or world == 1:
        return None
    if parallel == "fsdp":
        return init_device_mesh(device, (world,))
    shard = shard or _ranks_of_a_machine(dist_context)
    if world % shard:
        raise MaemmError(
            f"{world} ranks are no multiple of {shard} (train.shard); set it to a number that divides them"
        )
    return init_device_mesh(device, (world // shard, shard), mesh_dim_names=("copies", "shards"))


def _ranks_of_a_machine(dist_context: DistContext) -> int:
    """Where all machines have as many; else all ranks."""
    names = dist_context.all_gather_object(socket.gethostname())
    counts = {names.count(name) for name in names}
    return counts.pop() if len(counts) == 1 else len(names)


class Sharding:
    """The weights of a model, sharded, and its structure, of which there can be copies with whole weights.

    Made of a complete model on the device before there is an optimiser.
    """

    def __init__(
        self,
        model: Model,
        mesh: DeviceMesh,
        *,
        bf16: bool,
        without: Collection[nn.Parameter] = (),
        averages: Collection[Model] = (),
    ):
        """``bf16``: blocks are gathered in that precision, in which autocast computes them; gradients are summed in
        float32. ``without``: parameters of the model that every rank keeps whole. ``averages`` of it are sharded alike.
        """
        # Of the outputs of the whole model, which nothing changes in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        self.replica = Replica(model)
        # Scalars cannot be sharded. Every rank has them, and their gradients are averaged by hand.
        self.scalars = [parameter for parameter in model.parameters() if parameter.ndim == 0]
        kept = {id(parameter) for parameter in (*without, *self.scalars)}
        whole = {name for name, parameter in model.named_parameters() if id(parameter) in kept}
        _shard(model, mesh, bf16, whole)
        for average in averages:
            _shard(average, mesh, False, whole)
        register_fsdp_forward_method(model, "plan_sets")  # teachers and guides compute there, before the forward pass

    def complete(self, model: Model, dist_context: DistContext, *, zeros: bool) -> None:
        """After the backward pass: average the gradients of scalars over ranks, as those of shards are.

        ``zeros``: parameters that the step did not use get a gradient of 0, as they do where weights are not sharded.
        """
        if zeros:
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        if gradients := [parameter.grad for parameter in self.scalars if parameter.grad is not None]:
            flat = dist_context.all_reduce_sum(torch.stack(gradients)) / dist_context.world_size
            for gradient, value in zip(gradients, flat.unbind(), strict=True):
                gradient.copy_(value)


def _shard(model: Model, mesh: DeviceMesh, bf16: bool, whole: Collection[str]) -> None:
    """Shard the blocks of a model and what is left, but for the parameters named in ``whole``."""
    blocks = [block for block in dict.fromkeys(_blocks(model)) if any(True for _ in block.parameters())]
    call_for_others(blocks)
    without = {parameter for name, parameter in model.named_parameters() if name in whole}
    options: dict[str, Any] = {"mesh": mesh, "ignored_params": without}
    # Inputs stay as autocast makes them.
    of_blocks = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mp_policy=of_blocks if bf16 else plain, **options)
    fully_shard(model, mp_policy=plain, **options)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """:func:`repeated_blocks`, but for those of modalities."""
    inside = {
        id(block)
        for name, part in module.named_modules()
        if name.split(".")[-1] == "modalities"
        for block in repeated_blocks(part)
    }
    return (block for block in repeated_blocks(module) if id(block) not in inside)


def gather_rest(model: nn.Module) -> None:
    """Gather what is not in blocks, for work on the model outside of its forward pass; until the next backward pass."""
    if isinstance(model, FSDPModule):
        model.unshard()


def shard_like(values: Tensor, like: Tensor) -> Tensor:
    """This rank's shard of ``values``, which every rank has whole, as ``like`` is sharded; without communication.

    ``values`` itself where ``like`` is not sharded.
    """
    if not isinstance(like, DTensor) or isinstance(values, DTensor):
        return values
    part = values
    for dim, placement in zip(range(like.device_mesh.ndim), like.placements, strict=True):
        if placement.is_shard():
            count, rank = like.device_mesh.size(dim), like.device_mesh.get_local_rank(dim)
            chunks = torch.chunk(part, count, placement.dim)  # type: ignore[attr-defined]
            part = chunks[rank] if rank < len(chunks) else part.narrow(placement.dim, 0, 0)  # type: ignore[attr-defined]
    own = like.to_local()
    part = part.to(own.device).contiguous()
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The L2 norm of all gradients together, whole ones and shards."""
    gradients = list(gradients)
    if not any(map(is_sharded, gradients)):
        return torch.nn.utils.get_total_norm(gradients)
    shards, others = ([g for g in gradients if is_sharded(g) == kind] for kind in (True, False))
    norms = []
    for kind in (shards, others):
        if kind:
            norm = torch.nn.utils.get_total_norm(kind)
            norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
