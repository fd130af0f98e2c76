"""What a verb is given, a run or weights and data, -> a model and a source."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from maemm import plugins
from maemm.config.schema import DataConfig, known_of
from maemm.contract import Source
from maemm.draws import Draw
from maemm.errors import MaemmError
from maemm.evaluate.features import digest
from maemm.evaluate.stream import Alone
from maemm.model import Model
from maemm.options import check, validate

What = str | os.PathLike | Model
_PROBED = 8  # samples whose content stands for all of a source


def open_model(what: What, *, stream: str | None = None, **known: Any) -> Model:
    """A run or checkpoint folder, a weights file, or a model; on the GPU where there is one.

    ``known`` goes to :func:`maemm.load`. A model that is given stays where it is. ``stream``: only the features of one
    modality, or of several together ("a+b"), are wanted, and only their data are read.
    """
    if isinstance(what, Model):
        return what if stream is None else Alone(what, stream)
    from maemm.weights import load

    model = load(Path(what), **known).to("cuda" if torch.cuda.is_available() else "cpu")
    return model if stream is None else Alone(model, stream)


def open_data(recipe: Mapping[str, Any], data: str | os.PathLike | None = None, **options: Any) -> Source:
    """The source of a recipe, on other data where they are given.

    ``options`` are keys of a recipe's ``data`` part: ``list``, ``source``. Raises :class:`MaemmError`.
    """
    from maemm.build import part_of
    from maemm.train.start import open_source

    values = data_config(recipe, data, **options)
    if values["mix"]:
        sets = ", ".join(values["mix"])
        raise MaemmError(
            f"the recipe mixes data sets (data.mix: {sets}); name the data, and set data.source to its source"
        )
    if values["source"] is not None:
        kind, given = part_of(values["source"])
        check(plugins.find("sources", kind), given, "data.source")
    return open_source({**recipe, "data": values})


def data_config(recipe: Mapping[str, Any], data: str | os.PathLike | None = None, **options: Any) -> dict[str, Any]:
    """The ``data`` part of a recipe, with other data: then its list is not meant. All samples, with their labels."""
    values = {key: value for key, value in (recipe.get("data") or {}).items() if key in DataConfig.model_fields}
    if data is not None:
        values |= {"root": os.fspath(data), "list": None}
    if data is not None or any(options.get(key) for key in ("list", "source")):
        values["mix"] = None
    values |= {"classes": None, "validation": None, **options}
    found, wrong = validate(DataConfig.model_validate_json, values, "data", known_of(DataConfig))
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
    """Changes when the data change: names, labels, files (size and time), and the content of a few samples."""
    found = hashlib.blake2b(digest_size=16)
    found.update(source.fingerprint().encode())
    for place in places:
        if place is not None:
            _feed_files(found, Path(place))
    for index in spread(len(source), _PROBED):
        try:
            sample = source.read(index, Draw(("stamp", index)))
            found.update(f"{sample.id}:{sample.label}:{digest(sample.raw)}".encode())
        except MemoryError:
            raise
        except Exception as error:  # whatever a broken file does; it will be skipped
            found.update(type(error).__name__.encode())
    return found.hexdigest()


def spread(total: int, count: int) -> list[int]:
    """``count`` numbers below ``total``, evenly spread."""
    return sorted({i * total // count for i in range(count)}) if total else []


def _feed_files(found: Any, place: Path) -> None:
    """Size and time of a file, or of all files below a folder."""
    if not place.is_dir():
        files = [place]
    else:
        files = (Path(folder) / name for folder, _, names in sorted(os.walk(place)) for name in sorted(names))
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        found.update(f"{os.fspath(file)}:{status.st_size}:{status.st_mtime_ns}".encode("utf-8", "surrogateescape"))
