"""What the package promises as a whole: cheap imports, a core without modalities, names that load when used."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

import maemm
from maemm import contract, registry

CORE = Path(maemm.__file__).parent
SOURCES = sorted(CORE.rglob("*.py"))
MODALITIES = {"image", "video", "audio", "pointcloud", "signal"}


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=CORE.parent)


def test_listing_commands_import_no_torch():
    commands = [[], ["--help"], ["--version"], ["plugins"], ["config", "ls"], ["pretrain", "--help"], ["nonsense"]]
    code = f"""
import sys, maemm
assert "torch" not in sys.modules, "import maemm"
from maemm.__main__ import main
for argv in {commands!r}:
    status = main(argv)
    assert status == (2 if argv == ["nonsense"] else 0), (argv, status)
    assert "torch" not in sys.modules, argv
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "maemm demo" in done.stdout and "core" in done.stdout


def test_module_runs_as_a_process_and_a_closed_pipe_is_quiet():
    done = subprocess.run([sys.executable, "-m", "maemm", "pretain"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "maemm: error: unknown verb 'pretain'; did you mean 'pretrain'?\n"
    piped = subprocess.run(
        f"{sys.executable} -m maemm pretrain --help | true", shell=True, capture_output=True, text=True, timeout=60
    )
    assert piped.stderr == ""


def constants(tree: ast.Module) -> list[ast.Constant]:
    """All texts of a module but its docstrings."""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    first = [node.body[0] for node in ast.walk(tree) if isinstance(node, holders) and node.body]
    docs = {id(one.value) for one in first if isinstance(one, ast.Expr)}
    return [
        one
        for one in ast.walk(tree)
        if isinstance(one, ast.Constant) and isinstance(one.value, str) and id(one) not in docs
    ]


def named(text: str) -> set[str]:
    """Modalities that a text names: as a whole, as a dotted or slashed piece, or as a word; MIME types do not count."""
    text = re.sub(r"\bimage/(png|webp|svg\+xml|jpeg)\b", "", text)
    words = set(re.findall(r"[A-Za-z]+", text))
    # "signal" is also a plain word in messages.
    return words & (MODALITIES - {"signal"}) | ({"signal"} & {text})


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(CORE)))
def test_core_names_no_modality_and_imports_no_plugin(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {one.lineno: named(one.value) for one in constants(tree) if named(one.value)}
    assert not found, found
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not [one.name for one in node.names if one.name.split(".")[0] == "maemm_plugins"]
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] != "maemm_plugins"


def test_the_check_for_modality_names_can_fail():
    tree = ast.parse('"image in a docstring"\nx = "modalities.image.size"\ny = "data:image/png;base64"\nz = "signal"')
    assert [(one.value, named(one.value)) for one in constants(tree) if named(one.value)] == [
        ("modalities.image.size", {"image"}),
        ("signal", {"signal"}),
    ]


def test_public_names_load_when_used():
    for name in maemm.__all__:
        assert getattr(maemm, name) is not None
    assert set(maemm.__all__) <= set(dir(maemm))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        maemm.nonsense  # noqa: B018


def test_build_stays_a_function_when_its_module_is_imported():
    done = run_python(
        "import maemm.model.build, maemm.tasks.export, maemm; assert maemm.build.__name__ == 'build', maemm.build"
    )
    assert done.returncode == 0, done.stderr
    assert importlib.import_module("maemm.model.build").build is maemm.build


def test_versions_agree():
    assert registry.CORE.contract == contract.CONTRACT_VERSION
    assert metadata.version("maemm") == maemm.__version__


def test_plugins_and_recipes_are_packaged():
    assert (Path(str(resources.files("maemm"))) / "py.typed").is_file()
    assert list(Path(str(resources.files("maemm_configs"))).glob("*/*.yaml"))
    guard = run_python("import plugins")
    assert "import 'maemm_plugins', not 'plugins'; run: pip install -e ." in guard.stderr


def test_every_core_part_loads():
    for role, name, _ in registry.CORE.parts():
        assert registry.find(role, name).__doc__, (role, name)
