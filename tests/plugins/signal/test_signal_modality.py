import math

import numpy as np
import pytest
import torch

import maemm
from maemm.config.options import check
from maemm.contract import Preprocessed
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm_plugins.signal import preprocess
from maemm_plugins.signal.modality import Signal

LEADS = ["I", "II", "V1", "V2"]
DRAW = Rng((0,))


def signal(**options):
    return Signal(**{"size": 32, "patch": 4, "channels": LEADS, "scale": "none"} | options)


def wave(channels=4, length=32, seed=0):
    return np.random.default_rng(seed).standard_normal((channels, length)).astype(np.float32)


def model(**options):
    recipe = {
        "modalities": {"signal": {"size": 32, "patch": 4, "channels": LEADS, "scale": "none"} | options},
        "encoder": {"type": "vit", "dim": 24, "depth": 1, "heads": 2},
        "decoder": {"type": "full", "dim": 12, "depth": 1, "heads": 2},
    }
    torch.manual_seed(0)
    return maemm.build(recipe).eval()


# --------------------------------------------------------------------------------------------------- channels
def test_channels_are_matched_by_name_in_any_order_and_case():
    x = wave()
    one = signal().load({"x": x, "channels": ("v2", " II ", "I", "V1.")}, None)
    assert torch.equal(one["x"], torch.from_numpy(x[[2, 1, 3, 0]])) and one["valid"].all()


def test_missing_channels_are_not_valid_and_unknown_ones_left_out():
    x = wave(3)
    one = signal().load({"x": x, "channels": ("II", "EMG", "V2")}, None)
    assert one["valid"].any(1).tolist() == [False, True, False, True]
    assert torch.equal(one["x"][[1, 3]], torch.from_numpy(x[[0, 2]])) and (one["x"][[0, 2]] == 0).all()


def test_missing_channels_are_neither_seen_nor_predicted_nor_counted():
    whole, part = wave(), wave(2, seed=1)
    made = model()
    modality = made.modalities["signal"]
    loaded = [
        modality.load({"x": whole, "channels": LEADS}, None),
        modality.load({"x": part, "channels": LEADS[:2]}, None),
    ]
    batch = made.preprocess({"signal": modality.collate(loaded)}, None)
    plan = made.plan(batch, Rng((0,), range(2), 2))["signal"].plan
    second = {*plan.visible[1][plan.visible_valid[1]].tolist(), *plan.predict[1][plan.predict_valid[1]].tolist()}
    assert second == set(range(16))  # the tokens of I and II
    assert plan.visible_valid.sum(1).tolist() == [8, 4] and plan.counted.sum(1).tolist() == [24, 12]


def test_a_channel_means_the_same_whatever_else_is_recorded():
    """The features of a two-lead recording are those of a model that knows the two leads only."""
    big, small = model(), model(channels=["V1", "I"])
    state = {key: big.state_dict()[key] for key in small.state_dict()}  # by name: the vectors of V1 and I among them
    small.load_state_dict(state)
    x, features = wave(2), []
    for one in (big, small):
        modality = one.modalities["signal"]
        raw = modality.collate([modality.load({"x": x, "channels": ["V1", "I"]}, None)])
        features.append(one.embed(one.preprocess({"signal": raw}, None))["signal"])
    torch.testing.assert_close(features[0], features[1])


def test_tokens_over_all_channels_need_all_channels():
    with pytest.raises(ValueError, match="lacks V2.*channel_time"):
        signal(tokens="time").load({"x": wave(3), "channels": LEADS[:3]}, None)
    with pytest.raises(MaemmError, match="cannot leave one out"):
        signal(tokens="time", drop_channel=0.1)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (wave(3), "has 3 channels, the model takes 4"),
        ({"x": wave(2), "channels": ["a", "b"]}, "none of the model's channels, only a, b"),
        (wave(4, 0), "no samples"),
        (np.zeros((2, 4, 8)), "channels and time"),
        (np.array([["a"] * 4] * 4), "not numbers"),
        (wave(4, 3), "too short: none of its 3 samples make a whole patch of 4"),
        (np.full((4, 8), 1e39), "32 values are too large for float32"),
    ],
)
def test_wrong_recordings_have_a_reason(raw, text):
    with pytest.raises(ValueError, match=text):
        signal().load(raw, None)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"channels": []}, "1 or more"),
        ({"channels": ["I", " i."]}, "cannot be told apart"),
        ({"mean": [0.0]}, "mean has 1 numbers for 4 channels"),
        ({"std": [1.0, 1.0, 0.0, 1.0]}, "float > 0"),
        ({"gain": (2.0, 1.0)}, "ascending"),
        ({"size": 30}, "not a multiple of patch 4"),
        ({"shift": 17}, "half of size"),
        ({"drop_channel": 1.0}, "0 <= float < 1"),
    ],
)
def test_wrong_options(options, text):
    with pytest.raises(MaemmError, match=text):
        signal(**check(Signal, options, "modalities.signal"))


