"""Words of the command line: what is an option of the verb, a key of a recipe, a setting of weights, or nothing."""

import importlib
import json
import pkgutil

import pytest

import maemm
from maemm.__main__ import main
from maemm.contract.errors import MaemmError
from maemm.tasks import VERBS


def refused(capsys, *argv):
    """The one line on stderr of a command that is refused."""
    status = main(list(argv))
    out, errors = capsys.readouterr()
    assert status == 2 and not out and "internal" not in errors
    (line,) = errors.splitlines()
    return line.removeprefix("maemm: error: ")


COLLISIONS = {
    "reconstruct": (["run", "data"], ["data=x", "weights=3", "model=1", "out=p.png"]),
    "export": (["run", "--to", "torch", "-o", "z.pt2"], ["what=3", "weights=x", "to=onnx", "model=1", "origin=2"]),
    "convert": (["run", "z.safetensors"], ["out=3", "source=x", "to=timm"]),
    "embed": (
        ["run", "data", "-o", "z.npz"],
        ["weights=x", "out=3", "on_progress=1", "layers=1", "batch=2", "model=4"],
    ),
    "score": (["run", "data", "-o", "z.csv"], ["weights=x", "plans=2", "scores=1", "on_progress=3"]),
    "diagnose": (["run", "data"], ["weights=x", "ratios=0.5", "baseline=false", "path=3"]),
    "retrieve": (["run", "data"], ["weights=x", "pair=a", "show=1"]),
    "evaluate": (["run", "data"], ["weights=x", "compare=true", "overrides=3", "out=x.json"]),
    "knn": (["run", "data"], ["k=3", "verb=probe", "protocols=linear", "show=1"]),
    "probe": (["run", "data"], ["test=x", "options=1", "verb=knn", "embedding=3"]),
    "finetune": (["run", "data"], ["data=x", "weights=3", "echo=1", "test=x", "seeds=2", "test_options=1"]),
    "pretrain": (["image/mae_tiny_cpu", "data"], ["data=x", "train=3", "recipe=1", "echo=x"]),
    "parity": (["image/mae_tiny_cpu", "data"], ["steps=3", "recipe=x", "change=x", "on_progress=1", "overrides=1"]),
    "estimate": (["image/mae_tiny_cpu"], ["gpus=8", "data=9", "gpu=x", "efficiency=1", "sample_bytes=2", "recipe=x"]),
    "ablate": (["image/mae_tiny_cpu", "--set", "patch=4,8"], ["sets=1", "jobs=2", "recipe=x", "say=1", "study=3"]),
    "runs": (["best"], ["by=x", "folder=3", "highest=1"]),
    "show": (["data"], ["out=x.html", "count=3", "recipe=x"]),
    "demo": ([], ["overrides=1", "say=x"]),
    "config": (["ls"], ["recipe=x"]),
    "plugins": (["list"], ["axes=3", "name=x"]),
}


@pytest.mark.parametrize(("verb", "word"), [(verb, word) for verb, (_, words) in COLLISIONS.items() for word in words])
def test_words_that_are_names_of_parameters_are_refused(verb, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, verb, *COLLISIONS[verb][0], word)
    assert word.partition("=")[0] in line and ";" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("action", ["check", "stats", "pack"])
def test_flags_as_words_of_data_are_refused(action, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = ["packed"] if action == "pack" else []
    assert refused(capsys, "data", action, "data", *out, "workers=3") == (
        "workers is a flag (override workers=3); write --workers 3"
    )
    assert "write --as 3" in refused(capsys, "data", action, "data", *out, "as=3")


@pytest.mark.parametrize("word", ["workers=x", "data.workers=x", "data.workers=-1", "data.list=3", "source=[1]"])
@pytest.mark.parametrize("verb", ["embed", "knn", "score", "diagnose", "retrieve", "evaluate"])
def test_values_of_data_have_types_and_bounds(verb, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, verb, *COLLISIONS[verb][0], word)
    assert line.startswith(f"data.{word.partition('=')[0].removeprefix('data.')} must be")


def test_flags_that_were_not_given_are_not_named(capsys):
    assert "--balanced" not in refused(capsys, "finetune", "run", "d", "--shots", "1", "--scratch", "--test", "d")
    assert "--scratch" not in refused(capsys, "finetune", "run", "d", "--shots", "1", "--balanced", "--test", "d")


def test_list_is_ls(capsys):
    for verb in ("plugins", "config"):
        assert main([verb, "list"]) == 0
        listed = capsys.readouterr().out
        assert main([verb, "ls"]) == 0
        assert capsys.readouterr().out == listed != ""


@pytest.mark.parametrize("verb", ["embed", "knn", "score", "diagnose", "evaluate", "reconstruct", "convert", "export"])
def test_an_unknown_kind_is_refused_for_own_runs_too(verb, own_run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = {"convert": ["z.safetensors"], "export": ["--to", "torch", "-o", "z.pt2"]}.get(
        verb, [str(own_run / "few.npz")]
    )
    out = {"embed": ["-o", "z.npz"], "score": ["-o", "z.csv"]}.get(verb, [])
    assert "ANYTHING" in refused(capsys, verb, str(own_run / "run"), *words, *out, "--kind", "ANYTHING")


NOT_UTF8 = "caf\udce9"


@pytest.mark.parametrize(
    "argv",
    [
        ["pretrain", "image/mae_tiny_cpu", NOT_UTF8],
        ["pretrain", "image/mae_tiny_cpu", "few", f"out={NOT_UTF8}"],
        ["embed", "run", "few", "-o", f"{NOT_UTF8}/x.npz"],
        ["embed", "run", f"data.list={NOT_UTF8}", "-o", "x.npz"],
        ["data", "check", NOT_UTF8],
        ["plugins", "check", NOT_UTF8],
        ["--plugin", NOT_UTF8, "plugins"],
    ],
)
def test_names_that_are_no_utf8_are_one_clear_sentence(argv, capsys):
    assert refused(capsys, *argv).startswith("the name ") and r"caf\xe9" in refused(capsys, *argv)


def test_names_that_are_no_utf8_from_python():
    with pytest.raises(MaemmError, match=r"caf\\xe9 is not UTF-8 \(data.root\)"):
        maemm.pretrain("image/mae_tiny_cpu", **{"data.root": NOT_UTF8})
    with pytest.raises(MaemmError, match="is not UTF-8"):
        maemm.config.load({"modalities": {"image": {}}, "encoder": "vit", "out": NOT_UTF8})


def test_a_page_about_a_folder_that_is_no_utf8_is_written(tmp_path):
    from maemm.ui.page import write_html

    assert NOT_UTF8.encode("utf-8", "backslashreplace") in write_html(tmp_path / "p.html", NOT_UTF8).read_bytes()


def test_every_module_can_be_imported_under_another_name():
    names = [module.name for module in pkgutil.walk_packages(maemm.tasks.__path__, "maemm.tasks.")]
    names += [f"maemm.tasks.{verb}" for verb in VERBS]
    for name in names:
        if "templates" not in name:
            space = {}
            exec(f"import {name} as module", space)
            assert space["module"] is importlib.import_module(name)


def test_json_of_lists_is_whole(capsys):
    assert main(["config", "list", "--json"]) == 0
    assert {"name", "summary"} == set(json.loads(capsys.readouterr().out)[0])
