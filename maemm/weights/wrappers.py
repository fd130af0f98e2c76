"""Where the weights lie in what was saved: the entry that holds them, and prefixes that wrappers put before names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from maemm.contract.errors import MaemmError, advice
from maemm.weights.checkpoints import warn
from maemm.weights.describe import content_of, printable, some_of
from maemm.weights.pickles import is_plain

#: entries that hold weights, the first of these that a file has is taken: the average of a teacher before its student
ENTRIES = (
    "model", "state_dict", "module", "base_model", "model_state_dict", "model_state", "net", "network", "teacher",
    "student", "state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema", "params", "weights",
)  # fmt: skip
#: entries that together are one model, where a file has the first and another of them (I-JEPA, V-JEPA 2)
TOGETHER = ("encoder", "predictor", "target_encoder")
AVERAGES = ("_ema",)  # entries among the weights themselves that are their average (data2vec 2.0)
_INNER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # what torch puts anywhere into a name
_DEPTH, _MOST_DICTS = 4, 100  # entries inside entries; dicts that are looked into
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def weights_in(content: Any, where: str, checkpoint_key: str | None = None) -> dict[str, Tensor]:
    """The tensors by name in what a file holds. ``where``: the file, for messages.

    ``checkpoint_key``: the entry that holds them, with dots for entries inside it; None: the first of :data:`ENTRIES`,
    or the only one with tensors. Where there are others, a line on stderr says so. Raises :class:`MaemmError` where
    there are no tensors, where it is not clear which are meant, and for tensors that are no weights.
    """
    path: list[str] = []
    if checkpoint_key is not None:
        content, path = _entry(content, where, checkpoint_key), [checkpoint_key]
    for _ in range(_DEPTH):
        entries = _entries(content)
        tensors = isinstance(content, Mapping) and any(isinstance(value, Tensor) for value in content.values())
        name = next((entry for entry in ENTRIES if entry in entries), None)
        if name is None and not tensors and len(entries) == 1:
            name = entries[0]
        if name is None:
            content = _put_together(content, entries)
            break
        if len(alike := [entry for entry in entries if entry in ENTRIES]) > 1 and checkpoint_key is None:
            others = ", ".join(entry for entry in alike if entry != name)
            start = ".".join([*path, ""])
            warn(f"{where} holds several sets of weights; {name} is used (checkpoint_key={start}NAME: {others})")
        content, path = content[name], [*path, name]
    return without_inner(_checked(content, where, path), where)


def _put_together(content: Any, entries: list[str]) -> Any:
    """One state dict of the entries of :data:`TOGETHER`, or of weights and of an average among them, with the names of
    the entries in front; whatever is neither stays."""
    parts = [entry for entry in TOGETHER if entry in entries]
    if len(parts) < 2 or parts[0] != TOGETHER[0]:
        parts = [entry for entry in AVERAGES if entry in entries]
    inner = {
        f"{part}.{key.removeprefix('module.')}": value
        for part in parts
        for key, value in content[part].items()
        if isinstance(key, str)
    }
    if not inner or TOGETHER[0] in parts:
        return inner or content
    return {**{key: value for key, value in content.items() if key not in parts}, **inner}


def _entry(content: Any, where: str, checkpoint_key: str) -> Any:
    """The entry of that name; dots lead into entries."""
    for name in str(checkpoint_key).split("."):
        if not isinstance(content, Mapping) or name not in content:
            entries = [str(key) for key in content] if isinstance(content, Mapping) else []
            raise MaemmError(
                f"{where} has no entry {printable(name)!r} (checkpoint_key={printable(checkpoint_key)}); "
                f"{printable(advice(name, entries), 200)}"
            )
        content = content[name]
    return content


def _entries(content: Any) -> list[str]:
    """The names of entries that hold tensors by name, themselves or inside an entry."""
    if not isinstance(content, Mapping):
        return []
    return [key for key, value in content.items() if isinstance(key, str) and _holds_weights(value)]


def _holds_weights(value: Any, seen: set[int] | None = None) -> bool:
    seen = set() if seen is None else seen  # a pickle may hold a dict in itself
    if not isinstance(value, Mapping) or id(value) in seen or len(seen) > _MOST_DICTS:
        return False
    seen.add(id(value))
    named = [inner for key, inner in value.items() if isinstance(key, str)]
    return any(isinstance(inner, Tensor) for inner in named) or any(_holds_weights(inner, seen) for inner in named)


def _checked(content: Any, where: str, path: list[str]) -> dict[str, Tensor]:
    place = f"{where}, entry {printable('.'.join(path))}" if path else where
    if not isinstance(content, Mapping):
        raise MaemmError(f"the weights are {content_of(content)}, not tensors by name ({place}); save a state_dict")
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        spread = _entries(content)
        if spread:
            raise MaemmError(
                f"the weights lie in several entries ({place}: {some_of(spread, 6)}); name one: "
                f"checkpoint_key={'.'.join([*path, printable(spread[0])])}"
            )
        raise MaemmError(f"the weights hold no tensors ({place}: {content_of(content)}); save a state_dict")
    for key, tensor in tensors.items():
        if not isinstance(key, str):
            raise MaemmError(
                f"the weights have the name {printable(key)}, which is no text ({place}); save a state_dict"
            )
        check_tensor(key, tensor, place)
    return {key: value.detach().cpu() for key, value in tensors.items()}


def check_tensor(key: str, tensor: Tensor, where: str) -> None:
    """Raises :class:`MaemmError` for a tensor of published weights that is no block of floating-point values."""
    if tensor.is_meta:
        raise MaemmError(f"{printable(key)} has a shape but no values ({where}); save it from a real device")
    if not is_plain(tensor):
        kind = "quantised" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        kind = f"a {kind} tensor" if tensor.layout != torch.strided or tensor.is_quantized else "an expanded tensor"
        raise MaemmError(f"{printable(key)} is {kind} ({where}); save it as a plain one (.to_dense(), .contiguous())")
    counter = tensor.ndim == 0 and not tensor.is_floating_point() and not tensor.is_complex()  # of BatchNorm's batches
    if tensor.dtype not in _FLOATS and not counter:
        raise MaemmError(
            f"{printable(key)} is {str(tensor.dtype).removeprefix('torch.')}, and weights are floating-point numbers "
            f"({where}); get the file in float32, float16 or bfloat16"
        )


def without_inner(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The state dict without the parts of names that compiled and sharded modules put anywhere (``_orig_mod``)."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        name = ".".join(part for part in key.split(".") if part not in _INNER)
        if name in result:
            raise MaemmError(f"the weights hold {printable(name)} twice ({where}); get a file with one set of weights")
        result[name] = value
    return result


def without_prefixes(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The state dict as it is, then without the first part of its names, for as long as all names share it.

    ``module.`` is always taken off (data parallel training adds it).
    """
    while True:
        first = {key.partition(".")[0] for key in state}
        shared = first.pop() if len(first) == 1 and all("." in key for key in state) else None
        if shared != "module":
            yield dict(state)
        if shared is None:
            return
        state = {key.removeprefix(f"{shared}."): value for key, value in state.items()}