# ------------------------------------------------------------------------------------------------------ lengths
def test_longer_is_cut_in_the_middle_and_at_random_in_training():
    x = np.tile(np.arange(100, dtype=np.float32), (4, 1))
    assert signal().load(x, None)["x"][0, 0] == 34
    starts = {float(signal().load(x, Rng((0, i)))["x"][0, 0]) for i in range(20)}
    assert len(starts) > 10 and all(0 <= one <= 68 for one in starts)


def test_shorter_is_padded_and_the_padding_counts_for_nothing():
    one = signal().load(wave(4, 10), None)
    tokens = signal().tokenize(Preprocessed(one["x"][None], one["valid"][None]))
    assert one["x"].shape == (4, 32) and tokens.valid.view(4, 8).sum(1).tolist() == [2] * 4  # a patch of 2 is no patch


def test_whole_recordings_pad_to_the_longest():
    modality = signal(whole=True)
    raw = modality.collate([modality.load(wave(4, n), None) for n in (50, 31)])
    assert raw["x"].shape == (2, 4, 52) and raw["valid"].sum((1, 2)).tolist() == [200, 124]
    assert "valid" not in modality.collate([modality.load(wave(4, 36), None)])


@pytest.mark.parametrize("tokens", ["channel_time", "time"])
def test_other_lengths_follow_the_coordinates(tokens):
    made = model(tokens=tokens)
    for length in (4, 64, 400):
        assert made.embed({"signal": torch.randn(2, 4, length)})["signal"].shape == (2, 24)
    long, short = (made.modalities["signal"].tokenize(Preprocessed(torch.zeros(1, 4, n))) for n in (64, 32))
    index = torch.tensor([[3]])
    places = [made.modalities["signal"].position(one, index, "encoder") for one in (long, short)]
    torch.testing.assert_close(*places)


# ------------------------------------------------------------------------------------------- gaps and flat channels
def test_gaps_are_refused_filled_or_hidden():
    x = wave()
    x[1, 5:7], x[2] = np.nan, np.inf
    with pytest.raises(ValueError, match="34 samples are not finite"):
        signal().load(x, None)
    filled = signal(gaps="fill").load(x, None)
    assert filled["valid"].all(1).tolist() == [True, True, False, True]
    assert math.isclose(filled["x"][1, 5], x[1, 4] + (x[1, 7] - x[1, 4]) / 3, rel_tol=1e-4)
    hidden = signal(gaps="hide").load(x, None)
    assert hidden["valid"].sum(1).tolist() == [32, 30, 0, 32] and hidden["x"].isfinite().all()
    x[:, 2::3] = np.nan
    with pytest.raises(ValueError, match="too many gaps"):
        signal(gaps="hide").load(x, None)
    with pytest.raises(ValueError, match="no sample is a finite"):
        signal(gaps="fill").load(np.full((4, 32), np.nan), None)


def test_flat_channels_are_kept_hidden_or_refused():
    x = wave()
    x[3] = 7.0
    assert signal().load(x, None)["valid"].all()
    assert signal(flat="hide").load(x, None)["valid"].any(1).tolist() == [True, True, True, False]
    with pytest.raises(ValueError, match="1 of 4 channels never change"):
        signal(flat="refuse").load(x, None)
    with pytest.raises(ValueError, match="no channel ever changes"):
        signal(flat="hide").load(np.ones((4, 32)), None)


