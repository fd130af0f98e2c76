"""The video sample set and the recipe that trains on it."""

import numpy as np
import pytest

import maemm
from maemm_plugins._objects.objects import SHAPES, make_object
from maemm_plugins._objects.render import render
from maemm_plugins.video import samples


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples") / "video"
    samples.write(folder, count=12)
    return folder


def test_ordinary_files_with_labels(home):
    source = samples.open_samples(str(home))
    assert len(source) == 12 and list(source.classes) == sorted(SHAPES)
    one = source.read(0, maemm.Rng((0, 0, 0, 0)))
    video = one.raw["video"]
    assert len(video) == samples.FRAMES and video.times[1] == pytest.approx(1 / samples.RATE)
    frames = video.frames_at(range(samples.FRAMES))
    assert np.abs(np.diff(frames.astype(int), axis=0)).mean() > 0.2  # it moves


def test_the_first_frame_is_the_picture_of_the_object(home):
    thing = make_object(6)
    video = samples.open_samples(str(home / thing.shape / "0006.mp4")).read(0, maemm.Rng((0,))).raw["video"]
    picture = np.asarray(render(thing, samples.PIXELS))
    assert np.abs(video.frames_at([0])[0].astype(int) - picture).mean() < 8  # coded with losses


def test_a_second_call_writes_nothing(home):
    before = {p: p.stat().st_mtime_ns for p in home.rglob("*.mp4")}
    samples.write(home, count=12)
    assert before == {p: p.stat().st_mtime_ns for p in home.rglob("*.mp4")}


def test_the_demo_recipe_learns(home, tmp_path):
    from maemm.tasks.pretrain.run import train_recipe

    recipe = maemm.config.load("video/videomae_tiny_cpu", {
        "data.root": str(home), "data.workers": 0, "train.epochs": None, "train.steps": 12, "train.warmup_epochs": 0,
        "train.batch": 12, "out": str(tmp_path / "run"), "train.log_every": 1,
    }, training=True)  # fmt: skip
    train_recipe(recipe, echo=lambda line: None)
    import json

    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    assert list((tmp_path / "run" / "pictures").glob("*.png"))
