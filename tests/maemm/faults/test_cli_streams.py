"""Streams that are closed, broken or of another encoding; JSON alone; matplotlib of others; scripts in workers."""

import importlib
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import maemm
from maemm.__main__ import main
from maemm.contract.errors import MaemmError
from maemm.data import main_guard, workers
from maemm.ui import streams
from maemm.ui.figures import drawing
from maemm.ui.progress import progress

ROOT = Path(maemm.__file__).parent
NOISY = """
import os
os.write(1, b"text of a C library\\n")
print("text of a plugin")
from maemm.registry import Plugin
plugin = Plugin(name="noisy", version="1", contract=2)
"""


def shell(text, folder, **environment):
    """Run ``maemm`` as a shell does; (exit status of the first command, stdout, stderr)."""
    text = text.replace("maemm", f"{sys.executable} -m maemm", 1)
    environment = {**os.environ, **environment}
    done = subprocess.run(
        ["bash", "-c", f"{text}; exit ${{PIPESTATUS[0]}}"], cwd=folder, capture_output=True, text=True, env=environment
    )
    return done.returncode, done.stdout, done.stderr


# ------------------------------------------------------------------------------------------------- broken streams
class Broken(io.TextIOBase):
    """A stream whose reader has left."""

    encoding = "utf-8"

    def __init__(self, error=None):
        self.error = error or BrokenPipeError(32, "Broken pipe")

    def write(self, text):
        raise self.error

    def flush(self):
        if self.error is not None:  # while the test lasts
            raise self.error

    def close(self):
        self.error = None

    def isatty(self):
        return False


@pytest.mark.parametrize("error", [BrokenPipeError(32, "x"), OSError(5, "gone"), ValueError("closed file")])
def test_a_run_does_not_depend_on_who_reads_its_lines(error, own_run, tmp_path, monkeypatch):
    monkeypatch.setattr("maemm.tasks.pretrain.report.save_pictures", lambda *_, **__: None)
    words = ["pretrain", str(own_run / "run"), str(own_run / "few.npz"), f"out={tmp_path / 'run'}", "train.log_every=1"]
    monkeypatch.setattr(sys, "stdout", Broken(error))
    monkeypatch.setattr(sys, "stderr", Broken(error))
    assert main(words) == 0
    assert (tmp_path / "run" / "checkpoints" / "step-000001").is_dir()


@pytest.mark.parametrize("gone", ["stdout", "stderr"])
def test_a_run_needs_no_stream(gone, own_run, tmp_path, monkeypatch):
    """As Python is without them (``>&-``, ``pythonw``), on the command line and from Python."""
    monkeypatch.setattr("maemm.tasks.pretrain.report.save_pictures", lambda *_, **__: None)
    monkeypatch.setattr(sys, gone, None)
    run, data = own_run / "run", str(own_run / "few.npz")
    assert main(["pretrain", str(run), data, f"out={tmp_path / 'a'}"]) == 0
    maemm.pretrain(run, **{"data.root": data, "out": str(tmp_path / "b")})
    with progress("here") as show:
        show(1, 2)
    streams.warn("nobody reads this")
    assert len(list(tmp_path.glob("?/checkpoints/*"))) == 2


def test_a_result_that_cannot_be_printed_is_said(monkeypatch, capsys):
    for error, status in ((BrokenPipeError(32, "x"), 141), (OSError(28, "No space left on device"), 2)):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Broken(error))
            assert main(["config", "ls"]) == status
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("maemm config ls | head -1", 0),
        ("maemm config ls >&-", 0),
        ("maemm config nothing 2>&-", 2),
        ("maemm config ls >/dev/full", 2),
        ("maemm config ls <&- >&- 2>&-", 0),
    ],
)
def test_streams_as_a_shell_closes_them(text, status, tmp_path):
    code, _, errors = shell(text, tmp_path)
    assert code in ((status, 141) if "head" in text else (status,))
    assert "Traceback" not in errors and "Exception ignored" not in errors and "internal" not in errors


def test_letters_that_the_encoding_does_not_have_are_escaped(monkeypatch, capsys, tmp_path):
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding="ascii"))
    with streams.guarded():
        print("a für b")
        streams.print_result("ä \udce9")
    assert data.getvalue() == b"a f\\xfcr b\n\\xe4 \\udce9\n"
    assert not sys.stdout.closed


