"""The GRID benchmark: its split, its controls, its linear baselines, and the whole of it on made-up clips."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from maemm import config
from maemm.tasks.pretrain.run import train_recipe

ROOT = Path(__file__).parents[1]


def module(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


grid = module(ROOT / "benchmarks" / "retrieve_grid.py", "retrieve_grid")


def test_every_fifth_group_is_held_out(tmp_path):
    codes = [f"b{a}a{b}{c}n" for a in "bgrw" for b in "abc" for c in "12"]
    for code in codes:
        (tmp_path / f"{code}.mp4").touch()
    train, test = grid.split(tmp_path)
    assert sorted(train + test) == sorted(codes) and not {c[:4] for c in train} & {c[:4] for c in test}
    assert sorted({c[:4] for c in test}) == sorted({c[:4] for c in codes})[::5]


def test_the_controls_change_one_thing():
    drawn = np.random.default_rng(0)
    video = drawn.integers(0, 255, (6, 14, 24, 3), np.uint8)
    wave = grid.Wave(np.arange(32000, dtype=np.float32)[:, None], 16000)
    raw = {"video": video, "audio": wave, "image": drawn.integers(0, 255, (32, 40, 3), np.uint8)}
    shuffled = grid.frames_shuffled(raw, drawn)["video"]
    assert not np.array_equal(shuffled, video)
    assert sorted(frame.tobytes() for frame in shuffled) == sorted(frame.tobytes() for frame in video)
    assert grid.sound_shifted(raw, drawn)["audio"].samples[16000, 0] == 0
    cut = grid.mouth_cut_out(raw, drawn)
    assert np.ptp(cut["image"][16:30, 8:32, 0]) == 0 and np.array_equal(cut["image"][:16], raw["image"][:16])
    assert np.ptp(cut["video"][0, 2:-1, 4:-4, 0]) == 0 and np.array_equal(raw["video"], video)


def test_linear_baselines_find_what_is_linear():
    drawn = np.random.default_rng(0)
    hidden = drawn.standard_normal((60, 30, 6))
    one = hidden @ drawn.standard_normal((6, 64)) + 0.1 * drawn.standard_normal((60, 30, 64))
    other = hidden @ drawn.standard_normal((6, 64)) + 0.1 * drawn.standard_normal((60, 30, 64))
    parts = [(one[rows], other[rows]) for rows in (slice(0, 40), slice(40, 60))]
    scores = grid.frame_cca(*parts, context=4)
    found = grid.of_scores("a -> b", scores)
    assert found["R@1"] > 0.9 and found["median"] == 1
    noise = grid.of_scores("a -> b", drawn.standard_normal((20, 20)))
    assert noise["R@1"] < 0.5
    a, b = grid.clip_cca(*[(x[:, :1], y[:, :1]) for x, y in parts], 1e-3, 6)
    assert (a * b).sum(1).mean() > 0 and grid.compare_pair("a -> b", a, b).recall[1] > 0.6


def test_the_benchmark_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("av")
    movies = module(ROOT / "tests" / "plugins" / "cav" / "movie_files.py", "movie_files")
    clips = tmp_path / "clips"
    clips.mkdir()
    for number, letter in enumerate("abcdefghijk"):
        movies.write(clips / f"bba{letter}1n.mp4", frames=62, sound=2.5, size=(128, 160), first=number)
    run = lambda *words: (monkeypatch.setattr(sys, "argv", ["x", str(clips), *words]), grid.main())  # noqa: E731
    run("--write-lists", str(tmp_path / "lists"))
    data = {"data.root": str(clips), "data.list": str(tmp_path / "lists" / "train.txt"), "data.max_bad_fraction": 0}
    small = {"train.batch": 4, "train.steps": 2, "train.warmup_epochs": 0, "out": str(tmp_path / "run")}
    train_recipe(config.load("cav/grid_frame_cpu", {**data, **small}, training=True), echo=lambda line: None)
    run("--lists", str(tmp_path / "lists"), "--frame", str(tmp_path / "run"), "--out", str(tmp_path / "made.json"))
    made = json.loads((tmp_path / "made.json").read_text())
    assert set(made["frame"]["rows"]) >= {"trained", "untrained, seed 0", "trained, mouth cut out"}
    assert set(made["frame"]["letter"]) == {"audio", "image", "joint", "both, side by side"}
    assert made["frame"]["training"]["step"] == 2 and "clip CCA, one picture, r=3e-4" in made["frame"]["linear"]
    assert "letter:" in capsys.readouterr().out
