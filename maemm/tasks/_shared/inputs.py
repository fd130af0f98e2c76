"""What a verb is given, a run or weights and data, -> a model and a source."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from maemm import registry
from maemm.config.messages import validate
from maemm.config.options import check
from maemm.config.schema import DataConfig, key_types
from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.model.model import Model
from maemm.tasks._shared.features import digest
from maemm.tasks._shared.stream import Alone

Weights = str | os.PathLike | Model
Data = str | os.PathLike | Source | None  # None: the data of the recipe
_PROBED = 8  # samples whose content stands for all of a source


def open_model(what: Weights, *, stream: str | None = None, **known: Any) -> Model:
    """A run or checkpoint folder, a weights file, or a model; on the GPU where there is one.

    ``known`` goes to :func:`maemm.load`. A model that is given stays where it is. ``stream``: only the features of one
    modality, or of several together ("a+b"), are wanted, and only their data are read.
    """
    if isinstance(what, Model):
        return what if stream is None else Alone(what, stream)
    from maemm.weights import load

    model = load(Path(what), **known).to("cuda" if torch.cuda.is_available() else "cpu")
    return model if stream is None else Alone(model, stream)


def open_data(recipe: Mapping[str, Any], data: Data = None, **options: Any) -> Source:
    """The source of a recipe, on other data where they are given; a source that is open stays as it is.

    ``options`` are keys of a recipe's ``data`` part: ``list``, ``source``. Raises :class:`MaemmError`.
    """
    from maemm.data.open import open_source
    from maemm.registry.make import part_of

    if isinstance(data, Source):
        return data
    values = data_config(recipe, data, **options)
    if values["mix"]:
        sets = ", ".join(values["mix"])
        raise MaemmError(
            f"the recipe mixes data sets (data.mix: {sets}); name the data, and set data.source to its source"
        )
    if values["source"] is not None:
        kind, given = part_of(values["source"])
        check(registry.find("sources", kind), given, "data.source")
    return open_source({**recipe, "data": values})


def open_part(recipe: Mapping[str, Any], data: Data, given: Mapping[str, Any]) -> Source:
    """:func:`open_data` with some options of the recipe's source changed.

    ``given``: ``list``, ``source`` or single options of the source, such as ``source.split``. Raises
    :class:`MaemmError`.
    """
    from maemm.registry.make import part_of

    options = {key: value for key, value in given.items() if key in ("list", "source")}
    name, modality = next(iter(recipe["modalities"].items()))
    spec = options.get("source") or (recipe.get("data") or {}).get("source")
    kind, own = part_of(spec, default=modality.get("type") or name)
    for key, value in given.items():
        if key in options:
            continue
        first, _, option = key.partition(".")
        if first != "source" or not option or "." in option:
            raise MaemmError(f"'test.{key}' means nothing here; known: test.list, test.source, test.source.OPTION")
        own[option] = value
        options["source"] = {"type": kind, **own}
    return open_data(recipe, data, **options)


def data_config(recipe: Mapping[str, Any], data: Data = None, **options: Any) -> dict[str, Any]:
    """The ``data`` part of a recipe, with other data: then its list is not meant. All samples, with their labels."""
    values = {key: value for key, value in (recipe.get("data") or {}).items() if key in DataConfig.model_fields}
    if isinstance(data, str | os.PathLike):
        values |= {"root": os.fspath(data), "list": None}
    if data is not None or any(options.get(key) for key in ("list", "source")):
        values["mix"] = None
    values |= {"classes": None, "validation": None, **options}
    found, wrong = validate(DataConfig.model_validate_json, values, "data", key_types(DataConfig))
    if wrong:
        raise MaemmError("\n".join(wrong))
    return found.model_dump()


# ------------------------------------------------------------------------------------- what results depend on
def weights_stamp(model: Model) -> str:
    """Changes when the parts or any weight of the model change; where it came from and how it trained are left out."""
    found = hashlib.blake2b(digest_size=16)
    parts = {key: model.recipe.get(key) for key in ("modalities", "encoder", "decoder", "head", "stream")}
    found.update(json.dumps(parts, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def data_stamp(source: Source, *places: str | os.PathLike | None) -> str:
    """Changes when the data change: names, labels, files (size and time), and the content of a few samples.

    Files are those of the source; where it tells none, those at the ``places``.
    """
    found = hashlib.blake2b(digest_size=16)
    found.update(source.fingerprint().encode())
    told = False
    for file in source.files():
        told = _feed(found, os.fsdecode(file)) or told
    for place in places:
        if place is not None and not told:
            _feed(found, os.fspath(place))
    for index in evenly_spaced(len(source), _PROBED):
        try:
            sample = source.read(index, Rng(("stamp", index)))
            found.update(f"{sample.id}:{sample.label}:{digest(sample.raw)}".encode())
        except MemoryError:
            raise
        except Exception as error:  # whatever a broken file does; it will be skipped
            found.update(type(error).__name__.encode())
    return found.hexdigest()


def evenly_spaced(total: int, count: int) -> list[int]:
    """``count`` numbers below ``total``, evenly spread."""
    return sorted({i * total // count for i in range(count)}) if total else []


def _feed(found: Any, place: str) -> bool:
    """Size and time of a file, or of all files below a folder; whether there was one."""
    try:
        status = os.stat(place)
    except (OSError, ValueError):
        return False
    if not stat.S_ISDIR(status.st_mode):
        found.update(f"{place}:{status.st_size}:{status.st_mtime_ns}".encode("utf-8", "surrogateescape"))
        return True
    below = (os.path.join(folder, name) for folder, _, names in sorted(os.walk(place)) for name in sorted(names))
    return any([_feed(found, file) for file in below])
