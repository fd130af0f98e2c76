"""What a checkpoint holds is compared with what the run expects, all of it, before any of it is used.

A file may be whole and still be another run's, or edited: fused optimisers read moments of another shape beyond their
memory, and weights of another type would be cast in silence.
"""

from __future__ import annotations

import math
import pickle
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer

from maemm.config.paths import check_regular
from maemm.contract.errors import MaemmError
from maemm.data.atomic import cause_of
from maemm.model.model import Model
from maemm.model.sharded import is_sharded
from maemm.train.checkpoint import OPTIMIZER
from maemm.train.sharding import shard_like
from maemm.train.shards import SHARDS, put_back
from maemm.train.spikes import is_state
from maemm.train.state import TrainState
from maemm.weights import EMA, MODEL, fill
from maemm.weights.building import check_values
from maemm.weights.checkpoints import Checkpoint
from maemm.weights.describe import some_of

_TINY = 6  # side of a parameter on which an optimiser is tried; a multiple of the matrices that a parameter may hold


class Unusable(MaemmError):
    """What is in the way of resuming from a checkpoint; an older one may do."""


def restore(checkpoint: Checkpoint, train_state: TrainState) -> dict[str, Any]:
    """Set models and optimisers from a checkpoint; returns the rest of the ``state`` that it was written with.

    Raises :class:`Unusable` where anything in it is not what this run would have written; then nothing has been set.
    """
    weights = _weights(train_state.model, checkpoint, MODEL)
    ema_weights = None if train_state.ema_model is None else _weights(train_state.ema_model, checkpoint, EMA)
    state = _read(checkpoint)
    untrained = state.get("untrained")
    main = _optimizer_state(train_state.optimizer, state["optimizer"], "optimizer", untrained, checkpoint.path)
    names = {phase.name for phase in train_state.phases}
    if names != set(state["phases"]):
        raise Unusable(f"{OPTIMIZER} has phases {sorted(state['phases'])}, the objectives have {sorted(names)}")
    phases = {
        phase.name: _optimizer_state(phase.optimizer, state["phases"][phase.name], f"phases.{phase.name}", None)
        for phase in train_state.phases
    }

    _fill(train_state.model, weights, MODEL)
    if train_state.ema_model is not None and ema_weights is not None:
        _fill(train_state.ema_model, ema_weights, EMA)
    train_state.optimizer.load_state_dict(_sharded(main, train_state.optimizer))
    for phase in train_state.phases:
        phase.optimizer.load_state_dict(phases[phase.name])
    return state


