"""Comparisons that run: the table and the page, what is interrupted, what fails, what is refused."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import maemm
from maemm.__main__ import main
from maemm.contract.errors import MaemmError
from maemm.data.locks import folder_locked
from maemm.tasks.ablate import run, trials
from maemm.tasks.ablate.measures import Measurer
from maemm.tasks.ablate.results import Ablation
from maemm.tasks.ablate.summary import Difference, Spread
from maemm.train.loop import Run
from maemm.train.signals import Interrupted

SETS = ["masking=random,scan:spiral"]
WORDS = ["ablate", "tiny.yaml", "--set", SETS[0], "--seeds", "2", "-o", "out"]
USUAL = {"sets": SETS, "seeds": 2, "measures": ["knn", "rank"], "test": "few.npz", "out": "out"}


def silent(line: str) -> None:
    """Says nothing."""


def ablate(**arguments) -> Ablation:
    return maemm.ablate("tiny.yaml", **{**USUAL, "say": silent, **arguments})


def weights(folder: Path) -> dict[str, dict[str, bytes]]:
    """The last weights of every run below a folder."""
    return {path.relative_to(folder).as_posix(): last(path) for path in sorted(folder.glob("*/seed-*"))}


def last(run: Path) -> dict[str, bytes]:
    """The tensors of the last checkpoint of a run; the files hold its recipe, and so its folder, too."""
    file = sorted(run.glob("checkpoints/step-*"))[-1] / "model.safetensors"
    return {name: x.tobytes() for name, x in load_file(file).items()}


def of_measure(ablation: Ablation, variant: str, name: str) -> Spread:
    (row,) = [row for row in [*ablation.rows, *ablation.baseline_rows] if row.name == variant]
    return row.spreads[name]


# ------------------------------------------------------------------------------------------------- results
def test_a_comparison_from_the_command_line(place, capsys):
    assert main([*WORDS, "--test", "few.npz", "--steps", "3"]) == 0
    out = capsys.readouterr().out
    head = next(line for line in out.splitlines() if line.startswith("variant "))
    assert " ".join(head.split()) == (
        "variant seeds linear difference beyond noise kNN difference beyond noise eff. rank loss CPU s/step parameters"
    )
    lines = [line for line in out.splitlines() if line.startswith(("masking=", "untrained", "raw values"))]
    assert [line.split()[0] for line in lines] == ["masking=random", "masking=scan:spiral", "untrained", "raw"]
    assert "n 2)" in lines[1] and lines[1].count("*") == 1 and "*" not in lines[0]
    for words in ("paired t-test against 'masking=random'", "not comparable", "tested on few.npz", "C chosen"):
        assert words in out
    assert [path.name for path in sorted(Path("out").iterdir()) if path.suffix] == [
        "baselines.json",
        "report.html",
        "results.csv",
        "results.json",
    ]
    record = json.loads(Path("out/results.json").read_text())
    assert record["seeds"] == 2 and record["steps"] == 3 and len(record["runs"]) == 4
    assert record["variants"][1]["differs"] == [
        "modalities.image.masking.type: 'random' -> 'scan'",
        "modalities.image.masking.order: null -> 'spiral'",
    ]
    (scan,) = [row for row in record["results"] if row["variant"] == "masking=scan:spiral"]
    own = [run for run in record["runs"] if run["variant"] == "masking=scan:spiral"]
    base = [run for run in record["runs"] if run["variant"] == "masking=random"]
    differences = [a["linear"] - b["linear"] for a, b in zip(own, base, strict=True)]
    assert scan["differences"]["linear"]["mean"] == pytest.approx(np.mean(differences))
    assert scan["rank"]["std"] == pytest.approx(np.std([x["rank"] for x in own], ddof=1))
    with open("out/results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 7 and float(table[0]["linear"]) == base[0]["linear"]
    assert main([*WORDS, "--test", "few.npz", "--steps", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == record["results"]


def test_runs_are_ordinary_ones_that_see_the_same_batches_and_are_measured_as_verbs_measure(place, monkeypatch):
    seen: dict[str, list] = {}
    step = Run._train_step

    def watched(self, micro_batches):
        seen.setdefault(str(self.folder.path), []).append([list(ids) for ids in micro_batches.ids])
        step(self, micro_batches)

    monkeypatch.setattr(Run, "_train_step", watched)
    ablation = ablate(measures=["linear", "knn", "rank"])
    same = {seed: [x for path, x in seen.items() if path.endswith(f"seed-{seed}")] for seed in (0, 1)}
    assert same[0][0] == same[0][1] and same[1][0] == same[1][1] and same[0][0] != same[1][0]
    folder = Path("out/masking-scan-spiral/seed-1")
    probe = maemm.probe(folder, "few.npz", test="few.npz", protocols=["linear", "knn"], seeds=1)
    assert [cell.mean for cell in probe.cells] == [
        of_measure(ablation, "masking=scan:spiral", name).values[1] for name in ("linear", "knn")
    ]
    diagnosis = maemm.diagnose(folder, "few.npz", "d.html", baseline=False)
    rank = diagnosis.findings["trained"]["image"].spectrum.effective_rank
    assert of_measure(ablation, "masking=scan:spiral", "rank").values[1] == pytest.approx(rank, rel=1e-5)
    plain = maemm.pretrain("tiny.yaml", **{"train.seed": 1, "out": "alone"})
    assert last(plain) == weights(Path("out"))["masking-random/seed-1"]


def test_untrained_is_the_network_before_its_first_step(place):
    ablation = ablate(measures=["rank"], test=None)
    from maemm.contract.rng import seeded
    from maemm.model.build import build_model

    with seeded(1, "weights"):
        model = build_model(maemm.config.load("tiny.yaml"))
    rank = Measurer(model.recipe, ["rank"]).of(model.eval())["rank"]
    assert of_measure(ablation, "untrained", "rank").values[1] == rank
    assert len(of_measure(ablation, "raw values", "rank").values) == 1


def test_data_without_labels_and_measures_that_are_not_asked_for(place):
    ablation = ablate(data="plain.npz", test=None, measures=None, steps=2)
    assert {"rank", "loss"} <= ablation.rows[0].spreads.keys() and "linear" not in ablation.rows[0].spreads
    assert "not measured: linear, knn (the data have no labels)" in str(ablation)
    bare = ablate(measures=[], out="bare", seeds=1, steps=2)
    assert not bare.baseline_rows and bare.rows[0].spreads.keys() == {
        "loss", "seconds_per_step", "parameters", "cpu_seconds_per_step",
    }  # fmt: skip
    on_others = ablate(
        data="plain.npz", probe="few.npz", samples=20, measures=["knn"], steps=2
    )  # the same runs, measured anew
    assert of_measure(on_others, "masking=random", "knn").values.keys() == {0, 1}
    assert "at most 20 samples" in str(on_others)


def test_validation_and_batches_that_differ_are_shown(place):
    ablation = ablate(
        sets=["batch=4,8"], overrides=["data.validation=0.25", "train.validate_every=2"], measures=[], seeds=1
    )
    assert "validation" in ablation.rows[0].spreads
    assert "the variants differ in train.batch: they do not see the same batches" in str(ablation)


# ----------------------------------------------------------------------------------------------- noise
def test_differences_and_noise():
    from scipy import stats

    a, b = [0.5, 0.6, 0.55], [0.52, 0.63, 0.59]
    difference = Difference({seed: y - x for seed, (x, y) in enumerate(zip(a, b, strict=True))})
    assert difference.p == pytest.approx(stats.ttest_rel(b, a).pvalue)
    assert difference.verdict == f"yes (p {difference.p:.2g}, n 3)"
    assert Difference({0: 0.1, 1: -0.2, 2: 0.05}).verdict.startswith("no (p ")
    assert Difference({0: 0.1}).verdict == "unknown (n 1)" and Difference({}).verdict == "unknown (n 0)"
    assert Difference({0: 0.1, 1: 0.1}).verdict == "unknown (n 2)"  # no spread is no certainty
    assert Difference({0: 0.0, 1: 0.0}).verdict == "no: equal (n 2)"
    assert Spread({}).std is None and math.isnan(Spread({}).mean)


# --------------------------------------------------------------------------------------- interrupted, resumed
def test_killed_runs_continue_bit_for_bit_and_finished_ones_are_not_run_again(place, monkeypatch):
    said: list[str] = []
    whole = ablate(out="whole")
    step, steps = Run._train_step, []

    def dies(self, micro_batches):
        steps.append(micro_batches.step)
        if len(steps) == 8:  # in the last step of the second run, whose last checkpoint is that of step 2
            raise KeyboardInterrupt
        step(self, micro_batches)

    monkeypatch.setattr(Run, "_train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        ablate(say=said.append)
    assert said[-1] == "Stopped: 1 of 4 runs are finished. The same command continues."
    assert len(json.loads(Path("out/results.json").read_text())["runs"]) == 1 and Path("out/report.html").exists()
    steps.clear()
    monkeypatch.setattr(Run, "_train_step", lambda self, batches: (steps.append(batches.step), step(self, batches)))
    again = ablate()
    assert steps == [2, 3, 0, 1, 2, 3, 0, 1, 2, 3]
    assert weights(Path("out")) == weights(Path("whole")) and len(weights(Path("out"))) == 4
    for name in ("knn", "rank", "loss"):
        assert [row.spreads[name] for row in again.rows] == [row.spreads[name] for row in whole.rows]
    steps.clear()
    monkeypatch.setattr(Measurer, "of", lambda *_: pytest.fail("measured again"))
    more: list[str] = []
    ablate(say=more.append)
    assert not steps and sum(line.endswith("(finished before)") for line in more) == 4


def test_a_signal_in_training_ends_all_with_its_status(place, monkeypatch, capsys):
    monkeypatch.setattr(trials, "train", lambda *_, **__: (_ for _ in ()).throw(Interrupted(15)))
    assert main([*WORDS, "--alone"]) == 143
    assert "Stopped: 0 of 4 runs are finished. The same command continues." in capsys.readouterr().out


def test_more_seeds_and_variants_continue_the_same_folder(place, monkeypatch):
    ablate(seeds=1, measures=["rank"])
    before = weights(Path("out"))
    more = ablate(seeds=2, measures=["rank"], sets=["masking=random,scan:spiral,scan:zigzag"])
    assert len(more.rows) == 3 and len(of_measure(more, "untrained", "rank").values) == 2
    assert {name: data for name, data in weights(Path("out")).items() if name in before} == before
    with pytest.raises(MaemmError, match="holds a run with another recipe .*train.steps: 4 -> 5.*; choose another"):
        ablate(steps=5)
    with pytest.raises(MaemmError, match="out.masking-random.seed-0 is the folder of a run; choose another --out"):
        ablate(out="out/masking-random/seed-0")


def test_two_comparisons_in_one_folder(place, capsys):
    with folder_locked(Path("out"), user="ablation", log=silent):
        assert main(WORDS) == 2
    assert "out is in use by this process" in capsys.readouterr().err
    assert [path.name for path in Path("out").iterdir()] == [".lock"]


# ----------------------------------------------------------------------------------------------- what fails
def test_a_variant_that_diverges_is_named_and_the_others_go_on(place, capsys):
    Path("study.yaml").write_text(
        "recipe: tiny.yaml\nbase: {train: {max_nonfinite: 0}}\nseeds: 1\nmeasures: [rank]\n"
        "variants:\n  wild: {train: {lr: 1.0e+30}}\n  good:\n"
    )
    assert main(["ablate", "study.yaml", "-o", "out"]) == 0
    out, errors = capsys.readouterr()
    assert "wild, seed 0: FAILED" in out and "maemm: warning: wild, seed 0 failed (" in errors
    row = next(line for line in out.splitlines() if line.startswith("wild "))
    assert "0, 1 failed" in row
    record = json.loads(Path("out/results.json").read_text())
    assert [bool(run.get("error")) for run in record["runs"]] == [False, True]
    assert "failed: wild, seed 0: " in Path("out/report.html").read_text()


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("a bug of a part")])
def test_whatever_a_run_raises_the_others_go_on(error, place, monkeypatch):
    step = Run._train_step

    def fails(self, micro_batches):
        if "scan" in str(self.folder.path):
            raise error
        step(self, micro_batches)

    monkeypatch.setattr(Run, "_train_step", fails)
    ablation = ablate(measures=[], seeds=1)
    assert [outcome.error for outcome in ablation.failed] == [f"{type(error).__name__}: {error}"]
    assert ablation.rows[0].spreads["loss"].values.keys() == {0} and not ablation.rows[1].spreads
    monkeypatch.setattr(Run, "_train_step", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(MaemmError, match="all 2 runs failed"):
        ablate(measures=[], seeds=1, out="none")
    monkeypatch.setattr(Run, "_train_step", step)
    assert not ablate(measures=[], seeds=1).failed  # what failed is tried again


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "encoder.heads=2,3,4"], "variant 'encoder.heads=3': "),
        (["--set", "encoder.dim=16,30", "--set", "encoder.heads=2,4"], "variant 'encoder.dim=30, encoder.heads=4': "),
        (["--set", "batch=8,100"], "variant 'batch=100': "),
        (["--set", "data.root=few.npz,none.npz"], "variant 'data.root=none.npz': "),
        (["--set", "patch=4,3"], "variant 'patch=3': "),
        (["--set", "decoder=full,null"], "variant 'decoder=null': "),
        (["--set", "init=null,none"], "variant 'init=none': "),
        (["--set", "trainable=null,last_9_blocks"], "variant 'trainable=last_9_blocks': "),
        (["--set", "depth=1,2"], "'depth' may mean encoder.depth or decoder.depth"),
        (["--set", "decoder.depth=1,2", "--test", "none.npz"], "none.npz"),
        (["--set", "decoder.depth=1,2", "--probe", "none.npz"], "none.npz"),
        (["--set", "decoder.depth=1,2", "--jobs", "0"], "0 jobs do nothing (--jobs)"),
        (["--set", "decoder.depth=1,2", "few.npz", "data.root=few.npz"], "the data are given twice"),
        (["--set", "decoder.depth=1,2", "out=x"], "out is a flag"),
    ],
)
def test_all_variants_are_checked_before_the_first_step(words, message, place, monkeypatch, capsys):
    monkeypatch.setattr(run, "run_trial", lambda *_: pytest.fail("a run began"))
    assert main(["ablate", "tiny.yaml", *words, "-o", "out"]) == 2
    errors = capsys.readouterr().err
    lines = errors.splitlines()
    assert message in lines[0] and "internal" not in errors and not Path("out").exists()


# ----------------------------------------------------------------------------------------------- the page
def test_the_page_needs_nothing_else_and_escapes_names(place):
    study = {"<script>a</script>": {"decoder.depth": 2}, "plain": None}
    ablation = ablate(sets=(), variants=study, measures=None, steps=3)
    page = Path("out/report.html").read_text()
    assert "<script>a" not in page and "&lt;script&gt;a&lt;/script&gt;" in page
    assert 'src="http' not in page and '<link rel="stylesheet' not in page
    for words in ("Cost and quality", "Losses", "What differs", "How it was measured", "paired t-test"):
        assert words in page
    assert "decoder.depth: 1 -&gt; 2" in page
    links = [part.partition('"')[0] for part in page.split('<a href="')[1:]]
    assert len(links) == 4 and all((Path("out") / link).is_file() for link in links)
    for row in ablation.rows:
        assert f"{row.spreads['linear'].mean:.3f} ± {row.spreads['linear'].std:.3f}" in page
    assert page.count('class="chart broad"') == page.count('class="chart narrow"') == 5


@pytest.mark.slow
def test_several_runs_at_a_time_are_the_same_runs(place, capsys):
    assert main(WORDS) == 0
    assert main([*WORDS[:-1], "other", "--jobs", "2"]) == 0
    assert weights(Path("out")) == weights(Path("other"))
