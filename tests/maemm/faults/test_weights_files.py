"""Files as people have them: the content says what a file is, and what is no weights is refused in our own words."""

import argparse
import io
import json
import os
import pickle
import socket
import struct
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

import maemm
from maemm import MaemmError
from tests.maemm.faults.weights_cases import TINY, published, refused, tiny_model


@pytest.fixture(scope="module")
def state():
    return published()


def load(path, **settings):
    return maemm.load(path, **{**TINY, **settings})


def same(model, state):
    back = maemm.registry.find("weights", "mae")().write(model, model.extras)
    return back.keys() == state.keys() and all(torch.equal(back[key], state[key].float()) for key in state)


# ----------------------------------------------------------------------------------------- content, not the name
@pytest.mark.parametrize("name", ["x.bin", "x.pth", "X.SAFETENSORS", "weights", "x.txt", "x.pt"])
@pytest.mark.parametrize("how", ["safetensors", "zip", "legacy"])
def test_the_content_says_what_a_file_is(tmp_path, state, name, how):
    if how == "safetensors":
        save_file(state, tmp_path / name)
    else:
        torch.save({"model": state}, tmp_path / name, _use_new_zipfile_serialization=how == "zip")
    assert same(load(tmp_path / name), state)


def test_a_torch_file_called_safetensors_and_our_own_under_any_name(tmp_path, state):
    torch.save(state, tmp_path / "x.safetensors")
    assert same(load(tmp_path / "x.safetensors"), state)
    model = tiny_model()
    maemm.save(model, tmp_path / "own.safetensors")
    (tmp_path / "own.safetensors").rename(tmp_path / "own.pth")
    again = maemm.load(tmp_path / "own.pth")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


