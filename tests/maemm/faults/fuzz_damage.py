"""Damage to files of any kind, drawn from a seed; see :mod:`fuzz_bench`."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from maemm import config
from maemm.weights.checkpoints import stamp
from tests.maemm.faults.fuzz import nested, odd_value

LARGE = (0, 1, -1, 7, 2**31, 2**40, 2**63, 2**64, 10**30, 1.5, "3", None, True, [], {})
BIG_FILE = 3 * 10**9  # bytes of a sparse file: none may be read into memory
TORCH_DTYPES = (
    torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool, torch.complex64,
    torch.float8_e4m3fn, torch.uint16,
)  # fmt: skip
ODD_STARTS = (b"", b"\0" * 4096, b"<html>", b"PK\x03\x04", b"\x80\x02}q\x00.", b"version https://git-lfs")
ODD_LINES = (
    b"[1]", b"{}", b"nan", b'{"step": NaN}', b'{"step": 1e999, "loss": "x"}', b"\xff\xfe", b'{"step": -1}',
    b'{"step": 99}', b"\0" * 1000, b"{" * 100_000, b"[" * 100_000, b'{"step": 3, "loss": null, "terms": 3}', b"null",
    b"9" * 5000, b'{"step": 1' + b"0" * 400 + b"}", b'{"step": 2, "loss": 1' + b"0" * 400 + b"}",
    b'{"step": 3, "terms": ' + b'{"a": ' * 900 + b"1" + b"}" * 901,
)  # fmt: skip


@dataclass(frozen=True)
class Damage:
    """What is done to the files in a folder, and the command that is run there."""

    do: Callable[[Path], Any]
    argv: list[str]


def restamp(folder: Path) -> None:
    """Let meta.json record the files as they are now, so that what is in them is looked at."""
    meta = json.loads((folder / "meta.json").read_text())
    meta["files"] = {name: stamp(folder / name) for name in meta["files"] if (folder / name).is_file()}
    (folder / "meta.json").write_text(json.dumps(meta))


# ------------------------------------------------------------------------------------------------ values in memory
def change_tree(value: Any, draw: random.Random) -> None:
    """Change one place in a tree of mappings and lists."""
    places = list(_places(value))
    if not places:
        return
    holder, key = draw.choice(places)
    kind = draw.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key] = draw.choice(LARGE)
    elif kind == 2:
        holder[key] = nested(holder[key], draw.choice((1, 40)))
    elif kind == 3 and isinstance(holder[key], int | float):
        holder[key] = holder[key] * draw.choice((-1, 0, 2, 10**9)) + draw.choice((0, 1))
    else:
        holder[key] = odd_value(draw)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of every value below."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def change_tensors(state: dict[Any, Any], draw: random.Random) -> None:
    """Another dtype, shape, key or value of one tensor in a dict, or another dtype of all."""
    key = draw.choice([key for key, value in state.items() if isinstance(value, torch.Tensor)])
    value, kind = state[key], draw.randrange(9)
    if kind == 0:
        state[key] = value.to(draw.choice(TORCH_DTYPES))
    elif kind == 1:
        state[key] = draw.choice((value[None], value.flatten(), value.flatten()[:0], value.flatten()[:1]))
    elif kind == 2:
        state[key] = torch.full_like(value, draw.choice((float("nan"), float("inf"), 3e38, 1e-42, 0.0)))
    elif kind == 3:
        dtype = draw.choice(TORCH_DTYPES[:3])
        state.update({name: tensor.to(dtype) for name, tensor in state.items() if isinstance(tensor, torch.Tensor)})
    elif kind == 4:
        del state[key]
    elif kind == 5:
        state[draw.choice((f"module.{key}", f"{key}.x", "x", "extras/x", str(key).upper()))] = state.pop(key)
    elif kind == 6:
        state[draw.choice(("x", "extras/x", "head.weight", f"{key}_2"))] = torch.zeros(draw.choice((0, 3)))
    elif kind == 7:
        generator = torch.Generator().manual_seed(draw.getrandbits(30))
        numbers = torch.randn(value.shape, generator=generator) * 10.0 ** draw.randrange(-30, 38)
        state[key] = numbers.to(value.dtype)
    else:
        state[key] = torch.zeros([size + draw.choice((0, 1, 3)) for size in value.shape])


# ------------------------------------------------------------------------------------------------------------ files
def change_bytes(path: Path, draw: random.Random) -> None:
    """Cut a file, flip bits, or put other bytes in their place."""
    data, kind = bytearray(path.read_bytes()), draw.randrange(6)
    place = draw.randrange(len(data) + 1)
    if kind == 0:
        del data[place:]
    elif kind == 1:
        for _ in range(draw.choice((1, 3, 50)) if data else 0):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == 2:
        data[place:place] = draw.randbytes(draw.choice((1, 8, 5000)))
    elif kind == 3:
        data[place : place + 64] = draw.randbytes(64)
    elif kind == 4:
        data = bytearray(draw.choice(ODD_STARTS))
    else:
        data = bytearray(draw.randbytes(len(data)))
    path.write_bytes(data)


def change_values(path: Path, draw: random.Random) -> None:
    """Change one value in JSON, lines of JSON or YAML. What is none of them any more is changed as bytes."""
    try:
        if path.suffix == ".yaml":
            values: Any = config.load(path)
            change_tree(values, draw)
            path.write_text(yaml.safe_dump(json.loads(json.dumps(values, default=str)), sort_keys=False))
            return
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        place = draw.randrange(len(lines))
        values = json.loads(lines[place])
    except (ValueError, IndexError, RecursionError, config.MaemmError):
        change_bytes(path, draw)
        return
    change_tree(values, draw)
    lines[place] = json.dumps(values, default=str)
    path.write_text("\n".join(lines) + "\n", errors="surrogatepass")


def add_line(path: Path, draw: random.Random) -> None:
    """Add a line that nobody wrote, or half of one."""
    path.write_bytes(path.read_bytes() + draw.choice(ODD_LINES) + draw.choice((b"\n", b"\n", b"")))


def replace_file(path: Path, draw: random.Random) -> None:
    """The file is gone, or something else has its name: a folder, a link, a pipe, a device, a huge file."""
    path.unlink()
    kind = draw.randrange(9)
    if kind in (1, 2):
        path.mkdir()
    if kind == 2:
        (path / "x").write_text("x")
    elif kind == 3:
        path.symlink_to("nowhere")
    elif kind == 4:
        path.symlink_to(path.name)
    elif kind == 5:
        os.mkfifo(path)
    elif kind == 6:
        path.symlink_to("/dev/zero")
    elif kind == 7:
        path.touch()
        os.truncate(path, BIG_FILE)
    elif kind == 8:
        path.touch()


def swap_file(path: Path, draw: random.Random) -> None:
    """Another file of this or another run is here."""
    here = next(parent for parent in path.parents if parent.name == "here")
    others = [other for name in ("run", "other", "tuned") for other in sorted((here / name).rglob("*"))]
    others = [other for other in others if other.is_file() and other.stat().st_size < 10**7]
    alike = [other for other in others if other.name == path.name and other != path]
    path.write_bytes(draw.choice(alike if alike and draw.random() < 0.8 else others).read_bytes())
