"""The arguments of a verb, a run or weights and data, -> a model and a source; and stamps of what they hold."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from maemm import registry
from maemm.config.messages import validate
from maemm.config.options import check
from maemm.config.schema import DataConfig, key_types
from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.open import open_source
from maemm.data.transfer import overlapped, sent
from maemm.model.model import Model
from maemm.registry.make import part_of
from maemm.tasks._shared.data_objects import source_of
from maemm.tasks._shared.digests import digest
from maemm.tasks._shared.stream_model import StreamModel
from maemm.train.setup import use_bf16
from maemm.weights import load, load_encoder

Weights = str | os.PathLike | Model
# A path; what a program holds, see :func:`maemm.tasks._shared.data_objects.source_of`; None: the data of the recipe
Data = str | os.PathLike | Source | np.ndarray | Tensor | Dataset | Sequence[Any] | None
_STAMPED = 8  # samples whose content goes into the stamp of a source
_LABELS_TRIED = 64  # samples that are looked at to tell whether there are labels
PRECISIONS = ("auto", "fp32", "bf16")
NO_LABELS = "the data have no labels; give all files in a folder per class, or a list or array with labels"


def open_model(weights: Weights, *, stream: str | None = None, **settings: Any) -> Model:
    """Load a run or checkpoint folder, or a weights file, to the GPU where there is one.

    A model is returned as it is, on its device. ``stream``: restrict the model to one modality, or to several ("a+b");
    only their data are read. ``precision``: in which the verb runs the network: fp32, bf16, or auto (default): bf16 on
    a GPU that supports it, unless the run trained in fp32; what it returns is float32. ``settings``: what a checkpoint
    does not record, see :func:`maemm.load`. Raises :class:`MaemmError`.
    """
    return _opened(load, weights, stream, settings)


def open_encoder(weights: Weights, *, stream: str | None = None, **settings: Any) -> Model:
    """:func:`open_model` where the decoder is not used, so that its settings are not asked for."""
    return _opened(load_encoder, weights, stream, settings)


def _opened(
    load_model: Callable[..., Model], weights: Weights, stream: str | None, settings: Mapping[str, Any]
) -> Model:
    precision = settings.get("precision", "auto")
    if precision not in PRECISIONS:
        raise MaemmError(f"precision is {precision!r}; choose {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
    settings = {key: value for key, value in settings.items() if key != "precision"}
    model = weights if isinstance(weights, Model) else load_model(weights, **settings).to(usual_device())
    if (bf16 := _in_bf16(model, precision)) != model.bf16:
        model = copy.copy(model)  # of the same weights; the caller's model stays as it is
        model.bf16 = bf16
    return model if stream is None else StreamModel(model, stream)


def _in_bf16(model: Model, precision: str) -> bool:
    if precision != "auto":
        return precision == "bf16"
    trained_in = (model.recipe.get("train") or {}).get("precision")
    return trained_in != "fp32" and use_bf16("auto", next(model.parameters()).device)


def usual_device() -> torch.device:
    """Where verbs run the models that they load: on the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def open_data(recipe: Mapping[str, Any], data: Data = None, **options: Any) -> Source:
    """The source of a recipe, reading ``data`` in place of the recipe's; an open source is returned as it is.

    ``data`` may also be an array, a Dataset or a list of paths, see
    :func:`maemm.tasks._shared.data_objects.source_of`. ``options`` are keys of a recipe's ``data`` section: ``list``,
    ``source``. Raises :class:`MaemmError`.
    """
    if not (data is None or isinstance(data, str | os.PathLike)):
        named = [key for key in ("list", "source") if options.get(key) is not None]
        if named:
            raise MaemmError(f"{' and '.join(named)} and data that are no path are both given; leave one out")
        return source_of(recipe, data)
    values = data_config(recipe, data, **options)
    if values["mix"]:
        sets = [*values["mix"]]
        raise MaemmError(
            f"the run is trained on several data sets ({', '.join(sets)}); give one by its name, such as {sets[0]}, or "
            "a path"
        )
    part = _set_of(recipe, data)
    if part is not None:
        _check_modalities(recipe, data, part)
    if values["source"] is not None:
        kind, source_options = part_of(values["source"])
        check(registry.find("sources", kind), source_options, "data.source")
    return open_source({**recipe, "data": values})


def open_part(recipe: Mapping[str, Any], data: Data, changes: Mapping[str, Any]) -> Source:
    """:func:`open_data` with some options of the recipe's source changed.

    ``changes``: ``list``, ``source`` or single options of the source, such as ``source.split``. Raises
    :class:`MaemmError`.
    """
    options = {key: value for key, value in changes.items() if key in ("list", "source")}
    name, modality = next(iter(recipe["modalities"].items()))
    spec = options.get("source") or (recipe.get("data") or {}).get("source")
    kind, source_options = part_of(spec, default=modality.get("type") or name)
    for key, value in changes.items():
        if key in options:
            continue
        first, _, option = key.partition(".")
        if first != "source" or not option or "." in option:
            raise MaemmError(f"'test.{key}' means nothing here; known: test.list, test.source, test.source.OPTION")
        source_options[option] = value
        options["source"] = {"type": kind, **source_options}
    return open_data(recipe, data, **options)


