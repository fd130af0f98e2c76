"""The command line: grammar, flags, exit statuses, and what each verb calls."""

from __future__ import annotations

import importlib
import json
import types
from pathlib import Path

import pytest

import maemm
from maemm import config
from maemm.__main__ import main
from maemm.contract.errors import MaemmError
from maemm.tasks import VERBS
from maemm.train.signals import Interrupted

RECIPE = """\
modalities: {m: {type: toy}}
encoder: {type: vit}
train: {epochs: 1}
"""
TOY = {
    "__init__.py": """
        from maemm.registry import Plugin
        plugin = Plugin(name="toy", version="1", contract=2, modalities={"toy": "parts:Toy"})
    """,
    "parts.py": "class Toy:\n    def __init__(self, *, size: int = 8): pass\n",
}


@pytest.fixture
def recipe(make_plugin, tmp_path, monkeypatch):
    make_plugin("toy", **TOY)
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)
    return "r.yaml"


@pytest.fixture
def calls(monkeypatch):
    """Stands in for what the verbs call, and notes it."""
    noted = []

    def stand_in(module: str, name: str, result):
        def function(*args, **options):
            noted.append((name, args, options))
            if isinstance(result, BaseException):
                raise result
            return result

        function.__kwdefaults__ = None
        monkeypatch.setattr(importlib.import_module(module), name, function)
        return noted

    return stand_in


def failed(capsys, *argv: str) -> str:
    assert main(list(argv)) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("maemm: error: ") and error.count("\n") == 1
    return error


def test_alone_prints_one_screen(capsys):
    assert main([]) == 0
    screen = capsys.readouterr().out
    assert main(["--help"]) == 0 and capsys.readouterr().out == screen
    assert len(screen.splitlines()) <= 32 and all(len(line) <= 100 for line in screen.splitlines())
    assert [line.split()[0] for line in screen.splitlines()[4 : 4 + len(VERBS)]] == list(VERBS)
    assert "Start with:  maemm demo" in screen


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: maemm {verb}" in text and "--plugin PATH" in text
    assert ("train.warmup_epochs" in text and "linear warmup" in text) == (verb == "pretrain")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"maemm {maemm.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pretain"], "unknown verb 'pretain'; did you mean 'pretrain'?"),
        (["--jsn"], "unknown flag '--jsn'"),
        (["pretrain"], "missing argument; usage: maemm pretrain RECIPE [DATA] [key=value ...]"),
        (["pretrain", "a", "b", "c"], "unexpected argument 'c'"),
        (["pretrain", "a", "b", "data.root=c"], "the data are given twice"),
        (["pretrain", "r.yaml", "--jso"], "unknown flag --jso; did you mean '--json'?"),
        (["pretrain", "--plugin"], "expected one argument"),
        (["convert", "a"], "missing argument"),
        (["convert", "a", "b", "--too", "c"], "unknown flag --too; did you mean '--to'?"),
        (["convert", "a", "b", "x.y=1"], "'x.y' means nothing here"),
        (["reconstruct", "a"], "missing argument"),
        (["plugins", "shw", "core"], "unknown action 'shw'; did you mean 'show'?"),
        (["plugins", "show"], "show needs a name; known: core"),
        (["plugins", "show", "vitt"], "unknown plugin or part 'vitt'; did you mean 'vit'?"),
        (["plugins", "a=1"], "plugins does not accept 'a=1'"),
        (["config"], "missing argument"),
        (["config", "lss"], "unknown action 'lss'; did you mean 'ls'?"),
        (["config", "ls", "x"], "ls needs no recipe"),
        (["config", "cat"], "cat needs a recipe"),
        (["config", "cat", "x", "a=1"], "cat does not accept 'a=1'"),
        (["demo", "x"], "unexpected argument 'x'"),
        (["demo", "outt=x"], "unknown key 'outt'; did you mean 'out'?"),
    ],
)
def test_mistakes_in_grammar(argv, message, capsys, recipe):
    assert message in failed(capsys, *argv)


