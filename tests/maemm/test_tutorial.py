"""docs/plugins.md and docs/sets.md are run from top to bottom; docs/contract.md is what the docstrings say."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from maemm import contract, registry
from maemm.__main__ import main

DOCS = Path(__file__).parents[2] / "docs"
spec = importlib.util.spec_from_file_location("make_contract_page", DOCS / "make_contract_page.py")
contract_page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(contract_page)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEAVY = ("manifest_is_light", "another_process_reads_the_same", "one_batch_is_learned", "pictures_are_written")


def blocks(page: str = "plugins.md") -> list[tuple[str, str]]:
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


class Reader:
    """Does what the tutorial says, in the current folder. ``pip`` installs into an environment of the test's own."""

    def __init__(self, home: Path):
        self.home, self.said, self.commands, self.written = home, {}, 0, 0

    def follow(self, kind: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
        if kind == "bash":
            for line in text.splitlines():
                self.commands += 1
                self.command(line)
                self.said[line] = capsys.readouterr().out
        elif text.startswith("# file: "):
            path, _, rest = text.removeprefix("# file: ").partition("\n")
            self.written += len(rest.splitlines())
            Path(path).write_text(rest, encoding="utf-8")
            forget()
        elif kind == "python":
            exec(compile(text, "docs", "exec"), {})
        else:
            assert kind == "text"

    def command(self, line: str) -> None:
        words = shlex.split(line)
        if words[0] == "pip":
            return self.pip(words[1:])
        assert words[0] == "maemm"
        assert main(words[1:]) == 0, line

    def pip(self, words: list[str]) -> None:
        venv.create(self.home, with_pip=False)
        (folder,) = self.home.glob("lib/python*/site-packages")
        (folder / "parent.pth").write_text("".join(f"{one}\n" for one in sys.path if one.endswith("site-packages")))
        pip = [sys.executable, "-m", "pip", "--python", str(self.home / "bin" / "python")]
        offline = ["--no-deps", "--no-build-isolation", "-q"]
        env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}
        done = subprocess.run([*pip, *words, *offline], capture_output=True, text=True, env=env, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        site.addsitedir(str(folder))
        registry.clear_cache()


def forget() -> None:
    """A new start of Python would read the package's files again."""
    for name in [one for one in sys.modules if one.split(".")[0] in ("maemm_sonar", "maemm_lightning")]:
        del sys.modules[name]
    registry.clear_cache()


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A reader in an empty folder; what it does to this process is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    hooks = list(sys.meta_path)
    yield Reader(tmp_path / "env")
    sys.meta_path[:] = hooks
    monkeypatch.undo()
    forget()


@pytest.fixture
def brief(monkeypatch):
    """Without the checks that take seconds: ``check`` as a whole is run in other tests."""
    from maemm.testing.checks import CHECKS

    for name in HEAVY:
        monkeypatch.delitem(CHECKS, name)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_tutorial_works(reader, brief, capsys):
    for kind, text in blocks():
        reader.follow(kind, text, capsys)
    assert reader.commands == 18 and reader.written < 130
    checks = [text for line, text in reader.said.items() if line == "maemm plugins check sonar"]
    assert checks and all(" 0 failed" in text for text in checks)
    assert Path("pings.html").is_file() and Path("pings.png").is_file() and Path("features.npz").is_file()
    assert "resuming from step 18" in reader.said["maemm pretrain sonar/tiny pings train.epochs=10 out=runs/sonar"]
    rows = [json.loads(line) for line in Path("runs/sonar/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 30 and rows[-1]["loss"] < rows[0]["loss"]
    assert Path("runs/sonar/report.html").is_file()
    assert "columns" in Path("runs/columns/recipe.yaml").read_text()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_tutorial_of_sets_works(reader, brief, capsys):
    for kind, text in blocks("sets.md"):
        reader.follow(kind, text, capsys)
    assert " 0 failed" in reader.said["maemm plugins check lightning"]
    rows = [json.loads(line) for line in Path("runs/storms/metrics.jsonl").read_text().splitlines()]
    assert set(rows[0]["terms"]) == {"reconstruct.lightning", "size.lightning"}
    last = rows[-1]
    assert last["terms"]["reconstruct.lightning"] < last["baselines"]["lightning"]
    rows = [json.loads(line) for line in Path("runs/both/metrics.jsonl").read_text().splitlines()]
    assert set(rows[0]["terms"]) == {"reconstruct.lightning", "reconstruct.signal"}
    assert not Path("runs/both/bad_samples.jsonl").exists()


def test_the_tutorial_says_what_it_runs():
    kinds = [kind for kind, _ in blocks()]
    assert set(kinds) == {"bash", "python", "yaml", "text"} and len(kinds) == 18
    lines = [line for kind, text in blocks() if kind == "bash" for line in text.splitlines()]
    verbs = {line.split()[1] for line in lines if line.startswith("maemm")}
    assert verbs >= {"plugins", "data", "show", "pretrain", "reconstruct", "knn", "probe", "embed", "convert", "config"}


def test_the_contract_page_is_up_to_date():
    found = (DOCS / "contract.md").read_text(encoding="utf-8")
    assert found == contract_page.page(), f"docs/contract.md is old; run: {contract_page.COMMAND}"


def test_every_method_of_the_contract_is_described_with_shapes():
    """Each has a docstring, and whatever gives tensors tells their shapes."""
    shape = re.compile(r"\((\.\.\., )?[A-Z]\w*(,| or |\))|scalar")
    told = 0
    for name in (*contract_page.PARTS, *contract_page.DATA):
        for method, one in contract_page.methods_of(getattr(contract, name)):
            function = contract_page.function_of(one)
            assert function.__doc__, f"{name}.{method} has no docstring"
            gives = str(function.__annotations__.get("return"))
            if (name, method) not in SAME and re.search("Tensor|Tokens|Preprocessed|Plan|Latents", gives):
                told += 1
                assert shape.search(function.__doc__), f"{name}.{method} tells no shape: {function.__doc__}"
    assert told > 25


SAME = {
    ("Plan", "to"),
    ("Plan", "check"),
    ("CheckpointFormat", "read"),
    ("CheckpointFormat", "write"),
}  # of what they are given


def test_the_page_shows_everything():
    page = contract_page.page()
    for name in (*contract_page.PARTS, *contract_page.DATA, "Rng", "GridModality"):
        assert f"### {name}" in page
    assert "- `embed(tokens: Tokens, index: Tensor) -> Tensor` **must**" in page and "``" not in page.replace("```", "")
    assert page.count("```") % 2 == 0 and "| `x` | `Tensor` | (B, ...) float |" in page
