"""A throw-away plugin with one tiny recipe, whose parts need no torch; packages outside the repository, installed."""

from __future__ import annotations

import ast
import os
import shutil
import site
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maemm import registry

TOY = {
    "__init__.py": """
        from maemm.registry import Plugin
        plugin = Plugin(name="toy", version="1", contract=2, modalities={"toy": "parts:Toy", "other": "parts:Toy"},
                        sources={"toy": "parts:open_toy"}, targets={"hog": "parts:Toy"})
    """,
    "parts.py": """
        class Toy:
            def __init__(self, *, size: int = 8, patch: int | tuple[int, int] = 4): pass
        def open_toy(root, list, *, strict: bool = False): pass
    """,
    "configs/tiny.yaml": """
        # The smallest recipe.
        # A second line.
        modalities:
          toy: {size: 16, masking: {type: random, ratio: 0.5}}
        encoder: {type: vit, dim: 32, depth: 2, heads: 2}
        decoder: {type: full, dim: 16, depth: 1, heads: 2}
        train: {epochs: 3, warmup_epochs: 1, base_lr: 1e-3}
    """,
}


@pytest.fixture
def toy(make_plugin, tmp_path, monkeypatch) -> Path:
    """The plugin "toy" with the recipe "toy/tiny"; the current folder is empty but for the plugin."""
    monkeypatch.chdir(tmp_path)
    return make_plugin("toy", **TOY)


@pytest.fixture(scope="session")
def install(tmp_path_factory) -> Callable[[str], Path]:
    """``install("outside_events")``: ``pip install --target``, without a network, of a copy of that folder of tests."""

    def install(name: str) -> Path:
        home = tmp_path_factory.mktemp(name)
        package = Path(__file__).parents[1] / name  # copied, as building leaves files behind
        shutil.copytree(package, home / "package", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "-q"]
        env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}
        command = [*pip, "--target", str(home / "site"), str(home / "package")]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return home / "site"

    return install


@pytest.fixture
def use(tmp_path, monkeypatch) -> Iterator[Callable[[Path], None]]:
    """``use(site)``: what is installed there is found in this process, for one test, in an empty current folder."""
    before = set(sys.modules)

    def use(target: Path) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        site.addsitedir(str(target))
        registry.clear_cache()

    yield use
    monkeypatch.undo()
    for name in set(sys.modules) - before:
        if name.startswith(("maemm_weather", "maemm_events")):
            del sys.modules[name]
    registry.clear_cache()


@pytest.fixture(scope="session")
def code_lines() -> Callable[[str], int]:
    """Lines of code of a package in the folder of tests, without docstrings and blank lines."""

    def count(name: str) -> int:
        return sum(len(_code_lines(path.read_text())) for path in (Path(__file__).parents[1] / name).rglob("*.py"))

    return count


def _code_lines(text: str) -> set[int]:
    docs: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            docs |= set(range(body[0].lineno, body[0].end_lineno + 1))
    return {number for number, line in enumerate(text.splitlines(), 1) if line.strip()} - docs
