"""``maemm data pack``: each file whole or not at all, resumed after any end, what failed is named."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from maemm import registry
from maemm.__main__ import main
from maemm.contract.errors import MaemmError
from maemm.data.pack import Packer, pack

fcntl = pytest.importorskip("fcntl")


class Doubled(Packer):
    """Text files become ``.new`` of their text twice, or folders of letters."""

    extensions = (".txt",)

    def __init__(self, *, folders: bool = False, pause: float = 0.0, error: type = ValueError):
        self.folders, self.pause, self.error = folders, pause, error

    def about(self):
        return {"folders": self.folders}

    def place(self, path):
        return path.rpartition(".")[0] + ("" if self.folders else ".out")

    def write(self, path, new):
        text = path.read_text()
        if self.folders:
            new.mkdir()
            new = new / "letters"
        new.write_text(text)  # half of it
        time.sleep(self.pause)
        if text == "bad":
            raise self.error("is bad")
        if text == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        new.write_text(2 * text)


@pytest.fixture
def home(tmp_path):
    for number in range(6):
        path = tmp_path / "raw" / "ab"[number % 2] / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text {number}")
    (tmp_path / "raw" / "a" / "4.txt").write_text("bad")
    return tmp_path


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != ".pack.json")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("folders", [False, True])
def test_what_is_bad_is_named_and_the_rest_is_whole(home, workers, folders):
    seen = []
    done = pack(home / "raw", home / "out", Doubled(folders=folders), workers=workers,
                on_progress=lambda n, total: seen.append((n, total)))  # fmt: skip
    assert (done.written, done.there, [(b.id, b.reason) for b in done.bad]) == (
        5,
        0,
        [("a/4.txt", "ValueError: is bad")],
    )
    assert seen == [(n, 6) for n in range(1, 7)]
    tail = "/letters" if folders else ".out"
    assert files(home / "out") == sorted(
        ["bad_samples.jsonl", *(f"{p}{tail}" for p in ("a/0", "a/2", "b/1", "b/3", "b/5"))]
    )
    assert (home / "out" / f"b/3{tail}").read_text() == "text 3text 3"
    assert json.loads((home / "out" / "bad_samples.jsonl").read_text())["id"] == "a/4.txt"
    (home / "raw" / "a" / "4.txt").write_text("fixed")
    again = pack(home / "raw", home / "out", Doubled(folders=folders), workers=workers)
    assert (again.written, again.there, again.bad) == (1, 5, []) and not (home / "out" / "bad_samples.jsonl").exists()


def test_a_file_that_kills_its_worker_is_one_bad_file(home):
    (home / "raw" / "b" / "3.txt").write_text("deadly")
    done = pack(home / "raw", home / "out", Doubled(), workers=2)
    assert done.written == 4 and {b.id: b.reason for b in done.bad}["b/3.txt"] == "killed its reader (SIGKILL)"
    assert not [name for name in files(home / "out") if ".new" in name]


def test_one_file_and_equal_names(home):
    done = pack(home / "raw" / "b" / "1.txt", home / "one", Doubled())
    assert done.written == 1 and files(home / "one") == ["1.out"]
    (home / "raw" / "b" / "1.x.txt").write_text("x")
    (home / "raw" / "b" / "1.TXT").write_text("the same name")
    done = pack(home / "raw", home / "out", Doubled())
    assert {b.id for b in done.bad} == {"a/4.txt", "b/1.txt"}
    assert "that of b/1.TXT" in next(b.reason for b in done.bad if b.id == "b/1.txt")


SLOW = """
import sys; sys.path.insert(0, {tests!r})
from test_pack import Doubled; from maemm.data.pack import pack
pack({raw!r}, {out!r}, Doubled(folders={folders}, pause=0.15), workers={workers})
"""


@pytest.mark.parametrize(
    ("workers", "folders", "end"), [(0, False, "SIGKILL"), (2, True, "SIGKILL"), (2, False, "SIGINT")]
)
def test_killed_and_resumed(home, workers, folders, end):
    raw, out, tests = (str(p) for p in (home / "raw", home / "out", os.path.dirname(__file__)))
    code = SLOW.format(tests=tests, raw=raw, out=out, folders=folders, workers=workers)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    whole = "*/letters" if folders else "*.out"
    until = time.monotonic() + 60
    while not [p for p in (home / "out").rglob(whole) if not p.parent.name.endswith(".new")]:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(getattr(signal, end))
    process.wait(timeout=30)
    left = [p for p in (home / "out").rglob("*") if p.is_file()]
    for path in left:  # what is not hidden is whole
        if path.name not in (".pack.json", "bad_samples.jsonl") and ".new" not in str(path):
            text = path.read_text()
            assert text[: len(text) // 2] == text[len(text) // 2 :]
    if end == "SIGINT":
        assert not [p for p in left if ".new" in str(p)]
    done = pack(raw, out, Doubled(folders=folders))
    assert done.there >= 1 and done.written + done.there == 5 and len(done.bad) == 1
    assert not [p for p in (home / "out").rglob("*") if ".new" in p.name]


def test_folders_of_other_things_are_refused(home):
    pack(home / "raw", home / "out", Doubled())
    with pytest.raises(MaemmError, match=r"other settings \(folders: False -> True\)"):
        pack(home / "raw", home / "out", Doubled(folders=True))
    with pytest.raises(MaemmError, match=r"other settings \(source: "):
        pack(home / "raw" / "b", home / "out", Doubled())
    with pytest.raises(MaemmError, match="holds other files"):
        pack(home / "raw", home, Doubled())
    with pytest.raises(MaemmError, match="among those to pack"):
        pack(home / "raw", home / "raw" / "out", Doubled())
    with pytest.raises(MaemmError, match="does not exist"):
        pack(home / "nothing", home / "x", Doubled())
    (home / "empty").mkdir()
    with pytest.raises(MaemmError, match=r"ends in \.txt"):
        pack(home / "empty", home / "x", Doubled())
    with pytest.raises(MaemmError, match="cannot write to"):
        pack(home / "raw" / "b", home / "raw" / "a" / "0.txt" / "x", Doubled())


def test_one_process_at_a_time(home, monkeypatch):
    from maemm.data import pack_folder as pack_home

    monkeypatch.setattr(pack_home, "_WAIT_S", 0.3)
    pack(home / "raw", home / "out", Doubled())
    with (home / "out" / ".pack.json").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(MaemmError, match="another process packs"):
            pack(home / "raw", home / "out", Doubled())


@pytest.mark.parametrize("workers", [0, 2])
def test_troubles_of_ours_stop_the_run(home, workers):
    with pytest.raises(MaemmError, match="cannot be read here"):
        pack(home / "raw", home / "out", Doubled(error=ImportError), workers=workers)
    with pytest.raises(MaemmError, match="make room"):
        pack(home / "raw", home / "out", Doubled(error=_full), workers=workers)


def _full(_):
    return OSError(28, "No space left on device")


# ------------------------------------------------------------------------------------------- the command line
@pytest.fixture
def known(monkeypatch):
    """The packer as a part of a plugin for text files."""
    here = registry.Plugin(
        name="texts", version="1", contract=2, packs={"doubled": "x:Doubled"}, files={"texts/r": ".txt"}
    )
    found = [registry.DiscoveredPlugin("texts", "texts", "here", here)]
    monkeypatch.setattr(registry, "all_plugins", lambda: found)
    monkeypatch.setattr(registry, "find", lambda role, name: Doubled)


def test_the_verb(home, known, capsys):
    raw, out = str(home / "raw"), str(home / "out")
    assert main(["data", "pack", raw, out, "--workers", "0"]) == 3
    told = capsys.readouterr()
    assert told.out.strip() == f"5 files packed, 1 unreadable (list: {out}/bad_samples.jsonl) -> {out}"
    assert told.err.strip() == "unreadable: a/4.txt: ValueError: is bad"
    (home / "raw" / "a" / "4.txt").write_text("fixed")
    assert main(["data", "pack", raw, out, "--workers", "0", "--as", "doubled", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": out, "written": 1, "there": 5, "unreadable": {}}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "missing argument; usage: maemm data pack DATA OUT"),
        (["{raw}", "{out}", "folder=true"], "pack.folder"),
        (["{raw}", "{out}", "pause=fast"], "pack.pause"),
        (["{raw}", "{out}", "--recipe", "x"], "pack has no recipe"),
        (["{raw}/nothing", "{out}"], "cannot be opened"),
        (["{out}", "{out}2"], "no recipe is known"),
    ],
)
def test_mistakes_are_one_line(home, known, capsys, words, text):
    (home / "out").mkdir()
    (home / "out" / "x.dat").write_text("x")
    words = [word.format(raw=home / "raw", out=home / "out") for word in words]
    assert main(["data", "pack", *words]) == 2
    told = capsys.readouterr().err
    assert text in told and told.count("\n") == 1 and "Traceback" not in told


def test_help_tells_of_it(capsys):
    assert main(["data", "--help"]) == 0
    told = capsys.readouterr().out
    assert "pack DATA OUT" in told and "exit status" in told and "--as NAME" in told