# ------------------------------------------------------------------------------------------------------- JSON
def test_stdout_is_json_alone_whatever_libraries_print(tmp_path):
    (tmp_path / "noisy").mkdir()
    (tmp_path / "noisy" / "__init__.py").write_text(NOISY)
    code, out, errors = shell("maemm plugins --json --plugin noisy", tmp_path)
    assert code == 0 and "noisy" in {plugin["name"] for plugin in json.loads(out)}
    assert "text of a C library" in errors and "text of a plugin" in errors


@pytest.mark.parametrize(
    "words",
    [
        ["knn", "{run}", "{data}", "--folds", "2"],
        ["embed", "{run}", "{data}", "-o", "x.npz"],
        ["score", "{run}", "{data}", "-o", "x.csv"],
        ["data", "stats", "{data}", "--recipe", "{run}"],
        ["data", "check", "{data}", "-o", "x.csv"],
        ["convert", "{run}", "x.safetensors"],
        ["export", "{run}", "--to", "safetensors", "-o", "y.safetensors"],
        ["diagnose", "{run}", "{data}", "--samples", "16", "-o", "x.html"],
        ["pretrain", "{run}", "{data}", "out=again"],
        ["config", "show", "{run}"],
    ],
)
def test_every_verb_prints_one_value_of_json(words, own_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("maemm.tasks.pretrain.report.save_pictures", lambda *_, **__: None)
    monkeypatch.setattr("maemm.tasks.diagnose.page.draw_attention", lambda attention: b"")
    monkeypatch.setattr("maemm.tasks.diagnose.page.png", lambda *_: b"", raising=False)
    from maemm.data import arrays

    original = arrays.np.load
    monkeypatch.setattr(arrays.np, "load", lambda *args, **options: print("a warning") or original(*args, **options))
    words = [word.format(run=own_run / "run", data=own_run / "few.npz") for word in words]
    assert main([*words, "--json"]) == 0
    out = capsys.readouterr().out
    assert isinstance(json.loads(out), dict), out


def test_numbers_that_json_does_not_have_are_null(capsys):
    streams.print_json({"a": [float("nan"), 1.0, {"b": float("-inf")}], 3: None})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.0, {"b": None}], "3": None}


# ------------------------------------------------------------------------------------------------- matplotlib
IMPORT = """
import os, sys
from maemm.ui.figures import drawing
with drawing() as Figure:
    Figure().add_subplot().set_title("$x$ & y")
    assert sys.modules["matplotlib"].get_backend() == "agg"
    import io
    figure = Figure(figsize=(1, 1)); figure.text(0, 0, "50 % & more"); figure.savefig(io.BytesIO(), format="png")
print(os.environ.get("MPLBACKEND"))
"""