def test_pretrain_hands_over_the_resolved_recipe(recipe, calls, capsys):
    noted = calls("maemm.tasks.pretrain.run", "train_recipe", Path("runs/x"))
    assert main(["pretrain", recipe, "1e3", "train.batch=8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": str(Path("runs/x"))}
    ((_, (given,), _),) = noted
    assert given["data"]["root"] == "1e3" and given["train"]["batch"] == 8 and given["out"] == "runs/r"
    assert maemm.pretrain(recipe, **{"data.root": "1e3", "train.batch": 8}) == Path("runs/x")
    assert noted[1][1][0] == given


def test_convert_hands_over_what_the_weights_do_not_tell(calls, capsys):
    noted = calls("maemm.tasks.convert.run", "convert", "a -> b")
    assert main(["convert", "a", "b", "norm_pix=true", "--to", "mae", "heads=3"]) == 0
    assert capsys.readouterr().out == "a -> b\n"
    assert noted == [("convert", ("a", "b"), {"kind": None, "to": "mae", "norm_pix": True, "heads": 3})]


def test_reconstruct_checks_numbers_and_passes_the_rest(capsys):
    from maemm.tasks.reconstruct import run as report

    asked = []

    def reconstruct(weights, data, out, *, count: int = 8, seed: int = 0, latents: bool = False, **settings):
        asked.append((weights, data, out, count, seed, settings))
        return types.SimpleNamespace(path=Path(out), shown=["a"], skipped=[], psnr=None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "reconstruct", reconstruct, raising=False)
        assert main(["reconstruct", "run", "data", "-o", "x.png", "count=2", "norm_pix=true", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"file": "x.png", "shown": ["a"], "skipped": 0, "bad_samples": []}
        assert asked == [("run", "data", "x.png", 2, 0, {"norm_pix": True})]
        assert "reconstruct.count must be int, got 'x'" in failed(capsys, "reconstruct", "run", "data", "count=x")


def test_demo_goes_to_the_folder_asked_for(calls, capsys):
    noted = calls("maemm.tasks.demo.run", "demo", Path("p.html"))
    assert main(["demo"]) == 0 and main(["demo", "out=here", "--json"]) == 0
    assert [one[1] for one in noted] == [(Path("runs/demo"),), (Path("here"),)]
    assert json.loads(capsys.readouterr().out) == {"page": "p.html"}


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (MaemmError("A (b); c\nD; e"), 2, "maemm: error: A (b); c\nmaemm: error: D; e\n"),
        (FileNotFoundError(2, "No such file", "x.bin"), 2, "maemm: error: No such file (x.bin); check the path"),
        (MemoryError(), 2, "maemm: error: out of memory"),
        (ValueError("odd\nthing"), 1, "maemm: error: internal: ValueError: odd thing (rerun with --traceback; please"),
        (KeyboardInterrupt(), 130, "maemm: stopped\n"),
        (Interrupted(15), 143, ""),
    ],
)
def test_errors_and_statuses(recipe, calls, capsys, error, status, text):
    calls("maemm.tasks.pretrain.run", "train_recipe", error)
    assert main(["pretrain", recipe]) == status
    shown = capsys.readouterr().err
    assert shown.startswith(text) and "Traceback" not in shown
    if isinstance(error, Exception):
        assert main(["pretrain", recipe, "--traceback"]) == status
        assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_config_ls_show_and_cat(recipe, capsys):
    assert main(["config", "ls", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == list(config.packaged())
    assert main(["config", "cat", recipe]) == 0
    assert capsys.readouterr().out == RECIPE
    assert main(["config", "show", recipe, "train.batch=4"]) == 0
    shown = capsys.readouterr().out
    rows = {line.split(":")[0].strip(): line for line in shown.splitlines()}
    assert rows["batch"].endswith("# override") and rows["epochs"].endswith("# r.yaml, line 3")
    assert rows["seed"].endswith("# default")
    # What is shown is itself a recipe.
    Path("again.yaml").write_text(shown)
    assert config.load("again.yaml") == config.load(recipe, ["train.batch=4"])
    assert main(["config", "show", recipe, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recipe"]["train"]["epochs"] == 1 and found["origins"]["train.epochs"] == "r.yaml, line 3"


@pytest.mark.parametrize(
    "verb", [["export", "x", "to=onnx"], ["convert", "x", "y", "to=mae"], ["reconstruct", "x", "y", "out=z.png"]]
)
def test_a_flag_that_is_written_as_a_word_is_named(verb, capsys):
    flags = ["--to", "onnx", "-o", "z.onnx"] if verb[0] == "export" else []
    assert main([*verb, *flags]) == 2
    key, _, value = verb[-1].partition("=")
    assert f"{key} is a flag (override {verb[-1]}); write --{key} {value}" in capsys.readouterr().err
