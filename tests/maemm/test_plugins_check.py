"""``maemm plugins check``: by name or by folder, a table or JSON, and what each failure says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from maemm.__main__ import main
from maemm.tasks.plugins import check as plugins_check

MANIFEST = """
    from maemm.registry import Plugin
    plugin = Plugin(name="dots", version="2", contract=2, summary="dots", maskings={"half": "parts:Half"})
"""
PARTS = """
    from maemm.model.masking.random import Random

    class Half(Random):
        '''Hide a part.

        Options
            ratio: share of the tokens that is hidden
            mask_block: sides of blocks
            count: how the ratio becomes a number
        '''
        DRAW
"""
BROKEN = """
        def plan(self, name, tokens, rng):
            import torch
            torch.rand(1)
            return super().plan(name, tokens, rng)
"""
FAST = ("plan_is_legal", "randomness_is_counter_based", "part_can_be_imported")


@pytest.fixture
def few(monkeypatch):
    """Only a few of the checks, since all of them are run elsewhere."""
    from maemm.testing.checks import CHECKS

    for name in [name for name in CHECKS if name not in FAST]:
        monkeypatch.delitem(CHECKS, name)


def dots(code: str = "") -> dict[str, str]:
    return {"__init__.py": MANIFEST, "parts.py": PARTS.replace("        DRAW\n", code)}


def test_a_sound_plugin_by_its_folder(few, make_plugin, capsys):
    folder = make_plugin("dots", add=False, **dots())
    assert main(["plugins", "check", str(folder)]) == 0
    text = capsys.readouterr().out
    assert text == f"dots 2 (folder: {folder}): 3 checks\n\nmasking 'half'  3 passed\n\n3 checks: 3 passed, 0 failed\n"
    assert main(["plugins", "check", str(folder), "--all"]) == 0  # a row for every check
    assert re.search(r"^  part_can_be_imported +passed$", capsys.readouterr().out, re.M)
    # Now that it is known, its name will do, and so will the folder of its project.
    assert main(["plugins", "check", "dots"]) == 0
    assert main(["plugins", "check", str(folder.parent)]) == 0


def test_failures_say_the_rule_and_what_to_change(few, make_plugin, capsys):
    make_plugin("dots", **dots(BROKEN))
    assert main(["plugins", "check", "dots"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "randomness_is_counter_based FAILED rule: Examples, tokens, plans and evaluation leave the global random"
        in text
    )
    assert "found: no global random numbers: received torch used, expected none" in text
    assert "change: use the rng argument, or maemm.contract.rng.seeded around other libraries' random code" in text
    assert "masking 'half' 2 passed, 1 failed" in text and text.endswith("3 checks: 2 passed, 1 failed")
    assert main(["plugins", "check", "dots", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["plugin"], found["failed"], len(found["checks"])) == ("dots", 1, 3)
    (failed,) = (one for one in found["checks"] if not one["passed"])
    assert failed["check"] == "randomness_is_counter_based" and failed["change"].startswith("use the rng")
    assert failed["outcome"] == "failed" and failed["message"].startswith("plugin 'dots', masking 'half': no global")


WIDTH = """
    from maemm.registry import Plugin
    plugin = Plugin(name="dots", version="2", contract=2, summary="dots", modalities={"dots": "parts:Dots"},
                    maskings={"half": "parts:Half"})
"""
WRONG = """
    from maemm.model.masking.random import Random
    from maemm.contract.grid import GridModality

    class Dots(GridModality):
        def __init__(self):
            super().__init__(size=8, patch=4)

        def output_dim(self):
            return super().output_dim() + 1

    class Half(Random):
        pass
"""


def test_a_wrong_width_is_a_single_failure_and_skips_what_depends_on_it(make_plugin, monkeypatch, capsys):
    """In the modality and in parts that are checked on it."""
    make_plugin("dots", **{"__init__.py": WIDTH, "parts.py": WRONG})
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["plugins", "check", "dots"]) == 1
    text = capsys.readouterr().out
    assert text.count("FAILED") == 1 and "  target_fits_the_output  FAILED\n" in text
    skipped = int(re.search(r"^      (\d+) checks that depend on it: skipped$", text, re.M).group(1))
    assert skipped > 25 and text.endswith(f"1 failed, {skipped} skipped, {text.split()[-3]} not applicable\n")
    assert "masking 'half'" in text and max(map(len, text.splitlines()[1:])) <= 80 and text.count("\n") < 20
    assert main(["plugins", "check", "dots", "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    rows = [row for row in record["checks"] if row["outcome"] == "skipped"]
    assert record["failed"] == 1 and len(rows) == skipped and not any(row["passed"] for row in rows)
    assert {row["skipped_for"] for row in rows} == {"target_fits_the_output[dots]"}
    assert rows[0]["message"] == "skipped: it depends on target_fits_the_output[dots], which failed"
    assert "masking 'half'" in {row["part"] for row in rows}


def test_options_reach_the_parts(few, make_plugin, capsys):
    make_plugin("dots", **dots())
    assert main(["plugins", "check", "dots", "maskings.half.ratio=2.0"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "ratio must be 0 <= float <= 1 | [0 <= float" in text and "got 2.0" in text


def test_what_cannot_be_found(few, make_plugin, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_plugin("dots", **dots())
    make_plugin("bad", **{"__init__.py": "1 / 0"})
    for name in ("one", "two"):
        Path("both", name).mkdir(parents=True)
        Path("both", name, "__init__.py").write_text("")
    Path("empty").mkdir()
    Path("file.py").write_text("")
    for argv, message in (
        (["dotts"], "no plugin and no folder is called 'dotts'; did you mean 'dots'?"),
        (["empty"], "holds no package; give the folder with the manifest's __init__.py"),
        (["both"], "holds several packages (one, two); give the folder of one"),
        (["file.py"], "file.py is not a folder; give the folder of a plugin, or its name"),
        (["bad"], "plugin 'bad' (folder: "),
        ([str(tmp_path / "plugins" / "bad")], "cannot be used: ZeroDivisionError: division by zero"),
        (["dots", "ratio=1"], "'ratio=1' names no part; write part.option=value"),
        (["dots", "maskings.haf.ratio=1"], "plugin 'dots' has no part 'maskings.haf' to set options for"),
        ([], "check needs a name; known: core"),
    ):
        assert main(["plugins", "check", *argv]) == 2, argv
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def test_a_project_folder_is_its_only_package(make_plugin, tmp_path):
    for above in ("maemm-a", "maemm-b/src"):
        package = tmp_path / above / f"maemm_{above[6]}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (tmp_path / above / "tests").mkdir()
        (tmp_path / above / "tests" / "__init__.py").write_text("")
        assert plugins_check._package_in(tmp_path / above.split("/")[0]) == package


def test_it_needs_no_pytest():
    """A user has none. No torch either before there is something to check."""
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "from maemm.__main__ import main\n"
        "assert main(['plugins', 'check', 'nothing']) == 2 and 'torch' not in sys.modules\n"
        "from maemm.testing.checks import CHECKS\n"
        f"[CHECKS.pop(one) for one in list(CHECKS) if one not in {FAST}]\n"
        "sys.exit(main(['plugins', 'check', 'core']))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^encoder 'vit' +2 passed$", done.stdout, re.M)


def test_a_plugin_is_known_by_its_folder_however_it_was_found(make_plugin):
    home = Path(__import__("maemm_plugins.image").image.__file__).parent
    assert plugins_check.find(str(home)).origin == "bundled" and plugins_check.find("image").origin == "bundled"