def data_config(recipe: Mapping[str, Any], data: Data = None, **options: Any) -> dict[str, Any]:
    """The ``data`` section of a recipe, validated, for all samples of ``data`` with their own labels.

    The recipe's list and mix belong to its own data and are dropped for others. Raises :class:`MaemmError`.
    """
    stored = {key: value for key, value in (recipe.get("data") or {}).items() if key in DataConfig.model_fields}
    values = _valid(stored)  # as a recipe that came with weights may hold anything
    if isinstance(options.get("list"), str | os.PathLike):
        options["list"] = os.path.expanduser(options["list"])
    part = _set_of(recipe, data)
    if part is not None:
        values |= {key: part.get(key) for key in ("root", "list", "source")}
    elif isinstance(data, str | os.PathLike):
        values |= {
            "root": os.path.expanduser(data),
            "list": None,
            "source": values.get("source") or _shared_source(values),
        }
    elif data is not None:  # nothing is read from the recipe's places; what a program holds need not be sent to workers
        values |= {"root": None, "list": None, **({} if isinstance(data, Source) else {"workers": 0})}
    if data is not None or any(options.get(key) is not None for key in ("list", "source")):
        values["mix"] = None
    values |= {"classes": None, "validation": None, **options}
    return _valid(values)


def _valid(values: Mapping[str, Any]) -> dict[str, Any]:
    """A ``data`` section with its defaults. Raises :class:`MaemmError`."""
    config, mistakes = validate(DataConfig.model_validate_json, values, "data", key_types(DataConfig))
    if mistakes:
        raise MaemmError("\n".join(mistakes))
    return config.model_dump()


def _set_of(recipe: Mapping[str, Any], data: Data) -> Mapping[str, Any] | None:
    """The data set of the recipe's mixture that ``data`` names; None where it names none, or there is such a path."""
    mix = (recipe.get("data") or {}).get("mix") or {}
    return mix[data] if isinstance(data, str) and data in mix and not os.path.exists(data) else None


def _check_modalities(recipe: Mapping[str, Any], name: Any, part: Mapping[str, Any]) -> None:
    """Raises :class:`MaemmError` where a data set lacks modalities of the recipe."""
    own = part.get("modalities") or [*recipe["modalities"]]
    missing = [modality for modality in recipe["modalities"] if modality not in own]
    if missing:
        shared = "+".join(modality for modality in recipe["modalities"] if modality in own)
        advice = f"add --stream {shared}, or " if shared else ""
        raise MaemmError(f"data set {name!r} has no {', '.join(missing)}, which the model reads; {advice}give others")


def _shared_source(values: Mapping[str, Any]) -> Any:
    """The source of all data sets of a mixture, None where they differ."""
    sources = [part.get("source") for part in (values.get("mix") or {}).values()]
    return sources[0] if sources and all(source == sources[0] for source in sources) else None


# ------------------------------------------------------------------------------------- what results depend on
def weights_stamp(model: Model) -> str:
    """A hash of the model's parts and weights; it does not depend on their origin, nor on how they were trained."""
    state = hashlib.blake2b(digest_size=16)
    parts = {key: model.recipe.get(key) for key in ("modalities", "encoder", "decoder", "head", "stream")}
    state.update(json.dumps(parts, sort_keys=True, default=str).encode())
    names, values = zip(*sorted(model.state_dict().items()), strict=True)
    for name, value in zip(names, overlapped(sent(x.detach()) for x in values), strict=True):
        state.update(name.encode())
        state.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def data_stamp(source: Source, *paths: str | os.PathLike | None) -> str:
    """A hash of names, labels, files (size and time of change) and the content of a few samples.

    The files are those that the source lists, or, where it lists none that exists, those at ``paths``.
    """
    state = hashlib.blake2b(digest_size=16)
    state.update(source.fingerprint().encode())
    listed = any([_update_with_files(state, os.fsdecode(file)) for file in source.files()])
    for path in paths:
        if path is not None and not listed:
            _update_with_files(state, os.fspath(path))
    for index in evenly_spaced(len(source), _STAMPED):
        try:
            sample = source.read(index, Rng(("stamp", index)))
            state.update(f"{sample.id}:{sample.label}:{digest(sample.raw)}".encode())
        except MemoryError:
            raise
        except Exception as error:  # whatever a broken file does; embedding will skip it
            state.update(type(error).__name__.encode())
    return state.hexdigest()


def some_labels(source: Source) -> list[int]:
    """Labels of samples at regular intervals, to tell whether there are any; those that cannot be read are left out."""
    labels: list[int] = []
    for index in evenly_spaced(len(source), _LABELS_TRIED):
        try:
            label = source.label(index)
        except MemoryError:
            raise
        except Exception:  # whatever a broken file does; whoever reads the samples counts it
            continue
        labels += label if isinstance(label, tuple) else [] if label is None or label < 0 else [label]
    return labels


def evenly_spaced(total: int, count: int) -> list[int]:
    """At most ``count`` indices below ``total``, evenly spaced from 0."""
    count = min(count, total)  # more are all of them
    return sorted({i * total // count for i in range(count)})


def _update_with_files(state: Any, path: str) -> bool:
    """Hash size and time of a file, or of all files below a folder; -> whether there was one."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return False
    if not stat.S_ISDIR(status.st_mode):
        state.update(f"{path}:{status.st_size}:{status.st_mtime_ns}".encode("utf-8", "surrogateescape"))
        return True
    below = (os.path.join(folder, name) for folder, _, names in sorted(os.walk(path)) for name in sorted(names))
    return any([_update_with_files(state, file) for file in below])
