"""Discovery of plugins, and what happens when one is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from maemm import registry
from maemm.__main__ import main
from maemm.contract.errors import MaemmError
from maemm.registry import Plugin

MANIFEST = """
    from maemm.registry import Plugin
    plugin = Plugin(name="{name}", version="0.3", contract=2, summary="a toy", encoders={{"{part}": "parts:Part"}})
"""
PART = """
    class Part:
        '''A part that does nothing.

        Options
            size: how large it is
        '''
        def __init__(self, names, *, size: int = 3):
            self.size = size
"""


def toy(name: str = "toy", part: str = "toy_part", code: str = PART) -> dict[str, str]:
    return {"__init__.py": MANIFEST.format(name=name, part=part), "parts.py": code}


def names() -> list[str]:
    return [one.name for one in registry.all_plugins()]


def test_core_comes_first_and_folders_last(make_plugin):
    make_plugin("toy", **toy())
    assert names()[0] == "core" and names()[-1] == "toy"
    part = registry.find("encoders", "toy_part")
    assert part([], size=2).size == 2
    found, target = registry.owner_of("encoders", "toy_part")
    assert (found.name, target) == ("toy", "parts:Part")


def test_plugin_flag_takes_a_plugin_or_a_folder_of_plugins(make_plugin, capsys):
    one = make_plugin("one", add=False, **toy("one", "a"))
    make_plugin("two", add=False, **toy("two", "b"))
    make_plugin("_hidden", add=False, **toy("hidden", "c"))
    assert main(["plugins", "--plugin", str(one), "--json"]) == 0
    assert [found["name"] for found in json.loads(capsys.readouterr().out)][-1] == "one"
    assert "two" not in names()
    assert main(["--plugin", str(one.parent), "plugins"]) == 0  # "one" is the same folder: no second claim
    assert names()[-2:] == ["one", "two"]


@pytest.mark.parametrize("what", ["missing", "empty", "file.py"])
def test_plugin_flag_refuses_what_is_no_plugin(make_plugin, tmp_path, capsys, what):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.py").write_text("")
    assert main(["plugins", "--plugin", str(tmp_path / what)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("maemm: error: --plugin") and error.count("\n") == 1


def test_folder_plugins_reach_other_processes(make_plugin):
    folder = make_plugin("toy", add=False, **toy())
    code = "import maemm_plugins.toy.parts as p; print(p.Part([]).size)"
    env = {**os.environ, registry.VARIABLE: str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout == "3\n", done.stderr


BROKEN = {
    "raises": ("1 / 0", "ZeroDivisionError: division by zero"),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "syntax": ("def f(:", "SyntaxError"),
    "imports": ("import a_package_that_nobody_has", "a_package_that_nobody_has"),
    "no manifest": ("x = 1", "no manifest"),
    "other contract": (
        "from maemm import Plugin\nplugin = Plugin(name='toy', version='1', contract=99)",
        "made for contract 99, this maemm has 2",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_breaks_only_itself(make_plugin, capsys, kind):
    code, reason = BROKEN[kind]
    make_plugin("sound", **toy("sound", "sound_part"))
    make_plugin("toy", **{"__init__.py": code})
    assert registry.find("encoders", "sound_part")
    broken = next(one for one in registry.all_plugins() if one.name == "toy")
    assert broken.plugin is None and reason in broken.error
    assert main(["plugins"]) == 0
    assert reason in capsys.readouterr().out
    with pytest.raises(MaemmError, match="plugin .* is broken"):
        registry.find("modalities", "toy")
    with pytest.raises(MaemmError, match="broken plugins: toy; see maemm plugins"):
        registry.find("encoders", "toy_part")
    assert main(["plugins", "show", "toy"]) == 2
    assert reason in capsys.readouterr().err


def test_of_two_plugins_with_one_name_neither_can_be_used(make_plugin, capsys):
    first = make_plugin("toy", **toy())
    second = make_plugin("toy", above="elsewhere", **toy())
    make_plugin("sound", **toy("sound", "sound_part"))
    both = f"two plugins are called 'toy' (folder: {first} and folder: {second}); remove or rename one"
    assert main(["plugins"]) == 0 and both in capsys.readouterr().out
    assert registry.find("encoders", "sound_part") and "image" in names()
    assert main(["plugins", "show", "toy"]) == 2
    assert both in capsys.readouterr().err
    with pytest.raises(MaemmError, match="broken plugins: toy, toy; see maemm plugins"):
        registry.find("encoders", "toy_part")


def test_nothing_takes_the_place_of_the_core(make_plugin):
    make_plugin("core", **toy("core"))
    assert registry.get("core").plugin is registry.CORE and registry.find("encoders", "vit")
    assert "two plugins are called 'core' (maemm and folder" in registry.all_plugins()[-1].error


def test_a_part_claimed_twice_fails_when_it_is_used(make_plugin):
    make_plugin("one", **toy("one", "shared"))
    make_plugin("two", **toy("two", "shared"))
    assert {"one", "two"} <= set(names())
    with pytest.raises(MaemmError, match="encoder 'shared' is claimed by two plugins: one .* and two "):
        registry.find("encoders", "shared")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import a_package_that_nobody_has", "needs the package 'a_package_that_nobody_has'; run: pip install a_pack"),
        ("from . import nothing", "cannot be imported .*; fix the plugin"),
        ("import maemm.nothing", "cannot be imported .*; fix the plugin"),
        ("class Other: pass", "has no attribute 'Part'.*; fix the plugin"),
        ("raise OSError('no library')", "OSError: no library.*; fix the plugin"),
    ],
)
def test_a_part_that_cannot_be_imported_says_why(make_plugin, code, message):
    make_plugin("toy", **toy(code=code))
    with pytest.raises(MaemmError, match=message):
        registry.find("encoders", "toy_part")


def test_unknown_names_get_the_nearest():
    with pytest.raises(MaemmError, match=r"unknown encoder 'vitt'; did you mean 'vit'\?"):
        registry.find("encoders", "vitt")
    with pytest.raises(MaemmError, match=r"unknown role 'encoder'; did you mean 'encoders'\?"):
        registry.find("encoder", "vit")
    with pytest.raises(MaemmError, match=r"unknown plugin 'cor'; did you mean 'core'\?"):
        registry.get("cor")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a-b"}, "plain name"),
        ({"name": 3}, "plain name"),
        ({"contract": "1"}, "contract '1'"),
        ({"version": 1}, "version must be a text"),
        ({"encoders": ["vit"]}, "encoders must be a dict"),
        ({"encoders": {"vit": "module"}}, "encoders.vit is 'module'; write 'module:Name'"),
        ({"encoders": {"vit": print}}, "encoders.vit"),
        ({"encoders": {"v.t": "a:B"}}, "has the name 'v.t'"),
        ({"demo": 1}, "demo must be the name"),
    ],
)
def test_a_manifest_is_checked_when_it_is_made(fields, message):
    with pytest.raises(MaemmError, match=message):
        Plugin(**({"name": "toy", "version": "1", "contract": 2} | fields))


def test_installed_plugins_are_found_by_entry_point(tmp_path, monkeypatch):
    """A package with the entry point and a broken one, as pip would install them."""
    for name, code in (("good_toy", MANIFEST.format(name="good", part="p")), ("bad_toy", "raise ValueError('no')")):
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").write_text("\n".join(line.strip() for line in code.splitlines()))
        (package / "parts.py").write_text("class Part: pass")
        info = tmp_path / f"{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[maemm.plugins]\n{name.split('_')[0]} = {name}:plugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.clear_cache()
    try:
        found = {one.name: one for one in registry.all_plugins()}
        assert found["good"].origin == "installed: good_toy 1.5"
        assert registry.find("encoders", "p").__module__ == "good_toy.parts"
        assert "ValueError: no" in found["bad"].error
    finally:
        monkeypatch.undo()
        registry.clear_cache()


def test_show_lists_options_with_their_lines(make_plugin, capsys):
    make_plugin("toy", **toy())
    assert main(["plugins", "show", "toy"]) == 0
    text = capsys.readouterr().out
    assert "encoder toy_part  A part that does nothing." in text
    assert "size  int  [3]  how large it is" in text
    assert main(["plugins", "show", "toy_part", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown[0]["options"] == [{"name": "size", "type": "int", "default": "3", "doc": "how large it is"}]
