"""Augmentations on the device: launches that do not depend on the batch, and results of a loop over its samples."""

from __future__ import annotations

import copy
import math
from collections import Counter

import pytest
import torch

from maemm.contract import Preprocessed
from maemm.contract.rng import Rng
from maemm_plugins._images.boxes import DRAWS, random_box, random_boxes
from maemm_plugins.audio.modality import Audio
from maemm_plugins.image.modality import Image
from maemm_plugins.pointcloud.modality import PointCloud
from maemm_plugins.signal.modality import Signal
from maemm_plugins.video.modality import Video
from tests.pretended_gpu.device import gpu


def numbers(count, *shape, seed=0):
    return Rng(("raw", seed), range(count), count).uniform("raw", *shape)


def pictures(count):
    return {"x": (numbers(count, 3, 40, 50) * 255).byte()}


def clips(count):
    sides = [(30 + 3 * (row % 4), 36 - 2 * (row % 3)) for row in range(count)]
    return {"x": (numbers(count, 4, 40, 36, 3) * 255).byte(), "sides": sides}


def waves(count):
    lengths = [1600 + 160 * (row % 4) for row in range(count)]
    wave = numbers(count, max(lengths)) - 0.5
    return {"wave": wave * (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]), "samples": lengths}


def recordings(count):
    return {"x": numbers(count, 3, 40)}


def recordings_with_gaps(count):
    valid = torch.arange(40) < (20 + 5 * (torch.arange(count) % 4))[:, None, None]
    return {"x": numbers(count, 3, 40) * valid, "valid": valid.expand(count, 3, 40).contiguous()}


def clouds(count):
    return {"x": numbers(count, 48, 6) - 0.5}


def ragged_clouds(count):
    valid = torch.arange(48) < (36 + 4 * (torch.arange(count) % 4))[:, None]
    return {"x": (numbers(count, 48, 6) - 0.5) * valid[..., None], "valid": valid}


def audio(**options):
    return Audio(size=(16, 32), patch=(4, 4), **options)


def cloud(**augment):
    return PointCloud(groups=8, group_size=4, features=3, normals=True, augment=augment)


EVERY_CHANGE = {"gain": (0.5, 2.0), "drop_channel": 0.4, "shift": 5}
MODALITIES = {
    "image": (Image(size=32, patch=8), pictures),
    "image, cropped on the device": (Image(size=32, patch=8, device_crop=True), pictures),
    "video": (Video(size=(4, 32, 32), patch=(2, 8, 8), flip=True), clips),
    "audio": (audio(gain=True, roll=True, noise=0.1), waves),
    "audio, padding seen": (audio(pad="seen", spec_augment={"frequency": 8, "time": 4}), waves),
    "audio, mixed": (audio(mixup=0.7), waves),
    "signal": (Signal(size=40, patch=4, channels=3, **EVERY_CHANGE), recordings),
    "signal with gaps": (Signal(size=40, patch=4, channels=3, gaps="hide", **EVERY_CHANGE), recordings_with_gaps),
    "clouds, turned about an axis": (cloud(rotate="y", jitter=0.01), clouds),
    "clouds, turned anyhow": (cloud(rotate="so3", dropout=0.4, per_axis=False), clouds),
    "ragged clouds": (cloud(rotate="so3", dropout=0.4, jitter=0.01), ragged_clouds),
}


def moved(raw):
    return {key: x.pin_memory().to("cuda", non_blocking=True) if torch.is_tensor(x) else x for key, x in raw.items()}


def row_of(raw, row):
    return {key: x[row : row + 1] for key, x in raw.items()}


def step(count):
    return Rng((0, 3), range(count), count)


@pytest.mark.parametrize("name", MODALITIES)
def test_launches_do_not_depend_on_the_batch(name):
    modality, raw_of = MODALITIES[name]
    launches = []
    for count in (4, 16):
        modality = copy.deepcopy(modality)
        expected = modality.preprocess(raw_of(count), step(count))
        with gpu() as seen:
            raw = moved(raw_of(count))
            modality.preprocess(raw, step(count))  # the first makes tables
            assert not seen.waits and not seen.blocking_copies
            seen.clear()
            result = modality.preprocess(raw, step(count))
            launches.append(Counter(seen.launches))
            assert not seen.waits and not seen.blocking_copies
            assert (result.valid is None) == (expected.valid is None)
            rounding = 2 / 255 / 0.2 if name == "video" else 1e-4  # a CPU resizes bytes, and rounds as Pillow does
            torch.testing.assert_close(result.x.cpu(), expected.x, rtol=1e-4, atol=rounding)
            if expected.valid is not None:
                assert torch.equal(result.valid.cpu(), expected.valid)
    assert launches[0] == launches[1] and sum(launches[0].values()) < 300


