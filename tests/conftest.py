"""What all tests share: a pretended GPU where there is none, and plugins that live for one test."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

os.environ.setdefault("MPLBACKEND", "agg")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` run on a pretended GPU where there is none; those marked ``gpu(real=True)`` are skipped."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:  # torch is only asked when there are such tests
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            if item.get_closest_marker("gpu").kwargs.get("real"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    if not item.get_closest_marker("gpu"):
        return (yield)
    import torch

    if torch.cuda.is_available():
        return (yield)
    from tests.pretended_gpu.device import gpu

    with gpu():
        return (yield)


@pytest.fixture(autouse=True)
def plugin_path() -> Iterator[None]:
    """``--plugin`` reaches worker processes through the environment: it must not reach the next test."""
    before = os.environ.get("MAEMM_PLUGIN_PATH")
    yield
    if os.environ.get("MAEMM_PLUGIN_PATH") != before:
        from maemm import registry

        os.environ.pop(registry.VARIABLE, None)
        if before is not None:
            os.environ[registry.VARIABLE] = before
        registry.clear_cache()


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plugin in tests/toy_plugin is found."""
    from maemm import registry

    monkeypatch.setenv(registry.VARIABLE, str(Path(__file__).parent / "toy_plugin"))
    registry.clear_cache()
    yield
    registry.clear_cache()


@pytest.fixture
def make_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """``make_plugin("toy", **{"__init__.py": text, ...})`` writes a plugin folder and adds it, for one test."""
    import maemm_plugins
    from maemm import registry

    monkeypatch.setenv(registry.VARIABLE, os.environ.get(registry.VARIABLE, ""))
    monkeypatch.setattr(maemm_plugins, "__path__", list(maemm_plugins.__path__))
    before = set(sys.modules)
    registry.clear_cache()

    def make(name: str, add: bool = True, above: str = "plugins", **files: str) -> Path:
        folder = tmp_path / above / name
        for file, text in files.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text))
        if add:
            registry.add_path(folder)
            registry.clear_cache()
        return folder

    yield make
    for name in set(sys.modules) - before:
        if name.startswith("maemm_plugins."):
            monkeypatch.delattr(maemm_plugins, name.split(".")[1], raising=False)
            del sys.modules[name]
    monkeypatch.undo()
    registry.clear_cache()