# -------------------------------------------------------------------------------------------------- weights
def _weights(model: Model, checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    try:
        check_regular(checkpoint.path / name)
        tensors = load_file(checkpoint.path / name)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise Unusable(f"{name} cannot be read ({cause_of(error)})") from error
    state = {key: value for key, value in tensors.items() if not key.startswith("extras/")}
    own = model.state_dict()
    for title, keys in (("lacks", own.keys() - state.keys()), ("has unexpected", state.keys() - own.keys())):
        if keys:
            raise Unusable(f"{name} {title} {len(keys)} keys ({some_of(sorted(keys))})")
    for key, value in state.items():
        _compare(name, key, value, own[key].shape, own[key].dtype)
    try:
        check_values(own, state, f"the weights in {name}")
    except MaemmError as error:
        raise Unusable(str(error).partition("; ")[0]) from None
    return state


def _fill(model: Model, weights: dict[str, Tensor], name: str) -> None:
    """Set weights that have been checked; of a sharded model this rank's shards."""
    own = model.state_dict()
    if any(map(is_sharded, own.values())):
        model.load_state_dict({key: shard_like(value, own[key]) for key, value in weights.items()})
    else:
        fill(model, weights, name)


def _compare(file: str, key: str, value: Any, shape: Collection[int], dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor):
        raise Unusable(f"{file}: {key} is a {type(value).__name__}, not a tensor")
    if value.shape != torch.Size(shape) or value.dtype != dtype or value.layout != torch.strided:
        raise Unusable(f"{file}: {key} is {_text(value.shape, value.dtype)}, not {_text(shape, dtype)}")


def _text(shape: Collection[int], dtype: torch.dtype) -> str:
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')}"


# ------------------------------------------------------------------------------------------ the training state
def _read(checkpoint: Checkpoint) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():  # about tensors that no run writes, which are refused below
            warnings.simplefilter("ignore")
            check_regular(checkpoint.path / OPTIMIZER)
            state = torch.load(checkpoint.path / OPTIMIZER, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Unusable(f"{OPTIMIZER} cannot be read (it holds more than tensors)") from error
    except Exception as error:  # of a file that torch did not write, almost any
        raise Unusable(f"{OPTIMIZER} cannot be read ({cause_of(error)})") from error
    means, validation = _entry(state, "means", Mapping), _entry(state, "validation", Mapping, {})
    _entry(state, "optimizer", Mapping)
    _entry(state, "phases", Mapping, {})
    steps, seconds = _entry(state, "nonfinite_steps", int), _entry(state, "seconds", float)
    good = steps >= 0 and math.isfinite(seconds) and all(_is_mean(key, pair) for key, pair in means.items())
    if validation:
        best, waited = validation.get("best"), validation.get("without_improvement")
        good = good and (best is None or isinstance(best, float)) and isinstance(waited, int)
        good = good and isinstance(validation.get("best_text"), str)
    if not good or not _is_monitor(_entry(state, "monitor", Mapping, {})):
        raise Unusable(f"{OPTIMIZER} holds other metrics than a run writes (means, validation, monitor, seconds)")
    if not is_state(_entry(state, "spikes", Mapping, {})):
        raise Unusable(f"{OPTIMIZER} holds other counts than a run writes (spikes)")
    untrained = state.get("untrained")
    if untrained is not None and not (isinstance(untrained, list) and all(isinstance(name, str) for name in untrained)):
        raise Unusable(f"{OPTIMIZER}: untrained is not a list of names")
    return state


def _entry(state: Any, key: str, kind: type, default: Any = None) -> Any:
    """``state[key]``, set to ``default`` where it is missing in a file of an older version."""
    if not isinstance(state, dict):
        raise Unusable(f"{OPTIMIZER} holds a {type(state).__name__}, not the state of a run")
    if key not in state and default is not None:
        state[key] = default
    if not isinstance(state.get(key), kind) or isinstance(state[key], bool):
        raise Unusable(f"{OPTIMIZER} has no {key}" if key not in state else f"{OPTIMIZER}: {key} is no {kind.__name__}")
    return state[key]


def _is_mean(key: Any, pair: Any) -> bool:
    """A sum and a count. Sums may be anything, as a loss may."""
    return isinstance(key, str) and isinstance(pair, list) and [type(number) for number in pair] == [float, float]


def _is_monitor(state: Mapping[str, Any]) -> bool:
    """The state of :class:`maemm.train.monitor.Monitor`, or none."""
    if not state:
        return True
    start, rows, alarms, counts = (state.get(key) for key in ("start", "rows", "alarms", "counts"))
    if not (isinstance(start, dict) and isinstance(rows, list) and isinstance(alarms, dict)):
        return False
    whole = isinstance(counts, list) and [type(number) for number in counts] == [int, int, int]
    numbers = [start, *rows] if all(isinstance(row, dict) for row in rows) else [{"": None}]
    texts = [*alarms, *alarms.values(), state.get("samples")]
    return (
        whole
        and all(isinstance(x, int | float) for figures in numbers for x in figures.values())
        and all(isinstance(text, str) for text in texts)
    )


# -------------------------------------------------------------------------------------------------- optimisers
def _optimizer_state(
    optimizer: Optimizer, saved: Any, title: str, untrained: Collection[str] | None, folder: Path | None = None
) -> dict[str, Any]:
    """``saved``, a state dict of the same optimiser, checked and in the order of today's parameters, found by name.

    Parameters of ``saved`` that have no state and are not trained any more are left out. ``untrained``: names of those
    that may lack a state; None: any may, as files of older versions do not tell. ``folder``: of the checkpoint, in
    which shards may lie.
    """
    where = f"{OPTIMIZER}, {title}"
    groups, states = _groups(saved, where)
    places = {name: (group, index) for group in groups for name, index in _named(group, where)}
    if folder is not None:
        try:
            put_back(folder, {name: states.get(index, {}) for name, (_, index) in places.items()}, optimizer)
        except Exception as error:  # of files that a run did not write, almost any
            raise Unusable(f"{SHARDS} cannot be read ({cause_of(error)})") from error
    current = optimizer.state_dict()
    own = {name for group in current["param_groups"] for name in group["names"]}
    unexpected = sorted(name for name, (_, index) in places.items() if name not in own and states.get(index))
    missing = sorted(own - places.keys())
    if unexpected or missing:
        problem = f"unexpected state of {some_of(unexpected)}" if unexpected else f"no state of {some_of(missing)}"
        raise Unusable(f"{where}: {problem}")
    result: dict[str, Any] = {"state": {}, "param_groups": []}
    for group, live in zip(current["param_groups"], optimizer.param_groups, strict=True):
        result["param_groups"].append(_options(optimizer, group, places[group["names"][0]][0], where))
        templates: dict[tuple[int, torch.dtype], dict[str, Any] | None] = {}
        for name, index, parameter in zip(group["names"], group["params"], live["params"], strict=True):
            key = (parameter.ndim, parameter.dtype)
            if key not in templates:
                templates[key] = _template(optimizer, live, parameter)
            if state := states.get(places[name][1]):
                _check_state(f"{where}, {name}", state, parameter, templates[key])
                result["state"][index] = state
            elif states and templates[key] and untrained is not None and name not in untrained:
                raise Unusable(f"{where}: no state of {name}")
    return result


def _sharded(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """The state with this rank's shards of whole tensors, where the optimiser's parameters are sharded."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    for index, parameter in zip(indices, parameters, strict=True):
        values = state["state"].get(index, {})
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[key] = shard_like(value, parameter)
    return state


def _groups(saved: Any, where: str) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
    groups, states = (saved.get(key) if isinstance(saved, Mapping) else None for key in ("param_groups", "state"))
    if not isinstance(groups, list) or not isinstance(states, dict) or not all(isinstance(g, dict) for g in groups):
        raise Unusable(f"{where} is not the state of an optimiser")
    if not all(isinstance(index, int) and isinstance(state, dict) for index, state in states.items()):
        raise Unusable(f"{where}: state is not one of numbered parameters")
    return groups, states


def _named(group: dict[str, Any], where: str) -> Iterator[tuple[str, int]]:
    names, indices = group.get("names"), group.get("params")
    if not isinstance(names, list) or not isinstance(indices, list) or len(names) != len(indices):
        raise Unusable(f"{where}: a group does not name its parameters")
    if not all(isinstance(name, str) and isinstance(i, int) for name, i in zip(names, indices, strict=True)):
        raise Unusable(f"{where}: a group does not name its parameters")
    return zip(names, indices, strict=True)


def _options(optimizer: Optimizer, group: dict[str, Any], saved: dict[str, Any], where: str) -> dict[str, Any]:
    """Options of a group. The recipe sets those of torch, timm and maemm; others may keep numbers there that change."""
    result = dict(group)
    for key in (group.keys() & saved.keys()) - {"params", "names"}:
        kinds = _kind(group[key]), _kind(saved[key])
        if None in kinds:  # switches and words, which depend on the machine
            continue
        if kinds[0] != kinds[1]:
            raise Unusable(f"{where}: {key} is {saved[key]!r:.40}, not like {group[key]!r:.40}")
        if not type(optimizer).__module__.startswith(("torch.", "timm.", "maemm.")):
            result[key] = saved[key]
    return result


def _kind(value: Any) -> Any:
    """What must agree of a number, a sequence of numbers or a tensor; None for anything else."""
    if isinstance(value, Tensor):
        return "tensor", value.shape, value.dtype
    if isinstance(value, list | tuple):
        return "sequence", *map(_kind, value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number", math.isfinite(value)
    return None


def _template(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> dict[str, Any] | None:
    """The state that the optimiser makes for a tiny parameter of as many axes; None where that cannot be told."""
    tiny = torch.zeros((_TINY,) * parameter.ndim, dtype=parameter.dtype, device=parameter.device)
    tiny.grad = torch.zeros_like(tiny)
    probe = object.__new__(type(optimizer))
    probe.__dict__.update(optimizer.__dict__)
    probe.state, probe.param_groups = defaultdict(dict), [{**group, "params": [tiny], "names": ["tiny"]}]
    try:
        probe.step()
    except Exception:  # an optimiser of a plugin may be of any make
        return None
    return dict(probe.state[tiny]) or None


def _check_state(where: str, state: dict[str, Any], parameter: Tensor, template: dict[str, Any] | None) -> None:
    """The state of one parameter against the ``template`` of :func:`_template`."""
    if template is None:  # then what is not a number at least has the parameter's size
        for key, value in state.items():
            if not _is_number(value, None):
                _compare(where, str(key), value, parameter.shape, parameter.dtype)
        return
    if state.keys() != template.keys():
        raise Unusable(f"{where} has {', '.join(map(str, state))}, not {', '.join(template)}")
    for key, expected in template.items():
        value = state[key]
        if _is_number(expected, None):
            if not _is_number(value, expected) or (key == "step" and value < 0):
                raise Unusable(f"{where}: {key} is not a number of the kind that the optimiser counts with")
        elif isinstance(expected, Tensor) and expected.shape == (_TINY,) * parameter.ndim:
            _compare(where, key, value, parameter.shape, expected.dtype)
        elif type(value) is not type(expected):
            raise Unusable(f"{where}: {key} is a {type(value).__name__}, not a {type(expected).__name__}")


def _is_number(value: Any, like: Any) -> bool:
    """Whether it is a finite number or a tensor of one, without axes; of the dtype of ``like`` if both are tensors."""
    if isinstance(value, Tensor):
        if value.ndim or value.is_complex() or value.layout != torch.strided:
            return False
        if isinstance(like, Tensor) and like.dtype != value.dtype:
            return False
        value = value.item()
    return isinstance(value, int | float) and math.isfinite(value)
