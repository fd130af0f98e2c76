"""Seeded checkpoints, ours and of others, with other headers, tensors and states; see :mod:`fuzz_bench`."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.maemm.faults.fuzz import Case, nested, odd_value
from tests.maemm.faults.fuzz_damage import (
    LARGE,
    Damage,
    change_bytes,
    change_tensors,
    change_tree,
    change_values,
    restamp,
)

DTYPES = ("F32", "F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "X9", "", "f32", "F4", 3, None)
PREFIXES = ("module.", "model.", "encoder.", "x.", ".")
SETTINGS = ["heads=2", "decoder_heads=2", "norm_pix=true"]  # of the published weights
USES = {
    "w.safetensors": (
        ["convert", "w.safetensors", "x.safetensors"],
        ["embed", "w.safetensors", "few.npz", "-o", "x.npz"],
        ["export", "w.safetensors", "--to", "safetensors", "-o", "x.safetensors"],
        ["pretrain", "tiny.yaml", "few.npz", "out=new", "init=w.safetensors"],
        [
            "finetune",
            "w.safetensors",
            "few.npz",
            "out=new",
            "data.classes=2",
            "train.epochs=1",
            "train.warmup_epochs=0",
        ],
    ),
    "w.pth": (
        ["convert", "w.pth", "x.safetensors", *SETTINGS],
        ["embed", "w.pth", "pictures", "-o", "x.npz", *SETTINGS],
    ),
    "run": (
        ["pretrain", "run", "train.steps=6"],
        ["pretrain", "run", "train.steps=6"],
        ["embed", "run", "few.npz", "-o", "x.npz"],
    ),
}
STATES = ("optimizer.pt", "optimizer.pt", "model.safetensors", "ema.safetensors", "meta.json")


def checkpoints(seed: int, count: int) -> Iterator[Case]:
    """Weights files and the states of runs, changed, before convert, embed, export, a new run and resume."""
    for number in range(count):
        yield checkpoint(seed, number)


def checkpoint(seed: int, number: int) -> Case:
    """The checkpoint ``number`` of a seed."""
    draw = random.Random(f"checkpoint {seed} {number}")
    used = ("w.safetensors", "w.safetensors", "w.pth", "run", "run")[number % 5]
    safetensors = [change_header, change_header, change_recipe, change_safetensors, change_bytes]
    changes: list[Callable[[Path, random.Random], None]]
    if used == "run":
        name = draw.choice(STATES)
        file = f"run/checkpoints/step-000004/{name}"
        changes = {"optimizer.pt": [change_state], "meta.json": [change_values]}.get(name, safetensors)
    else:
        file, changes = used, safetensors if used == "w.safetensors" else [change_pickle] * 3 + [change_bytes]
    change, argv, state = draw.choice(changes), draw.choice(USES[used]), draw.getrandbits(64)

    def do(folder: Path) -> None:
        change(folder / file, random.Random(state))
        if used == "run" and not file.endswith("meta.json"):
            restamp((folder / file).parent)

    return Case(number, f"{change.__name__} of {file} ({state}): {argv}", Damage(do, argv))


# ------------------------------------------------------------------------------------------------------ safetensors
def change_header(path: Path, draw: random.Random) -> None:
    """Change the header, whose JSON says where each tensor lies."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, values = json.loads(data[8 : 8 + size]), data[8 + size :]
    keys = [key for key in header if key != "__metadata__"]
    key, other = draw.choice(keys), draw.choice(keys)
    entry, kind, text = header[key], draw.randrange(14), None
    if kind == 0:
        entry["dtype"] = draw.choice(DTYPES)
    elif kind == 1:
        shape = entry["shape"]
        entry["shape"] = draw.choice(([], [0], [2**40, 2**40], [-1], shape[::-1], [1, *shape], "3", None))
    elif kind == 2:
        entry["data_offsets"] = [draw.choice(LARGE), draw.choice(LARGE)]
    elif kind == 3:
        entry["data_offsets"] = header[other]["data_offsets"]
    elif kind == 4:
        header[draw.choice((f"{key}.x", "", "x" * 10_000, "a\x00b", "extras/x", "\x1b[1m"))] = header.pop(key)
    elif kind == 5:
        del header[key]
    elif kind == 6:
        header["__metadata__"] = draw.choice(({}, None, 3, [], {"maemm": 3}, {"maemm": "{"}, {"x": "y"}, "maemm"))
    elif kind == 7:
        header[key] = odd_value(draw) if draw.random() < 0.5 else draw.choice(LARGE)
    elif kind == 8:
        text = json.dumps(header).replace('"', "'", draw.randrange(9))
    elif kind == 9:
        text = '{"a":' + "[" * 5000 + "]" * 5000 + "}"
    elif kind == 10:
        text = json.dumps(header) + " " * 1_000_000
    elif kind == 11:
        header[key], header[other] = header[other], header[key]
    elif kind == 12:
        text = json.dumps(header)[:-1] + f', "{key}": {json.dumps(entry)}}}'
    encoded = (json.dumps(header, default=str) if text is None else text).encode("utf-8", "surrogatepass")
    sizes = (0, 1, size - 1, size + 1, 2**30, 2**62, 2**63, 2**64 - 1) if kind == 13 else (len(encoded),)
    path.write_bytes(struct.pack("<Q", draw.choice(sizes)) + encoded + values)


