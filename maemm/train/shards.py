"""The part of a checkpoint that every rank writes and reads by itself: moments of sharded weights.

Written by torch.distributed.checkpoint as safetensors files, one for each rank, in ``shards/`` of a checkpoint: no
pickles. Any number of ranks, sharded or not, reads them. Weights are not among them: they are always whole, in
``model.safetensors``, so that everything reads any checkpoint.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.optim import Optimizer

from maemm.contract.errors import MaemmError
from maemm.data.atomic import WRITE_ERRORS, cause_of
from maemm.model.sharded import is_sharded
from maemm.train.distributed import DistContext

SHARDS = "shards"  # folder in a checkpoint


def taken_out(optimizer: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(the state dict of an optimiser with None in place of what is sharded, {"NAME/KEY": the sharded tensor})."""
    names = {
        index: name
        for group in optimizer["param_groups"]
        for name, index in zip(group["names"], group["params"], strict=True)
    }
    shards: dict[str, Tensor] = {}
    state: dict[int, dict[str, Any]] = {}
    for index, values in optimizer["state"].items():
        state[index] = dict(values)
        for key, value in values.items():
            if isinstance(value, Tensor) and is_sharded(value):
                shards[f"{names[index]}/{key}"] = value
                state[index][key] = None
    return {**optimizer, "state": state}, shards


def on_host(shards: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of sharded tensors in the memory of the host, still sharded."""
    return DefaultStager(StagingOptions(False, False, False, False)).stage(shards)  # type: ignore[return-value]


def write(folder: Path, shards: dict[str, Tensor], ranks: DistContext) -> list[str]:
    """Write what this rank holds into the folder of a checkpoint, which exists; all ranks call this.

    Returns the paths in it of the files that this rank has written. Raises :class:`MaemmError` on all ranks where one
    of them cannot write.
    """
    writer = HuggingFaceStorageWriter(str(folder / SHARDS), save_distributed=True)
    try:
        dcp.save(dict(shards), storage_writer=writer, process_group=ranks.control_group)
    except dcp.CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        raise MaemmError(
            f"a shard of the checkpoint cannot be written ({folder / SHARDS}: {_cause(first)}); free space and start "
            "again: the last complete checkpoint is kept"
        ) from error
    own = f"shard-{ranks.rank + 1:05d}-"
    return sorted(f"{SHARDS}/{path.name}" for path in (folder / SHARDS).iterdir() if path.name.startswith(own))


def _cause(error: BaseException) -> str:
    return cause_of(error) if isinstance(error, WRITE_ERRORS) else " ".join(str(error).split())[:200]


def put_back(folder: Path, states: Mapping[str, dict[str, Any]], optimizer: Optimizer) -> None:
    """Put this rank's shards, or for an optimiser of whole weights whole tensors, in place of the Nones of
    :func:`taken_out` in ``states``, {parameter: its state}.

    No rank waits for another. Raises ValueError where they are not there or of another size.
    """
    parameters = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
    wanted = {
        f"{name}/{key}": torch.empty_like(parameters[name].detach())
        for name, state in states.items()
        for key, value in state.items()
        if value is None and name in parameters
    }
    if not wanted:
        return
    reader = HuggingFaceStorageReader(str(folder / SHARDS))
    stored = reader.read_metadata().state_dict_metadata
    for name, tensor in wanted.items():
        about: Any = stored.get(name)
        if about is None:
            raise ValueError(f"no {name}")
        if about.size != tensor.shape or about.properties.dtype != tensor.dtype:
            raise ValueError(f"{name} is {tuple(about.size)} {about.properties.dtype}, not {tuple(tensor.shape)}")
    with warnings.catch_warnings():  # that ranks are not asked, which is what is wanted
        warnings.simplefilter("ignore")
        dcp.load(wanted, storage_reader=reader, no_dist=True)
    for name, state in states.items():
        for key in state:
            if f"{name}/{key}" in wanted:
                state[key] = wanted[f"{name}/{key}"]