@pytest.mark.parametrize("name", [name for name in MODALITIES if name != "audio, mixed"])
def test_a_batch_is_its_samples_one_after_another(name):
    """Each alone, with the draws of its row: any micro-batch and number of processes give the same."""
    modality, raw_of = MODALITIES[name]
    whole = modality.preprocess(raw_of(8), step(8))
    for row in range(8):
        alone = modality.preprocess(row_of(raw_of(8), row), Rng((0, 3), [row], 8))
        axis = alone.x.shape[1]  # an audio clip is not padded when it is alone
        mine = whole.x[row : row + 1, :axis]
        valid = None if whole.valid is None else whole.valid[row : row + 1]
        if valid is not None and alone.valid is not None:
            assert torch.equal(valid[:, : alone.valid.shape[1]], alone.valid)
        torch.testing.assert_close(mine, alone.x, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------- the same, written as a loop over samples
def test_sounds_as_a_loop():
    from maemm_plugins.audio import preprocess

    count, rng, raw = 6, step(6), waves(6)
    wave, samples = raw["wave"], torch.tensor(raw["samples"])
    rolled, louder = preprocess.roll(wave, samples, rng), preprocess.gain(wave, rng)
    mixed, mix = preprocess.mixup(wave, samples, rng, 0.5)
    logmel = numbers(count, 20, 12) + 1
    hidden, noisy = preprocess.spec_augment(logmel, rng, 6, 9), preprocess.noise(logmel, rng, 0.5)
    draws = {name: rng.uniform(name, size) for name, size in [("roll", 1), ("gain", 19), ("mixup", 20)]}
    bands = {axis: rng.uniform(f"spec_augment/{axis}", 2) for axis in (1, 2)}
    for row, length in enumerate(raw["samples"]):
        clip = wave[row, :length]
        shift = int(draws["roll"][row, 0] * length)
        assert torch.equal(rolled[row, :length], clip.roll(-shift))
        assert torch.equal(louder[row], wave[row] * (draws["gain"][row].median() + 0.5))
        coin, *rest = draws["mixup"][row]
        share = torch.stack(rest).median() if coin < 0.5 else torch.tensor(1.0)
        together = share * clip + (1 - share) * wave[row ^ 1, :length]
        torch.testing.assert_close(mixed[row, :length], together - together.mean(), rtol=0, atol=1e-6)
        assert not mixed[row, length:].any() and mix.fraction[row] == share and mix.partner[row] == row ^ 1
        expected = logmel[row].clone()
        for axis, widest in ((2, 6), (1, 9)):
            width, side = bands[axis][row, 0] * widest, logmel.shape[axis]
            first = int(bands[axis][row, 1] * (side - width))
            expected.narrow(axis - 1, first, int(width)).zero_()
        assert torch.equal(hidden[row], expected)
        level = rng.uniform("noise/level")[row]
        torch.testing.assert_close(noisy[row], logmel[row] + 0.5 * level * rng.uniform("noise", 20, 12)[row])
    assert (mix.fraction < 1).any() and (mix.fraction == 1).any()
    for probability, partner_alone in ((0.0, False), (1.0, True)):
        rows = [0] if partner_alone else range(count)  # no partner in this batch: as it is
        own = preprocess.mixup(wave[: len(rows)], samples[: len(rows)], Rng((0, 3), rows, 6), probability)[1]
        assert (own.fraction == 1).all()


def test_recordings_as_a_loop():
    from maemm_plugins.signal import preprocess

    raw = recordings_with_gaps(8)
    x, valid, length = raw["x"], raw["valid"], raw["x"].shape[-1]
    by = torch.tensor([0, 3, -3, 20, -20, 1, -1, 0])
    shifted, inside = preprocess.shift(x, valid, by)
    uniform = numbers(8, 3, seed=1)
    louder = preprocess.gain(x, uniform, 0.5, 2.0)
    kept = {fraction: preprocess.drop_channels(x, valid, uniform, fraction) for fraction in (0.0, 0.5, 1.0)}
    for row in range(8):
        expected, where = torch.zeros(3, length), torch.zeros(3, length, dtype=torch.bool)
        for at in range(length):
            if 0 <= at - int(by[row]) < length:
                expected[:, at], where[:, at] = x[row, :, at - by[row]], valid[row, :, at - by[row]]
        assert torch.equal(shifted[row], expected * where) and torch.equal(inside[row], where)
        for channel, draw in enumerate(uniform[row]):
            torch.testing.assert_close(louder[row, channel], x[row, channel] * math.exp(math.log(4) * (draw - 0.5)))
            for fraction, left in kept.items():
                stays = bool(draw >= fraction) or bool(draw == uniform[row].max())
                assert torch.equal(left[row, channel], valid[row, channel] & stays)


@pytest.mark.parametrize("rotate", ["x", "y", "z", "so3", None])
def test_clouds_as_a_loop(rotate):
    from maemm_plugins.pointcloud.preprocess import Augment, any_rotation, augment, axis_rotation

    raw, rng = ragged_clouds(6), step(6)
    options = Augment(scale=(0.5, 2.0), shift=0.3, rotate=rotate, dropout=0.5)
    out, valid = augment(raw["x"], raw["valid"], rng, options, normals=True)
    scale, shift = 0.5 + 1.5 * rng.uniform("scale", 3), (2 * rng.uniform("shift", 3) - 1) * 0.3
    most, noise = rng.uniform("dropout", 1) * 0.5, rng.uniform("dropped", 48)
    for row in range(6):
        turn = torch.eye(3)
        if rotate == "so3":
            turn = any_rotation(rng.uniform("rotate", 3)[row : row + 1])[0]
        elif rotate is not None:
            turn = axis_rotation(rng.uniform("rotate")[row : row + 1], rotate)[0]
        stay = 0
        for at in range(48):
            point, normal = raw["x"][row, at].split(3)
            if raw["valid"][row, at] and (noise[row, at] >= most[row] or stay < 0):
                stay += 1
                turned = torch.nn.functional.normalize(turn @ (normal / scale[row]), dim=0)
                expected = torch.cat([turn @ (scale[row] * point + shift[row]), turned])
                assert valid[row, at]
                torch.testing.assert_close(out[row, at], expected, rtol=1e-4, atol=1e-5)
            else:
                assert not valid[row, at] and not out[row, at].any()
        assert stay >= 2


@pytest.mark.parametrize("side", [(224, 224), (50, 500), (33, 20), (1, 64)], ids=str)
@pytest.mark.parametrize("limits", [((0.2, 1.0), (3 / 4, 4 / 3)), ((1.0, 1.0), (1.0, 1.0))], ids=str)
def test_boxes_of_a_batch_are_those_of_its_samples(side, limits):
    uniform = step(300).uniform("crop", DRAWS)
    expected = [random_box(row, *side, *limits) for row in uniform.tolist()]
    assert random_boxes(uniform, *side, *limits).tolist() == [list(box) for box in expected]
    assert random_boxes(uniform[:0], *side, *limits).shape == (0, 4)


@pytest.mark.parametrize("name", ["image", "image, cropped on the device", "video"])
def test_flips_as_a_loop(name):
    modality, raw_of = MODALITIES[name]
    plain = type(modality)(**({"size": modality.size, "patch": modality.patch, "flip": False}))
    plain.device_crop = getattr(modality, "device_crop", False)
    out, unflipped = (each.preprocess(raw_of(12), step(12)).x for each in (modality, plain))
    flipped = step(12).uniform("flip") < 0.5
    assert 2 < flipped.sum() < 10
    for row in range(12):
        assert torch.equal(out[row], unflipped[row].flip(-1) if flipped[row] else unflipped[row])


def test_a_single_sample_and_evaluation_stay_as_they_are():
    """``rng=None`` draws nothing."""
    for modality, raw_of in MODALITIES.values():
        first: Preprocessed = modality.preprocess(raw_of(1), None)
        assert torch.equal(first.x, modality.preprocess(raw_of(1), None).x)
        assert modality.preprocess(raw_of(1), step(1)).x.shape == first.x.shape
