"""``maemm plugins new``: what it writes works unedited; what it cannot write it refuses, and leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch

import maemm
from maemm import registry
from maemm.__main__ import main
from maemm.tasks.plugins.scaffold import TEMPLATES, new
from maemm.testing import checks_of
from maemm.testing.suite import result_of

KINDS = {"wave": ["--axes", "1"], "sonar": ["--axes", "2"], "my_volume": ["--axes", "3"], "cloudy": ["--set"]}
ONCE = ("manifest_is_light", "another_process_reads_the_same")  # processes: seconds each, the same code in all kinds


@pytest.fixture
def made(make_plugin, tmp_path, monkeypatch, capsys):
    """Write the package of a kind and use it as a folder; the current folder is empty but for it."""
    monkeypatch.chdir(tmp_path)

    def make(name: str) -> Path:
        assert main(["plugins", "new", name, *KINDS[name], "--json"]) == 0
        folder = Path(json.loads(capsys.readouterr().out)["folder"])
        registry.add_path(folder / f"maemm_{name}")
        registry.clear_cache()
        return folder

    return make


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_keeps_all_rules(made, name):
    made(name)
    found = registry.get(name)
    skipped = ONCE if name != "cloudy" else ()
    checks = [one for one in checks_of(found.plugin, package=found.package) if one.name not in skipped]
    results = [result_of(one) for one in checks]
    assert [one.message for one in results if one.message and one.used] == []
    ragged = next(one for one in results if one.check == "padding_changes_nothing")
    assert ragged.applies and ragged.passed


@pytest.mark.parametrize("name", ["wave", "cloudy"])
def test_it_trains_draws_and_goes_on(made, name, capsys):
    folder = made(name)
    write = registry.find("samples", name)
    write(Path("data"))
    Path("data/fast" if name != "cloudy" else "data/inside", "broken.npy").write_bytes(b"nothing")
    train = ["train.batch=16", "train.log_every=1", "train.warmup_epochs=0"]
    command = ["pretrain", f"{name}/tiny", "data", "data.workers=0", *train, "out=run"]
    assert main([*command, "train.epochs=1"]) == 0
    assert json.loads(Path("run/bad_samples.jsonl").read_text())["id"].endswith("broken.npy")
    assert main([*command, "train.epochs=2"]) == 0
    assert "resuming from step 2" in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and all(np.isfinite(row["loss"]) for row in rows)
    assert Path("run/report.html").is_file() and len(list(Path("run/pictures").glob("*.png"))) == 2
    assert maemm.load("run").recipe["modalities"][name]["type"] == name and folder.name == f"maemm-{name}"


@pytest.mark.slow
def test_it_installs_and_its_own_tests_pass(tmp_path):
    """In an environment of its own that sees this one's packages: pip, entry point, pytest, check, pretrain."""
    python = install(new("sonar", tmp_path), tmp_path / "env")

    def run(*argv: str) -> str:
        done = subprocess.run([python, *argv], cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "sonar signals  (installed: maemm-sonar 0.1.0)" in run("-m", "maemm", "plugins")
    assert " passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", "maemm-sonar")
    assert " 0 failed" in run("-m", "maemm", "plugins", "check", "sonar")


