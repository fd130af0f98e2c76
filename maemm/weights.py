"""Read and write weights: our own files, and published ones through the kinds that plugins register."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from maemm import options, plugins
from maemm.build import build_model
from maemm.contract import WeightsKind
from maemm.errors import MaemmError
from maemm.files import usual_rights, write_whole
from maemm.model import Model

MODEL, EMA = "model.safetensors", "ema.safetensors"  # of a checkpoint: the weights, and their average over training
BEST = "best"  # folder in the run: the weights with the best figure of validation
_WRAPPERS = ("model", "state_dict", "module", "base_model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")


def load(what: str | Path | dict[str, Tensor], kind: str | None = None, **known: Any) -> Model:
    """A model from weights: a file, a run or checkpoint folder, or a state dict; published or our own.

    Which weights of a run, see :func:`find_checkpoint`. A folder may also be another library's: config.json and
    model.safetensors.

    ``kind`` names the published layout where it cannot be told. ``known`` is what the weights do not tell:
    ``heads``, ``decoder_heads``, ``norm_pix``, ``mask_ratio``... Every key and shape is checked: a partial match
    is a :class:`MaemmError` that names the keys. Files are never unpickled freely.
    """
    config = None
    if not isinstance(what, dict):
        path = Path(what)
        config = config_of(path)
        if config is not None:
            path = path / MODEL
        elif path.is_dir():
            return _load_own(find_checkpoint(path), known)
        elif recipe_of(path) is not None:
            return _load_own(path, known)
        what = read_state(path)
    state = strip_wrappers(what)
    found = _kind(kind, state)
    told = {} if config is None else found.known_of(config)
    known = options.check(found.read, {**told, **known}, found.name)
    recipe, ours, extras = found.read(state, **known)
    model = build_model(recipe)
    fill(model, ours, f"weights {found.name!r}")
    model.extras, model.kind = extras, found.name
    return model.eval()


def fill(model: torch.nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load strictly; raises :class:`MaemmError` that names missing and unexpected keys and wrong shapes."""
    own = model.state_dict()
    problems = []
    for title, keys in (("missing", own.keys() - state.keys()), ("unexpected", state.keys() - own.keys())):
        if keys:
            problems.append(f"{len(keys)} {title} ({_some(sorted(keys))})")
    wrong = [
        f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}"
        for k in own.keys() & state.keys()
        if state[k].shape != own[k].shape
    ]
    if wrong:
        problems.append(f"{len(wrong)} of another shape ({_some(sorted(wrong))})")
    if problems:
        raise MaemmError(f"{what} do not fit: {'; '.join(problems)}")
    model.load_state_dict(state)