NO_WEIGHTS = {
    "html": (b"\n<!DOCTYPE html><title>404</title>", "web page"),
    "xml": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
    "bom": (b"\xef\xbb\xbf<html>", "web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
    "empty": (b"", "is empty"),
    "zeros": (b"\0" * 5000, "zeros"),
    "json": (b'{"error": "not found"}', "JSON"),
    "gzip": (b"\x1f\x8b\x08" + b"x" * 40, "gzip"),
    "npy": (b"\x93NUMPY" + b"x" * 40, "NumPy"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "escape": (b"\x1b[1mbold\x1b[0m" * 30, "no file of weights"),
    "text": (b"not weights at all", "no file of weights"),
}


@pytest.mark.parametrize("case", NO_WEIGHTS)
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_what_is_no_weights_is_called_by_its_name(tmp_path, case, name):
    content, word = NO_WEIGHTS[case]
    (tmp_path / name).write_bytes(content)
    refused(lambda: load(tmp_path / name), word, "cannot be read as weights")


@pytest.mark.parametrize("how", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_what_is_cut_off_is_refused(tmp_path, state, how, share):
    path = tmp_path / "x.pth"
    if how == "safetensors":
        path.write_bytes(save(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(lambda: load(path))


def test_special_files_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder.pth").mkdir()
    for name in ("pipe.safetensors", "pipe.pth"):
        refused(lambda name=name: load(tmp_path / name), "a pipe")
    refused(lambda: load("/dev/zero"), "a device")
    refused(lambda: load(tmp_path / "loop"))
    refused(lambda: load(tmp_path / "nothing.pth"), "no such weights")
    refused(lambda: load(tmp_path / "x.pth" / "y"), "no such weights")
    refused(lambda: load("a\0b"), "zero byte")
    refused(lambda: maemm.load(3), "a path or a state dict")
    with pytest.raises(MaemmError, match="holds no checkpoint"):
        maemm.load(tmp_path / "folder.pth")


def test_a_socket_and_a_pipe_inside_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.pth")
        refused(lambda: load("s.pth"), "a socket")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder/model.safetensors")
    (tmp_path / "folder/config.json").write_text("{}")
    refused(lambda: load(tmp_path / "folder"), "a pipe")


def test_home_is_expanded(tmp_path, monkeypatch, state):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(state, tmp_path / "x.pth")
    assert same(load("~/x.pth"), state)
    maemm.convert("~/x.pth", "~/own.safetensors", **TINY)
    assert maemm.load(Path("~/own.safetensors")).kind == "mae"
    refused(lambda: maemm.load("~nobody-of-that-name/x.pth"), "no such weights")


# ---------------------------------------------------------------------------------------------- what was pickled
NOT_BY_NAME = {
    "list": lambda s: [s],
    "tuple": lambda s: (s, 3),
    "tensor": lambda s: torch.ones(3),
    "number": lambda s: 3,
    "float": lambda s: 0.5,
    "none": lambda s: None,
    "text": lambda s: "weights",
    "empty": lambda s: {},
    "settings": lambda s: {"epoch": 3, "lr": [0.1]},
    "int keys": lambda s: dict(enumerate(s.values())),
    "mixed keys": lambda s: {**s, 7: torch.ones(2)},
    "tuple keys": lambda s: {(key,): value for key, value in s.items()},
    "control characters": lambda s: {f"\x1b[1m{key}\n": value for key, value in s.items()},
    "long names": lambda s: {key + "x" * 100_000: value for key, value in s.items()},
    "none inside": lambda s: {"model": None},
    "nested list": lambda s: {"model": [s]},
    "itself": lambda s: (lambda loop: loop.update(model=loop) or loop)({}),
}


@pytest.mark.parametrize("case", NOT_BY_NAME)
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_of_other_things(tmp_path, state, case, zipped):
    torch.save(NOT_BY_NAME[case](state), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    refused(lambda: load(tmp_path / "x.pth"))


TENSORS = {
    "int8": lambda x: (x * 100).to(torch.int8),
    "uint8": lambda x: x.to(torch.uint8),
    "bool": lambda x: x > 0,
    "int64": lambda x: x.long(),
    "complex": lambda x: x.to(torch.complex64),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
    "expanded": lambda x: torch.zeros(1).expand(x.shape),
    "flat": lambda x: x.flatten(),
    "transposed": lambda x: x.T.contiguous(),
    "nothing": lambda x: x[:0],
    "nan": lambda x: x.clone().index_fill_(0, torch.tensor([0]), float("nan")),
    "infinite": lambda x: torch.full_like(x, float("inf")),
    "beyond float32": lambda x: torch.full_like(x, 1e300, dtype=torch.float64),
}


@pytest.mark.parametrize("case", TENSORS)
@pytest.mark.parametrize("key", ["blocks.0.attn.qkv.weight", "norm.weight", "decoder_pred.weight"])
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_weights(tmp_path, state, case, key):
    if case == "transposed" and state[key].ndim < 2:
        key = "blocks.1.mlp.fc1.weight"
    if case == "flat" and state[key].ndim < 2:
        key = "cls_token"
    broken = {**state, key: TENSORS[case](state[key])}
    refused(lambda: load(broken))
    torch.save(broken, tmp_path / "x.pth")
    refused(lambda: load(tmp_path / "x.pth"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_are_taken(state, dtype):
    lower = {key: value.to(dtype) for key, value in state.items()}
    assert same(load(lower), lower)


def test_settings_beside_the_weights_are_never_made(tmp_path, state):
    beside = {
        "metric": np.float64(71.2), "step": np.int64(3), "history": np.arange(4.0), "flag": np.bool_(True),
        "args": argparse.Namespace(lr=0.1, out=Path("out")), "path": PurePosixPath("a/b"), "best": defaultdict(list),
        "order": OrderedDict(a=1), "name": b"bytes",
    }  # fmt: skip
    for zipped in (True, False):
        torch.save({"model": state, **beside}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        assert same(load(tmp_path / "x.pth"), state)
    torch.save({"model": state, **beside}, tmp_path / "x.pth", pickle_protocol=4)
    refused(lambda: load(tmp_path / "x.pth"), "protocol of pickle")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil-was-here"),))


class Shell:
    def __reduce__(self):
        return (os.system, ("touch evil-was-here",))


class Code:
    def __reduce__(self):
        return (eval, ("open('evil-was-here', 'w')",))


@pytest.mark.parametrize("evil", [Evil, Shell, Code])
@pytest.mark.parametrize("zipped", [True, False])
def test_objects_are_never_unpickled(tmp_path, monkeypatch, state, evil, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": state, "args": evil()}, "x.pth", _use_new_zipfile_serialization=zipped)
    refused(lambda: load("x.pth"), "is not unpickled")
    assert not Path("evil-was-here").exists()


def test_a_module_a_plain_pickle_and_other_archives(tmp_path, state):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    refused(lambda: load(tmp_path / "module.pth"), "torch.nn.modules.linear.Linear", "state_dict")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": 1}))
    refused(lambda: load(tmp_path / "plain.pkl"), "torch.save did not write")
    np.savez(tmp_path / "x.npz", a=np.ones(2))
    refused(lambda: load(tmp_path / "x.npz"), "NumPy archive")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    refused(lambda: load(tmp_path / "x.zip"), "a.txt")


# ------------------------------------------------------------------------- what a file says of its own size
def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """The members of a torch file, changed by ``change(name, content)`` -> content, written again."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


def test_compressed_members_are_refused(tmp_path, state):
    path = tmp_path / "x.pth"
    torch.save({**state, "zeros": torch.zeros(1_000_000)}, path)
    rewritten(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 500_000
    refused(lambda: load(path), "is compressed")


def test_less_is_stored_than_is_said(tmp_path, state):
    path = tmp_path / "x.pth"
    torch.save(state, path)
    rewritten(path, lambda name, content: content[:16] if name.endswith("data/3") else content)
    refused(lambda: load(path), "lacks values")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_larger_than_the_file(tmp_path, zipped):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(77)}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    number = b"K" + bytes([77])  # BININT1
    assert content.count(number) >= 2
    path.write_bytes(content.replace(number, b"J" + struct.pack("<i", 2**31 - 1)))
    if zipped:  # the pickle has grown: put it into an archive again
        torch.save({"a": torch.ones(77)}, path)
        rewritten(path, lambda n, c: c.replace(number, b"J" + struct.pack("<i", 2**31 - 1)) if "data.pkl" in n else c)
    refused(lambda: load(path))


def test_members_that_overlap(tmp_path):
    """A table of contents that names the same bytes many times says more than the file holds."""
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(100_000)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        record = next(member for member in archive.infolist() if member.filename.endswith("data/0"))
        for number in range(50):
            archive.filelist.append(record)
            archive.NameToInfo[f"{record.filename}{number}"] = record
        archive._didModify = True
    refused(lambda: load(path), "more than the file is long")


def safetensors_with(header, data=b"\0" * 64):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = {
    "overlapping": {"a": entry(), "b": entry(offsets=(8, 24))},
    "beyond the file": {"a": entry(shape=(10**9,), offsets=(0, 4 * 10**9))},
    "huge": {"a": entry(shape=(2**62,), offsets=(0, 2**64 - 1))},
    "backwards": {"a": entry(offsets=(16, 0))},
    "negative": {"a": entry(shape=(-4,))},
    "a hole": {"a": entry(), "b": entry(offsets=(32, 48))},
    "unknown type": {"a": entry(dtype="F31")},
    "a list": [],
    "no JSON": b"{" + b"x" * 30,
    "control characters": {"\x1b[2J\n": entry(shape=(5,))},
    "metadata no texts": {"__metadata__": {"maemm": 3}, "a": entry()},
    "nothing": {},
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_lie(tmp_path, case):
    (tmp_path / "x.safetensors").write_bytes(safetensors_with(HEADERS[case]))
    refused(lambda: load(tmp_path / "x.safetensors"))
    refused(lambda: maemm.convert(tmp_path / "x.safetensors", tmp_path / "out.safetensors"))
    assert not (tmp_path / "out.safetensors").exists()


def test_a_header_longer_than_the_file(tmp_path):
    for size in (2**63, 10**9, 99_999_999, 0, 1):
        (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", size) + b'{"a": 1}')
        refused(lambda: load(tmp_path / "x.safetensors"))


# ------------------------------------------------------------------------------------------ where weights lie
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"model_state": s},
        lambda s: {"net": s, "epoch": 3},
        lambda s: {"student": s},
        lambda s: {"anything": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        lambda s: {"checkpoint": {"state_dict": s}},
        lambda s: {"state_dict": {f"model.{key}": value for key, value in s.items()}},
        lambda s: {"state_dict": {f"backbone._orig_mod.{key}": value for key, value in s.items()}},
        lambda s: {f"module.model.encoder.{key}": value for key, value in s.items()},
        lambda s: {f"_orig_mod.module.{key}": value for key, value in s.items()},
        lambda s: {key.replace("blocks.0.", "blocks.0._orig_mod."): value for key, value in s.items()},
        lambda s: {key.replace("attn.", "_fsdp_wrapped_module.attn."): value for key, value in s.items()},
        lambda s: {key: torch.nn.Parameter(value) for key, value in s.items()},
    ],
)
def test_entries_and_prefixes(tmp_path, state, wrap):
    torch.save(wrap(state), tmp_path / "x.ckpt")
    assert same(load(tmp_path / "x.ckpt"), state)
    assert load(tmp_path / "x.ckpt", kind="mae").kind == "mae"


def test_several_sets_of_weights_are_said_and_chosen(tmp_path, state, capsys):
    other = {key: value + 1 for key, value in state.items()}
    torch.save({"student": other, "teacher": state}, tmp_path / "x.pth")
    assert same(load(tmp_path / "x.pth"), state)
    assert "teacher is used (checkpoint_key=NAME: student)" in capsys.readouterr().err
    assert same(load(tmp_path / "x.pth", checkpoint_key="student"), other) and not capsys.readouterr().err
    refused(lambda: load(tmp_path / "x.pth", checkpoint_key="studnt"), "did you mean 'student'")
    torch.save({"a": state, "b": {"c": other}}, tmp_path / "y.pth")
    refused(lambda: load(tmp_path / "y.pth"), "several entries", "checkpoint_key=a")
    assert same(load(tmp_path / "y.pth", checkpoint_key="b.c"), other)


def test_weights_that_are_there_twice(state):
    twice = {**state, "blocks.0._orig_mod.attn.qkv.weight": state["blocks.0.attn.qkv.weight"]}
    refused(lambda: load(twice), "twice")


def test_a_position_table_without_the_row_of_the_class_token(state):
    short = {**state, "pos_embed": state["pos_embed"][:, 1:]}
    refused(lambda: load(short), "none for the class token")
    odd = {**state, "pos_embed": torch.zeros(1, 8, 16)}
    refused(lambda: load(odd), "7 patches are no square", "size=[height, width]")
    empty = {**state, "pos_embed": torch.zeros(1, 0, 16)}
    refused(lambda: load(empty))


def test_a_stream_is_no_path(state):
    refused(lambda: load(io.BytesIO(save(state))), "a path or a state dict")