# ------------------------------------------------------------------------------------------------------- prepare
def test_robust_scale_is_that_of_numpy_over_valid_samples():
    x = torch.from_numpy(wave(2, 41))[None] * 3 + 5
    valid = torch.ones_like(x, dtype=torch.bool)
    valid[0, 1, 30:] = False
    found = preprocess.robust(x, valid, 0.0)
    for row, count in ((0, 41), (1, 30)):
        part = x[0, row, :count].numpy()
        low, middle, high = np.quantile(part, [0.25, 0.5, 0.75])
        np.testing.assert_allclose(found[0, row, :count], (part - middle) / (high - low) * 1.3489795, atol=1e-4)
    torch.testing.assert_close(preprocess.robust(x, None, 0.0)[0, 0], found[0, 0])


@pytest.mark.parametrize("scale", [preprocess.robust, preprocess.zscore])
def test_still_channels_and_spikes_stay_finite(scale):
    x = torch.full((1, 3, 100), 1e6)
    x[0, 1, 50], x[0, 2] = 1e6 + 100, torch.randn(100)
    found = scale(x, None, 1e-6)
    assert found.isfinite().all() and (found[0, 0] == 0).all() and found.abs().max() < 20
    nothing = scale(x, torch.zeros_like(x, dtype=torch.bool), 1e-6)
    assert nothing.isfinite().all()


def test_fixed_mean_and_std_keep_the_level():
    modality = signal(mean=[1.0, 0, 0, 0], std=[2.0, 1, 1, 1])
    x = torch.from_numpy(wave())[None]
    found = modality.preprocess({"x": x}, None).x
    torch.testing.assert_close(found[0, 0], (x[0, 0] - 1) / 2)
    torch.testing.assert_close(found[0, 1:], x[0, 1:])


def test_augmentation_is_drawn_for_rows_and_off_without_a_draw():
    modality = signal(gain=(0.5, 2.0), drop_channel=0.4, shift=8)
    x = torch.from_numpy(np.stack([wave(seed=i) for i in range(16)]))
    plain = modality.preprocess({"x": x}, None)
    assert torch.equal(plain.x, x) and plain.valid is None
    whole = modality.preprocess({"x": x}, Rng((1,), range(16), 16))
    part = modality.preprocess({"x": x[3:6]}, Rng((1,), range(3, 6), 16))
    assert torch.equal(whole.x[3:6], part.x) and torch.equal(whole.valid[3:6], part.valid)
    assert whole.valid.any(2).any(1).all() and 0.4 < whole.valid.any(2).float().mean() < 0.8
    assert (whole.x[~whole.valid] == 0).all()


def test_shift_moves_and_marks_what_comes_in():
    x = torch.arange(1.0, 9.0).expand(2, 1, 8)
    moved, valid = preprocess.shift(x, None, torch.tensor([3, -2]))
    assert moved[0, 0].tolist() == [0, 0, 0, 1, 2, 3, 4, 5] and moved[1, 0].tolist() == [3, 4, 5, 6, 7, 8, 0, 0]
    assert torch.equal(valid, moved != 0)


def test_gain_is_log_uniform():
    x = preprocess.gain(torch.ones(1000, 1, 1), torch.linspace(0, 1, 1000)[:, None], 0.5, 2.0)
    assert math.isclose(x.min(), 0.5, rel_tol=1e-5) and math.isclose(x.median(), 1.0, rel_tol=1e-2)
    assert math.isclose(x.max(), 2.0, rel_tol=1e-5)


# ------------------------------------------------------------------------------------------------------- pictures
def test_pictures_shade_what_is_hidden():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    x = torch.from_numpy(wave())
    x[1, 4:12], x[3] = math.nan, math.nan
    signal().plot(axes, x)
    assert len(axes.lines) == 4 and len(axes.collections) == 2 and [one.get_text() for one in axes.texts] == LEADS
    spans = axes.collections[0].get_paths()[0].vertices[:, 0]
    assert (spans.min(), spans.max()) == (4, 12)
    signal().plot(Figure().subplots(), torch.full((4, 32), math.nan))  # nothing known at all