@pytest.mark.parametrize(
    ("backend", "settings"),
    [("module://not_installed_here.backend", None), (None, b"text.usetex: True\n"), ("nonsense", b"caf\xe9: 1\n")],
)
def test_the_settings_of_the_user_do_not_reach_pictures(backend, settings, tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MPL", "MATPLOTLIB"))}
    if backend:
        environment["MPLBACKEND"] = backend
    if settings:
        (tmp_path / "matplotlibrc").write_bytes(settings)
        environment["MATPLOTLIBRC"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.split() == [str(backend)], done.stderr


def test_the_settings_of_the_user_are_as_before(monkeypatch):
    import matplotlib

    with matplotlib.rc_context({"text.usetex": True, "lines.linewidth": 7.0}):
        before = dict(dict.items(matplotlib.rcParams))
        monkeypatch.setenv("MPLBACKEND", "svg")
        with pytest.raises(RuntimeError), drawing():
            assert not matplotlib.rcParams["text.usetex"] and matplotlib.rcParams["lines.linewidth"] == 1.5
            assert os.environ["MPLBACKEND"] == "Agg"
            raise RuntimeError
        assert dict(dict.items(matplotlib.rcParams)) == before and os.environ["MPLBACKEND"] == "svg"


def test_matplotlib_is_imported_in_one_place():
    text = re.compile(r"^\s*(import|from) matplotlib", re.MULTILINE)
    importing = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if text.search(path.read_text())]
    assert importing == ["ui/figures.py"]


# ------------------------------------------------------------------------------------------- scripts in workers
SCRIPT = """
import multiprocessing, sys
try:
    multiprocessing.set_start_method({method!r})
except RuntimeError:
    pass
import maemm
maemm.{call}
"""
CALLS = {
    "data_stats": "data_stats({data!r}, workers=1)",
    "embed": "embed({run!r}, {data!r}, 'x.npz', workers=1)",
    "pretrain": "pretrain({run!r}, **{{'data.root': {data!r}, 'out': 'new', 'data.workers': 1}})",
}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("call", CALLS)
def test_a_script_without_its_guard_is_told_so(method, call, own_run, tmp_path):
    call = CALLS[call].format(run=str(own_run / "run"), data=str(own_run / "few.npz"))
    (tmp_path / "script.py").write_text(SCRIPT.format(method=method, call=call))
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert "script.py" in last and 'if __name__ == "__main__":' in last and "data.workers=0" in last
    assert done.stderr.count("Traceback") == 1 and "in use by" not in done.stderr


class Left(Exception):
    pass


def test_a_worker_that_imports_the_script_ends_quietly(monkeypatch, tmp_path):
    def leave(status):
        raise Left(status)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(Left, match=str(main_guard.STATUS)):
        workers.Workers(None, [], 1, prefetch=1, timeout=1, name_of=str)
    from maemm.data.locks import one_writer

    with pytest.raises(Left), one_writer(tmp_path / "x"):
        pass


@pytest.mark.parametrize(("status", "text"), [(main_guard.STATUS, "workers run the script again"), (1, "died of exit")])
def test_the_death_of_such_a_worker_has_its_reason(status, text, monkeypatch):
    monkeypatch.setattr(main_guard, "imports_main", lambda: True)
    monkeypatch.setattr(main_guard, "unreadable_main", lambda: None)
    monkeypatch.setattr(workers, "_serve", lambda *_: os._exit(status))
    pool = workers.Workers(None, [1], 1, prefetch=1, timeout=20, name_of=str)
    try:
        with pytest.raises(MaemmError, match=f'{text}.*put the calls of the script under if __name__ == "__main__":'):
            pool.next()
    finally:
        pool.close()


def test_a_script_that_has_no_file_is_told_so(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
    monkeypatch.setattr(main_guard, "imports_main", lambda: True)
    with pytest.raises(MaemmError, match=r"\(<stdin>\); write it to a file"):
        workers.Workers(None, [], 1, prefetch=1, timeout=1, name_of=str)


# ------------------------------------------------------------------------------------------------ plugins of others
PARTS = '''
import json
from pathlib import Path

def open_sonar(root, list=None):
    """Pings."""
    return [json.loads(path.read_text()) for path in sorted(Path(root).glob("*.ping"))]

class Encoder:
    """An encoder."""
    def __init__(self, *, dim: int = 8):
        raise ZeroDivisionError("no depth")
'''


def test_a_broken_file_in_the_constructor_of_a_source_names_plugin_and_file(make_plugin, tmp_path):
    from maemm.data.open import open_source

    manifest = "from maemm.registry import Plugin\nplugin = Plugin(name='sonar', version='1', contract=2, "
    manifest += "sources={'sonar': 'parts:open_sonar'}, encoders={'sonar': 'parts:Encoder'})\n"
    make_plugin("sonar", **{"__init__.py": manifest, "parts.py": PARTS})
    (tmp_path / "a.ping").write_text("[1]")
    (tmp_path / "b.ping").write_text("[")
    recipe = {"data": {"root": str(tmp_path), "source": "sonar"}, "modalities": {"sonar": {}}}
    with pytest.raises(MaemmError, match=r"plugin 'sonar' \(open_sonar\) cannot open the data \(.*b\.ping: .*\); look"):
        open_source(recipe)
    from maemm.registry.make import make

    with pytest.raises(MaemmError, match=r"plugin 'sonar' \(Encoder\) cannot be made of these options: ZeroDivision"):
        make("encoders", "sonar", where="encoder")


@pytest.mark.parametrize(
    ("as_set", "changes"),
    [(False, {"size": 48}), (False, {"size": 20, "channels": 2}), (True, {"coords": 2, "features": 3})],
)
def test_samples_of_a_scaffold_follow_a_changed_size(as_set, changes, tmp_path, monkeypatch):
    from maemm.tasks.plugins.scaffold import new

    name = f"echo{abs(hash(str(changes)))}"
    folder = new(name, tmp_path, as_set=as_set)
    file = folder / f"maemm_{name}" / "modality.py"
    text = file.read_text()
    for option, value in changes.items():
        text, count = re.subn(rf"(\n        {option}: .*) = \d+,", rf"\1 = {value},", text)
        assert count == 1
    file.write_text(text)
    monkeypatch.syspath_prepend(folder)
    modality = getattr(importlib.import_module(f"maemm_{name}.modality"), name.capitalize())()
    importlib.import_module(f"maemm_{name}.samples").write(tmp_path / "data")
    paths = sorted((tmp_path / "data").rglob("*.npy"))
    assert len(paths) == 32
    for path in paths[::7]:
        assert modality.load(np.load(path), None)["x"].isfinite().all()