def _some(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _kind(name: str | None, state: dict[str, Tensor]) -> WeightsKind:
    if name is not None:
        return plugins.find("weights", name)()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    kinds = [plugins.find("weights", one)() for one in plugins.names("weights")]
    fitting = [one for one in kinds if one.match(set(shapes), shapes)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise MaemmError(f"the weights fit several kinds; give kind= one of {', '.join(k.name for k in fitting)}")
    raise MaemmError(
        f"the weights fit no known kind ({len(state)} tensors: {_some(sorted(state))}); "
        f"known: {', '.join(k.name for k in kinds)}"
    )


def read_state(path: Path) -> dict[str, Any]:
    """Tensors of a foreign file: safetensors, or a pickle of tensors and plain settings (``weights_only``)."""
    if not path.exists():
        raise MaemmError(f"no such weights: {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace, *_paths()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise MaemmError(f"{path} holds more than tensors and is not unpickled ({reason})") from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MaemmError(f"{path} cannot be read as weights ({reason})") from None


def _paths() -> list[type]:
    import pathlib

    return [pathlib.PosixPath, pathlib.PurePosixPath, pathlib.WindowsPath, pathlib.PureWindowsPath]


def strip_wrappers(state: dict[str, Any]) -> dict[str, Tensor]:
    """Take the tensors out of wrappers (``model``, ``module``...) and drop prefixes (``module.``, ``_orig_mod.``)."""
    for _ in range(3):
        inner = next((state[w] for w in _WRAPPERS if isinstance(state.get(w), dict)), None)
        if inner is None:
            break
        state = inner
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise MaemmError("the weights hold no tensors")
    again = True
    while again:
        again = False
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in tensors):
                tensors, again = {key[len(prefix) :]: value for key, value in tensors.items()}, True
    return tensors


# --------------------------------------------------------------------------------------------- our own files
def save(model: Model, path: str | Path) -> None:
    """One safetensors file with the recipe in its header; :func:`load` reads it back exactly."""
    header = {"maemm": json.dumps({"recipe": model.recipe, "kind": model.kind})}
    state = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    state |= {f"extras/{key}": value.contiguous() for key, value in model.extras.items()}
    save_file(_unshared(state), path, metadata=header)
    usual_rights(Path(path))


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors that share memory (``same_as`` modalities): safetensors refuses those."""
    seen: set[int] = set()
    result = {}
    for key, value in state.items():
        result[key] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return result


def recipe_of(path: Path) -> dict[str, Any] | None:
    """The header of our own file, or None where the file is not ours."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get("maemm")
    except (SafetensorError, OSError):
        return None
    return json.loads(header) if header else None


def config_of(folder: Path) -> dict[str, Any] | None:
    """The config.json of a folder that another library wrote beside its model.safetensors; None: it is none."""
    path = folder / "config.json"
    if not path.is_file() or recipe_of(folder / MODEL) is not None:
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MaemmError(f"{path} cannot be read ({error}); get the whole folder") from None
    if not isinstance(config, dict):
        raise MaemmError(f"{path} holds no settings; get the whole folder")
    return config


def _load_own(path: Path, known: dict[str, Any]) -> Model:
    if known:
        raise MaemmError(f"{', '.join(sorted(known))} is already in the recipe of {path}; leave it out")
    header = recipe_of(path)
    if header is None:
        raise MaemmError(f"{path} holds no recipe; it is not a model saved by maemm")
    model = build_model(header["recipe"])
    state = load_file(path)
    extras = {key.removeprefix("extras/"): state.pop(key) for key in list(state) if key.startswith("extras/")}
    fill(model, state, str(path))
    model.extras, model.kind = extras, header.get("kind")
    return model.eval()


def find_checkpoint(folder: Path) -> Path:
    """The model file of a checkpoint folder; of a run folder the best of a classifier that validated, else the last.

    A checkpoint with an average of the weights (``train.ema``, ``train.average``) stands for that average.
    """
    best = folder / BEST / MODEL
    if not (folder / MODEL).is_file():
        if ((recipe_of(best) or {}).get("recipe") or {}).get("head"):
            return best
        steps = [path.parent for path in (folder / "checkpoints").glob(f"step-*/{MODEL}")]
        if not steps:
            raise MaemmError(f"{folder} holds no checkpoint; give a run folder, a checkpoint folder or a weights file")
        folder = max(steps, key=lambda path: (len(path.name), path.name))  # step-1000000 behind step-999999
    return folder / EMA if (folder / EMA).is_file() else folder / MODEL


def rebuilt(model: Model, overrides: Mapping[str, Any] | Iterable[str]) -> Model:
    """The model with other options of its modalities (``modalities.NAME.KEY``) and the same weights.

    For what a checkpoint does not tell or was trained without, such as views. Checked as a recipe is; raises
    :class:`MaemmError` also for options that ask for other weights.
    """
    from maemm import config
    from maemm.config.layers import flatten, from_overrides

    given = flatten(from_overrides(overrides).values)
    for key in given:
        above, name, *_ = *key.split("."), ""
        if above != "modalities" or name not in model.modalities:
            known = ", ".join(f"modalities.{one}.KEY" for one in model.modalities)
            raise MaemmError(f"{key!r} is no option of this model's modalities; only those can be set here: {known}")
    parts = {key: model.recipe[key] for key in ("modalities", "encoder")}
    found = build_model({**model.recipe, "modalities": config.load(parts, overrides)["modalities"]})
    fill(found, model.state_dict(), f"the weights, with other {', '.join(given)},")
    found.extras, found.kind = model.extras, model.kind
    return found.to(next(model.parameters()).device).eval()


def convert(
    source: str | Path, out: str | Path, *, kind: str | None = None, to: str | None = None, **known: Any
) -> str:
    """Published weights -> our file, or with ``to`` back to a published layout. Returns a line to print."""
    out = Path(out)
    if out.exists():
        raise MaemmError(f"{out} exists; choose another name or remove it")
    layout = None if to is None else plugins.find("weights", to)()  # a wrong name is told before minutes of reading
    model = load(source, kind, **known)
    if layout is None:
        write_whole(out, lambda file: save(model, file), "the weights")
        return f"{source} ({model.kind or 'maemm'}) -> {out}: {len(model.state_dict())} tensors, maemm format"
    state = layout.write(model, model.extras)
    write_whole(out, lambda file: _save_layout(state, file, out.suffix), "the weights")
    return f"{source} ({model.kind or 'maemm'}) -> {out}: {len(state)} tensors, layout {to!r}"


def _save_layout(state: dict[str, Tensor], file: Path, suffix: str) -> None:
    if suffix == ".safetensors":
        save_file(_unshared({key: value.detach().contiguous() for key, value in state.items()}), file)
        usual_rights(file)
    else:
        torch.save({"model": state}, file)