def install(package: Path, home: Path) -> str:
    """``pip install -e package`` without a network into a fresh environment; -> its Python."""
    venv.create(home, with_pip=False, symlinks=True)
    python = str(home / "bin" / "python")
    (site,) = home.glob("lib/python*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    (site / "parent.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in here))
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-build-isolation", "-q"]
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}
    done = subprocess.run([*command, "-e", str(package)], capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return python


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["Sonar"], "'Sonar' is not valid; use lower-case letters"),
        (["so-nar"], "is not valid; use lower-case"),
        (["7up"], "is not valid; use lower-case"),
        (["../sonar"], "is not valid; use lower-case"),
        (["sonar_"], "is not valid; use lower-case"),
        (["class"], "'class' is a reserved word"),
        (["match"], "'match' is a reserved word"),
        (["core"], "'core' is a reserved word"),
        (["joint"], "'joint' is a reserved word"),
        (["tensor", "--set"], "'tensor' is a reserved word"),  # its class would hide torch's
        (["items"], "'items' is a reserved word of torch modules"),
        (["image"], "there is a plugin 'image' (bundled)"),
        (["image_samples"], "there is a source 'image_samples' (bundled)"),
        (["sonar", "--axes", "4"], "a grid has 1, 2 or 3 axes, got 4 (--axes)"),
        (["sonar", "--axes", "two"], "invalid int value: 'two'"),
        (["sonar", "--axes", "1", "--set"], "--axes and --set are both given"),
        (["sonar", "--into", "file"], "cannot write file/maemm-sonar"),
        (["sonar", "--into", "closed"], "cannot write closed/maemm-sonar (Permission denied)"),
        (["taken"], "maemm-taken exists; choose another name or another --into"),
        (["dangling"], "maemm-dangling exists"),
        (["sonar", "x=1"], "plugins does not accept 'x=1'"),
        ([], "new needs a name"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(argv, message, tmp_path, monkeypatch, capsys):
    if "closed" in argv and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("closed").mkdir(mode=0o500)
    Path("maemm-taken").mkdir()
    Path("maemm-dangling").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    assert main(["plugins", "new", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, capsys):
    written = []

    def write_text(self, text, **options):
        written.append(self)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        return len(text)

    monkeypatch.setattr(Path, "write_text", write_text)
    assert main(["plugins", "new", "sonar", "--into", str(tmp_path / "new")]) == 2
    assert "No space left on device" in capsys.readouterr().err and len(written) == 4
    assert list((tmp_path / "new").iterdir()) == []


def test_flags_of_new_belong_to_new(capsys):
    assert main(["plugins", "show", "core", "--axes", "2"]) == 2
    assert "--axes, --set and --into belong to: maemm plugins new NAME" in capsys.readouterr().err


def test_templates_leave_no_trace(tmp_path):
    """Every placeholder is replaced, also in file names, and every replacement is used."""
    for name, flags in KINDS.items():
        axes = int(flags[1]) if len(flags) == 2 else 2
        folder = new(name, tmp_path, axes=axes, as_set=flags == ["--set"])
        texts = {path: path.read_text() for path in folder.rglob("*") if path.is_file()}
        assert len(texts) == 8
        for path, text in texts.items():
            assert not [word for word in WORDS if word in f"{path}{text}"]
            assert all(len(line) <= 120 for line in text.splitlines()), path
        readme = texts[folder / "README.md"]
        for hook in ("baseline()", "side_input()", "align:", "precompute()", "after_step()", "phases()", "deviations="):
            assert hook in readme
        assert ("gaps=true" in readme) == (flags != ["--set"]) and ("`known`" in readme) == (flags == ["--set"])
        if flags != ["--set"]:
            assert f"axes = {axes}\n" in texts[folder / f"maemm_{name}" / "modality.py"]
    assert (TEMPLATES / "grid" / "maemm_plugname" / "modality.py").is_file()


WORDS = ("plugname", "PlugName", "SIDES", "LAYOUT", "MISSING")


def test_normalisation_takes_what_stats_prints(made):
    """One number, or one per channel; and pictures and statistics undo it."""
    made("wave")
    wave = registry.find("modalities", "wave")
    for mean, std in ((3.0, 2.0), ([1.0, 2.0], [2.0, 4.0])):
        modality = wave(channels=2, mean=mean, std=std)
        x = torch.rand(3, 2, 128)
        seen = modality.preprocess({"x": x}, None).x
        expected = (x - torch.tensor(mean).reshape(-1, 1)) / torch.tensor(std).reshape(-1, 1)
        torch.testing.assert_close(seen, expected)
        torch.testing.assert_close(modality.denormalize_input(seen), x)