def change_recipe(path: Path, draw: random.Random) -> None:
    """Change the recipe that our files hold."""
    metadata = _metadata(path)
    header = json.loads(metadata["maemm"])
    change_tree(header, draw)
    metadata["maemm"] = json.dumps(header, default=str)
    save_file(load_file(path), path, metadata=metadata)


def change_safetensors(path: Path, draw: random.Random) -> None:
    """Change one tensor, or a key."""
    metadata, state = _metadata(path), load_file(path)
    change_tensors(state, draw)
    save_file({key: value.contiguous().clone() for key, value in state.items()}, path, metadata=metadata)


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


# ---------------------------------------------------------------------------------------------------------- pickles
def change_pickle(path: Path, draw: random.Random) -> None:
    """Save something else with torch.save: other objects, odd tensors, wrappers."""
    state: Any = torch.load(path, weights_only=True)
    key, kind, old_format = draw.choice(list(state)), draw.randrange(13), draw.random() < 0.3
    if kind <= 3:
        change_tensors(state, draw)
    elif kind == 4:
        odd = (
            None,
            3,
            [],
            [state],
            (),
            "text",
            torch.zeros(3),
            {},
            {1: 2},
            set(),
            b"x",
            float("nan"),
            nested(state, 30),
        )
        state = draw.choice(odd)
    elif kind == 5:
        state[key] = draw.choice((None, 3, "x", [], [torch.zeros(2)], {}, {"a": torch.zeros(1)}, torch.Size([2])))
    elif kind == 6:
        state[key] = torch.zeros(1).expand(10**10)
    elif kind == 7:
        make = (
            lambda: torch.eye(3).to_sparse(),
            lambda: torch.empty(state[key].shape, device="meta"),
            lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
            lambda: torch.nn.Parameter(state[key]),
            lambda: torch.zeros(state[key].shape, dtype=torch.complex64),
            lambda: np.float64(3),
        )
        state[key] = draw.choice(make)()
    elif kind == 8:
        state[draw.choice((3, None, ("a", 1), 1.5, True, "", "a\nb", "x" * 9000))] = state.pop(key)
    elif kind == 9:
        wrapper = draw.choice(("model", "state_dict", "net", "teacher", "model_state", "x", "", 3))
        state = {wrapper: state, "epoch": draw.choice((3, None, "x"))}
        if draw.random() < 0.5:
            state["student"] = deepcopy(state[wrapper])
    elif kind == 10:
        prefix = draw.choice(PREFIXES)
        state = {f"{prefix}{name}": value for name, value in state.items()}
    elif kind == 11:
        state = {"model": state}
        state["model"]["self"] = state
    else:
        state = list(state.items())
    torch.save(state, path, _use_new_zipfile_serialization=not old_format)
    if draw.random() < 0.25:
        change_bytes(path, draw)


def change_state(path: Path, draw: random.Random) -> None:
    """Change the state of a run beside its weights."""
    state: Any = torch.load(path, weights_only=True)
    for _ in range(draw.choice((1, 1, 2))):
        state = _other_state(state, draw)
        optimizer = state.get("optimizer") if isinstance(state, dict) else None
        if not isinstance(optimizer, dict) or not optimizer.get("state") or not isinstance(state.get("means"), dict):
            break  # nothing is left to be changed
    try:
        torch.save(state, path)
    except Exception:  # not every odd value can be pickled
        torch.save({"optimizer": None}, path)
    if draw.random() < 0.15:
        change_bytes(path, draw)


def _other_state(state: dict[str, Any], draw: random.Random) -> Any:
    states, kind = state["optimizer"]["state"], draw.randrange(8)
    index = draw.choice(list(states))
    if kind == 0 and isinstance(states[index], dict) and states[index]:
        change_tensors(states[index], draw)
    elif kind == 1:
        state["optimizer"]["state"] = draw.choice(({}, None, [], {"a": {}}, {10**9: {}}, {-1: {}}))
    elif kind == 2:
        group = draw.choice(state["optimizer"]["param_groups"])
        group[draw.choice(list(group))] = odd_value(draw) if draw.random() < 0.5 else draw.choice(LARGE)
    elif kind == 3:
        state[draw.choice(list(state))] = draw.choice(LARGE)
    elif kind == 4:
        del state[draw.choice(list(state))]
    elif kind == 5:
        change_tree(state["means"] if draw.random() < 0.5 else state.get("validation") or state, draw)
    elif kind == 6:
        states[index] = draw.choice(({}, None, 3, {"step": torch.tensor(-3.0)}, {"x": torch.zeros(2)}))
    else:
        return draw.choice((None, [], state["optimizer"], {"state": state}, torch.zeros(2)))
    return state
