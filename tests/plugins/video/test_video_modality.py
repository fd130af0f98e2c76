"""The video modality: positions, targets, maskings, crops, resizing, choice of frames, still pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import maemm
from maemm.config.options import check
from maemm.contract import Preprocessed, Tokens
from maemm.contract.errors import MaemmError
from maemm_plugins._images.boxes import DRAWS, random_box
from maemm_plugins.video import crop, maskings, resize, sampling
from maemm_plugins.video.modality import Video
from maemm_plugins.video.positions import ClipTable, FlatSinCos, Separable, flat_sincos
from maemm_plugins.video.running_cell import running_cell

GOLDEN = Path(__file__).parents[2] / "golden" / "videomae"
SMALL = {"size": [4, 16, 16], "patch": [2, 8, 8]}


def lattice_tokens(grid, batch=3):
    count = int(np.prod(grid))
    return Tokens(torch.zeros(batch, count, 1), torch.zeros(1, count, 3), tuple(grid))


# ------------------------------------------------------------------------------------------------- positions
def test_the_flat_sinusoid_is_the_published_one():
    stored, sums = load_file(GOLDEN / "sinusoid.safetensors"), json.loads((GOLDEN / "sinusoid.json").read_text())
    assert torch.equal(flat_sincos(64, 32), stored["table_64x32"])
    rows = flat_sincos(1568, 768)[stored["rows_1568x768_index"]]
    assert (rows - stored["rows_1568x768"]).abs().max() <= 1e-6 and len(sums) > 0


def test_a_shorter_clip_uses_the_first_rows():
    table = FlatSinCos(16)
    index = torch.arange(8)[None]
    short = table(lattice_tokens((2, 2, 2)), index)
    assert torch.equal(short, table(lattice_tokens((4, 2, 2)), index))


def test_tables_of_other_sizes():
    table = ClipTable(8, (4, 2, 2), learned=True)
    assert torch.equal(table.table((1, 2, 2)), table.values[:, :4])  # a still picture takes the first slot
    assert table.table((8, 4, 4)).shape == (1, 128, 8)
    positions = Separable(8, (4, 2, 2))
    whole = positions(lattice_tokens((4, 2, 2)), torch.arange(16)[None])[0]
    assert torch.allclose(whole[5], positions.temporal[0, 1] + positions.spatial[0, 1])
    still = positions(lattice_tokens((1, 2, 2)), torch.arange(4)[None])[0]
    assert torch.equal(still, whole[:4])
    assert positions(lattice_tokens((2, 4, 4)), torch.arange(32)[None]).shape == (1, 32, 8)


# ------------------------------------------------------------------------------------------------- maskings
@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9, 0.95])
def test_tube_counts_are_the_published_ones(ratio):
    facts = json.loads((GOLDEN / "tube_mask.json").read_text())["tube_8x14x14"][str(ratio)]
    plan = maskings.Tube(ratio=ratio).plan("video", lattice_tokens((8, 14, 14)), maemm.Rng((0, 0), range(3), 3))
    assert plan.visible.shape[1] == facts["visible_total"] and plan.predict.shape[1] == facts["masked_total"]
    hidden = torch.zeros(3, 1568, dtype=torch.bool).scatter_(1, plan.predict, True).unflatten(1, (8, 196))
    assert (hidden == hidden[:, :1]).all() and (hidden.sum(2) == facts["masked_per_frame"]).all()
    assert (hidden[0] != hidden[1]).any()  # each clip has its own
    together = torch.cat([plan.visible, plan.predict], 1).sort(1).values
    assert (together == torch.arange(1568)).all()


def test_frames_are_hidden_whole():
    plan = maskings.Frame(ratio=0.75).plan("video", lattice_tokens((8, 2, 2)), maemm.Rng((0, 0), range(3), 3))
    assert plan.visible.shape == (3, 8) and (plan.visible.unflatten(1, (2, 4)) // 4).float().std(2).max() == 0
    with pytest.raises(MaemmError, match="none of 2 slots"):
        maskings.Frame(ratio=0.9, count="floor_visible").plan(
            "v", lattice_tokens((2, 2, 2)), maemm.Rng((0,), range(3), 3)
        )


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_running_cells_are_the_published_ones(ratio):
    facts = json.loads((GOLDEN / "tube_mask.json").read_text())
    cells = facts["running_cell_8x14x14"][str(ratio)]
    mask = running_cell((8, 14, 14), ratio, torch.arange(4)).unflatten(1, (8, 14, 14))
    for start in range(4):
        for slot in range(8):
            expected = torch.tensor(cells["cells_by_start"][start][slot], dtype=torch.bool)
            assert torch.equal(mask[start, slot, :2, :2], expected) and torch.equal(
                mask[start, slot, 12:, 12:], expected
            )
    assert (~mask).sum((1, 2, 3)).tolist() == cells["decoded_total"] * 4
    if ratio == 0.5:
        maps = torch.tensor(facts["running_cell_2x4x4_maps"], dtype=torch.bool).flatten(1)
        assert torch.equal(running_cell((2, 4, 4), 0.5, torch.arange(4)), maps)


def test_dual_masking_with_and_without_visible_tokens():
    tokens, rng = lattice_tokens((8, 14, 14), 4), maemm.Rng((1, 1), range(4), 4)
    both = maskings.Tube(ratio=0.9, decode=0.5).plan("video", tokens, rng)
    alone = maskings.Tube(ratio=0.9, decode=0.5, decode_visible=False).plan("video", tokens, rng)
    assert both.predict.shape == (4, 784) and both.counted.sum(1).tolist() == [704] * 4
    assert alone.predict.shape == (4, 704) and alone.counted.min() == 1
    for row in range(4):
        assert set(both.predict[row][both.counted[row] > 0].tolist()) == set(alone.predict[row].tolist())
    # Where slots are no multiple of four, rows differ in how many hidden tokens are decoded.
    odd = maskings.Tube(ratio=0.75, decode=0.5, decode_visible=False).plan("video", lattice_tokens((2, 4, 4), 8),
                                                                           maemm.Rng((1, 1), range(8), 8))  # fmt: skip
    odd.check("video", lattice_tokens((2, 4, 4), 8))
    counts = odd.predict_valid.sum(1)
    assert counts.min() < counts.max() == odd.predict.shape[1] and torch.equal(odd.counted.sum(1), counts.float())


def test_maskings_refuse_what_they_cannot_do():
    with pytest.raises(MaemmError, match="even sides"):
        maskings.Tube(decode=0.5).plan("video", lattice_tokens((2, 3, 4)), maemm.Rng((0,), range(3), 3))
    with pytest.raises(MaemmError, match="grid of time"):
        maskings.Tube().plan("video", lattice_tokens((4, 4)), maemm.Rng((0,), range(3), 3))
    with pytest.raises(MaemmError, match="running cells allow"):
        maskings.Tube(decode=0.3)


# ------------------------------------------------------------------------------------------------- choice of frames
def test_strides_are_the_published_ones():
    assert sampling.by_stride(300, 16, 4, 0.0).tolist() == list(range(0, 64, 4))
    assert sampling.by_stride(300, 16, 4, 0.999999).tolist() == list(range(236, 300, 4))
    starts = {sampling.by_stride(70, 16, 4, place)[0] for place in np.linspace(0, 1, 200, endpoint=False)}
    assert starts == set(range(7))
    short = sampling.by_stride(30, 16, 4, 0.7)
    assert short.tolist() == [0, 4, 8, 12, 16, 20, 24] + [28] * 9
    assert sampling.by_stride(1, 4, 4, 0.5).tolist() == [0, 0, 0, 0]


def test_frames_a_second_follow_the_time_stamps():
    times = np.array([0.0, 0.1, 0.5, 0.6, 1.0])
    assert sampling.by_time(times, 4, 4.0, 0.0).tolist() == [0, 1, 2, 3]  # at 0, .25, .5 and .75 s
    steady = np.arange(100) / 25
    assert sampling.by_time(steady, 4, 5.0, 0.0).tolist() == [0, 5, 10, 15]
    assert sampling.by_time(steady, 4, 5.0, 0.99999)[-1] <= 99
    assert sampling.by_time(np.array([2.0]), 3, 10.0, 0.5).tolist() == [0, 0, 0]


# ------------------------------------------------------------------------------------------------- crops
def test_the_multiscale_crop_has_the_published_boxes():
    boxes = {crop.multiscale_box((i / 40, j / 26), 240, 320, (224, 224)) for i in range(40) for j in range(26)}
    sides = {(h, w) for _, _, h, w in boxes}
    assert sides == {(h, w) for h in (240, 210, 180, 158) for w in (240, 210, 180, 158)} - {
        (240, 180), (180, 240), (240, 158), (158, 240), (210, 158), (158, 210)}  # fmt: skip
    places = {(top, left) for top, left, h, w in boxes if (h, w) == (210, 210)}
    assert len(places) == 13 and (14, 54) in places and (7, 27) in places
    assert all(t >= 0 and t + h <= 240 and x >= 0 and x + w <= 320 for t, x, h, w in boxes)
    near = {crop.multiscale_box((i / 40, 0), 226, 300, (224, 224))[2:] for i in range(40)}
    assert (224, 224) in near and not any(226 in pair for pair in near)  # within 3 pixels it snaps


def test_boxes_stay_inside_whatever_the_frame():
    for height, width in ((1, 1), (3, 500), (500, 3), (17, 16)):
        for u in np.linspace(0, 0.999, 7):
            for t, x, h, w in (
                crop.multiscale_box((u, u), height, width, (16, 16)),
                random_box([u] * DRAWS, height, width, crop.RandomCrop().scale, crop.RandomCrop().ratio),
                crop.center_box(height, width, (16, 16)),
            ):
                assert t >= 0 and x >= 0 and h >= 1 and w >= 1 and t + h <= height and x + w <= width


# ------------------------------------------------------------------------------------------------- resizing
def clips(*sides, frames=3):
    rng = np.random.default_rng(0)
    return [{"x": torch.from_numpy(rng.integers(0, 256, (frames, h, w, 3), dtype=np.uint8))} for h, w in sides]


def test_resizing_equals_pillow():
    modality = Video(size=[4, 16, 24], patch=[2, 8, 8], mean=[0, 0, 0], std=[1, 1, 1])
    samples = clips((40, 30), (16, 24), (9, 50))
    x = modality.preprocess(modality.collate(samples), None).x
    assert x.shape == (3, 3, 3, 16, 24)
    for row, one in enumerate(samples):
        for number, frame in enumerate(one["x"].numpy()):
            pillow = np.asarray(Image.fromarray(frame).resize((24, 16), Image.Resampling.BILINEAR), np.float32)
            assert np.abs(x[row, :, number].permute(1, 2, 0).numpy() * 255 - pillow).max() <= 1.01


def test_matrices_equal_what_torch_does(monkeypatch):
    """The way of GPUs, run on a CPU: the same clips but for rounding to bytes, once for each axis."""
    modality = Video(size=[4, 16, 24], patch=[2, 8, 8])
    raw = modality.collate(clips((40, 30), (16, 24), (9, 50)))
    expected = resize.resize_clips(raw["x"], raw["sides"], (16, 24))

    monkeypatch.setattr(resize, "_on_cpu", lambda x: False)
    found = resize.resize_clips(raw["x"], raw["sides"], (16, 24))
    assert (found - expected).abs().max() <= 1.01 / 255 and found.shape == expected.shape


# ------------------------------------------------------------------------------------------------- the modality
def test_loading_is_bytes_and_the_middle_without_a_draw():
    modality = Video(size=[4, 16, 16], patch=[2, 8, 8], stride=2)
    video = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 20, 30, 3), np.uint8)
    one = modality.load(video, None)["x"]
    assert one.dtype == torch.uint8 and one.shape == (4, 20, 20, 3) and one[:, 0, 0, 0].tolist() == [6, 8, 10, 12]
    drawn = modality.load(video, maemm.Rng((0, 3)))["x"]
    assert drawn.shape[0] == 4 and torch.equal(drawn, modality.load(video, maemm.Rng((0, 3)))["x"])


def test_flips_are_half_and_whole_clips():
    modality = Video(**SMALL, flip=True)
    raw = modality.collate(clips(*[(16, 16)] * 40, frames=4))
    plain, drawn = modality.preprocess(raw, None).x, modality.preprocess(raw, maemm.Rng((0, 0), range(40), 40)).x
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(plain, drawn, strict=True)]
    assert 8 < sum(mirrored) < 32
    assert all(m or torch.equal(a, b) for a, b, m in zip(plain, drawn, mirrored, strict=True))


def test_a_still_picture_is_a_clip_of_one_slot():
    modality = Video(**SMALL)
    picture = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    x = modality.preprocess(modality.collate([modality.load(picture, None)] * 2), None).x
    assert x.shape == (2, 3, 1, 16, 16)
    tokens = modality.tokenize(Preprocessed(x))
    flat = modality.tokenize(Preprocessed(x[:, :, 0]))
    assert tokens.grid == (1, 2, 2) and torch.equal(tokens.values, flat.values)
    twice = modality.tokenize(Preprocessed(x.expand(-1, -1, 2, -1, -1)))
    assert torch.equal(tokens.values, twice.values)
    assert torch.equal(modality.untokenize(tokens.values, tokens), x)


def test_one_model_learns_from_both():
    recipe = {
        "modalities": {"video": {**SMALL, "masking": {"type": "tube", "ratio": 0.5}},
                       "image": {"same_as": "video", "masking": {"type": "random", "ratio": 0.5}}},
        "encoder": {"type": "apart", "dim": 16, "depth": 1, "heads": 2, "prefix": 0},
        "decoder": {"type": "project_last", "dim": 8, "depth": 1, "heads": 2},
    }  # fmt: skip
    model = maemm.build(recipe)
    clip, picture = torch.randn(3, 3, 4, 16, 16), torch.randn(5, 3, 16, 16)
    rng = maemm.Rng((0, 0), range(3), 3)
    alone = model({"video": clip}, rng=rng)
    inputs = {**model.plan({"video": clip}, rng), **model.plan({"image": picture}, maemm.Rng((0, 1), range(5), 5))}
    both = model(inputs)
    assert set(both.terms) == {"reconstruct.video", "reconstruct.image"}
    # The two never meet: the video's part is what it is without the pictures.
    assert torch.allclose(both.pred["video"], alone.pred["video"], atol=1e-6)
    both.total.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_grey_and_colour():
    grey = Video(**SMALL, channels=1)
    assert grey.load(np.full((4, 16, 16, 3), 200, np.uint8), None)["x"].shape == (4, 16, 16, 1)
    assert Video(**SMALL).load(np.full((4, 16, 16, 1), 200, np.uint8), None)["x"].shape == (4, 16, 16, 3)
    with pytest.raises(ValueError, match="has 2 channels"):
        Video(**SMALL).load(np.zeros((4, 16, 16, 2), np.uint8), None)


def test_large_frames_are_shrunk_in_the_worker():
    big = np.random.default_rng(0).integers(0, 256, (4, 160, 160, 3), dtype=np.uint8)
    x = Video(**SMALL).load(big, None)["x"]
    assert x.shape == (4, 16, 16, 3)


def test_only_the_region_is_seen():
    """Of 40 x 80 pixels, rows 20 to 29 and columns 40 to 71, with and without a crop inside it; also of a picture."""
    frames = np.zeros((6, 40, 80, 3), np.uint8)
    frames[:, 20:30, 40:72] = 200
    region = {**SMALL, "region": [0.5, 0.5, 0.25, 0.4]}
    whole = Video(**region, crop=None).load(frames, None)["x"]
    assert whole.shape == (4, 10, 32, 3) and (whole == 200).all()
    for number in range(10):
        drawn = Video(**region, crop={"scale": [0.2, 0.9]}).load(frames, maemm.Rng((0, 0, number, 0)))["x"]
        assert (drawn == 200).all() and drawn.shape[1] * drawn.shape[2] < 320
    assert (Video(**region).load(frames[0], None)["x"] == 200).all()
    assert crop.region_box(3, 3, (0.99, 0.99, 0.01, 0.01)) == (2, 2, 1, 1)


@pytest.mark.parametrize("options, text", [
    ({"size": [4, 16]}, "size must be .int >= 1, int >= 1, int >= 1., got"),
    ({"size": [5, 16, 16]}, "not a multiple of patch"),
    ({"stride": 0}, "stride must be int >= 1"),
    ({"crop": {"scale": [0, 2]}}, "crop.scale"),
    ({"std": [0, 1, 1]}, "std must be .float > 0"),
    ({"mean": [0]}, "mean has 1 numbers"),
    ({"predict_frames": 3}, "use 2 or 4"),
    ({"region": [0, 0, 1]}, "region must be .0 <= float <= 1, "),
    ({"region": [0, 0, 0, 1]}, "has no height"),
    ({"region": [0.5, 0, 0.6, 1]}, "extends beyond the frame"),
])  # fmt: skip
def test_wrong_options_are_one_line(options, text):
    with pytest.raises(MaemmError, match=text) as caught:
        Video(**{**SMALL, **check(Video, options, "modalities.video")})
    assert "\n" not in str(caught.value)


def test_pictures_of_a_clip():
    from matplotlib.figure import Figure

    modality = Video(size=[16, 16, 16], patch=[2, 8, 8])
    signal = torch.rand(3, 16, 16, 16)
    signal[:, :, :8] = float("nan")
    axes = Figure().subplots()
    modality.plot(axes, signal)
    drawn = axes.images[0].get_array()
    assert drawn.shape[2] == 3 and drawn.shape[1] > 3.9 * 16 and np.isclose(drawn[0, 0], 0.6).all()
