"""Lengths, padding, order of tokens, positions, augmentation."""

import math

import numpy as np
import pytest
import torch

import maemm
from maemm import MaemmError, Rng
from maemm.config.options import check
from maemm.contract import Preprocessed
from maemm.contract.patches import patchify
from maemm.contract.positions import sincos
from maemm.model.build import build_model
from maemm_plugins.audio import preprocess as on_device
from maemm_plugins.audio.load import Cut, Wave, load_wave, resample
from maemm_plugins.audio.modality import Audio
from maemm_plugins.audio.positions import StoredTable, period_of, rows_of


def sound(seconds, rate=16000, seed=0, channels=1):
    samples = np.random.default_rng(seed).standard_normal((round(seconds * rate), channels)) * 0.1
    return Wave(samples.astype(np.float32), rate)


def batch_of(audio, *seconds, rng=None):
    return audio.collate([audio.load(sound(one, seed=i), rng) for i, one in enumerate(seconds)])


def model_of(**audio):
    recipe = {
        "modalities": {"audio": {"size": [96, 32], "patch": 16, **audio}},
        "encoder": {"type": "vit", "dim": 32, "depth": 2, "heads": 2},
        "decoder": {"type": "window", "dim": 32, "depth": 2, "heads": 2},
    }
    torch.manual_seed(0)
    return build_model(recipe)


# ------------------------------------------------------------------------------------------------- any length
def test_one_model_learns_embeds_and_reconstructs_any_length():
    model = model_of(seconds=30, size=[512, 32])
    audio = model.modalities["audio"]
    lengths = (0.3, 1, 5, 10, 30)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step, group in enumerate([lengths, (5, 0.3), (1, 1)]):
        batch = model.preprocess({"audio": batch_of(audio, *group)}, None)
        total = model(batch, rng=Rng((0, step), range(len(group)), len(group))).total
        total.backward()
        assert total.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    alone = []
    for i, seconds in enumerate(lengths):
        one = model.preprocess({"audio": audio.collate([audio.load(sound(seconds, seed=i), None)])}, None)
        assert one["audio"].x.shape[1] == audio.bank.frames(round(seconds * 16000)) // 16 * 16
        alone.append(model.embed(one)["audio"])
        out = model(one, rng=Rng((1,)))
        picture = audio.untokenize(out.pred["audio"], audio.tokenize(one["audio"]), out.plans["audio"].predict)
        assert picture.shape == one["audio"].x.shape
        assert picture.isnan().any() == (out.plans["audio"].visible.shape[1] > 0)
    together = model.embed(model.preprocess({"audio": batch_of(audio, *lengths)}, None))["audio"]
    assert (together - torch.cat(alone)).abs().max() < 1e-4  # padding changes nothing


def test_padding_is_neither_seen_nor_predicted_nor_counted():
    model = model_of()
    batch = model.preprocess({"audio": batch_of(model.modalities["audio"], 0.5, 0.9)}, None)
    tokens = model.modalities["audio"].tokenize(batch["audio"])
    assert tokens.grid == (5, 2) and tokens.valid.sum(1).tolist() == [6, 10]  # 48 frames are 3 columns of patches
    plan = model.plan(batch, Rng((0,), range(2), 2))["audio"].plan
    assert (plan.visible_valid.sum(1) + plan.predict_valid.sum(1)).tolist() == [6, 10]
    assert plan.predict[0][plan.predict_valid[0]].max() < 6
    assert model.counts(model.plan(batch, Rng((0,), range(2), 2)))["reconstruct.audio"] == plan.predict_valid.sum()


def test_equal_lengths_need_no_mask():
    audio = Audio(size=[96, 32])
    preprocessed = audio.preprocess(batch_of(audio, 1, 1), None)
    assert preprocessed.valid is None and preprocessed.x.shape == (2, 96, 32)  # 98 frames: the last two make no patch


@pytest.mark.parametrize("bucket, frames", [(None, 48), (64, 64), (96, 96), (1000, 96)])
def test_buckets_keep_the_number_of_shapes_small(bucket, frames):
    audio = Audio(size=[96, 32], bucket=bucket)
    assert audio.preprocess(batch_of(audio, 0.5), None).x.shape[1] == frames


def test_seen_padding_is_part_of_the_clip():
    audio = Audio(size=[96, 32], pad="seen")
    preprocessed = audio.preprocess(batch_of(audio, 0.5, 1), None)
    assert preprocessed.valid is None and preprocessed.x.shape == (2, 96, 32)
    zero = -audio.constants.mean / (audio.constants.std * audio.constants.std_scale)
    assert (preprocessed.x[0, 48:] - zero).abs().max() < 1e-6


def test_too_short_for_a_patch():
    audio = Audio(size=[96, 32])
    with pytest.raises(ValueError, match="too short"):
        audio.load(sound(0.15), None)
    with pytest.raises(MaemmError, match="patch needs 16"):
        audio.preprocess({"wave": torch.randn(1, 1600), "samples": [1600]}, None)
    with pytest.raises(MaemmError, match="shorter than one patch"):
        Audio(size=[96, 32], seconds=0.1)


# ------------------------------------------------------------------------------------------------- tokens
def test_mel_major_is_the_transposed_lattice():
    x = torch.randn(2, 64, 32)
    time, mel = Audio(size=[64, 32], patch=[16, 8]), Audio(size=[64, 32], patch=[16, 8], order="mel_major")
    one, other = time.tokenize(Preprocessed(x)), mel.tokenize(Preprocessed(x))
    assert one.grid == (4, 4) and other.grid == (4, 4)
    assert torch.equal(other.values, patchify(x.transpose(1, 2)[:, None], (8, 16)))
    swapped = other.values.view(2, 4, 4, 8, 16).permute(0, 2, 1, 4, 3).reshape(2, 16, 128)
    assert torch.equal(swapped, one.values)
    assert torch.equal(mel.untokenize(other.values, other), x)
    assert (one.context["time_axis"], other.context["time_axis"]) == (0, 1)


@pytest.mark.parametrize("order", ["time_major", "mel_major"])
def test_overlapping_patches(order):
    audio = Audio(size=[64, 32], patch=16, stride=[10, 8], order=order)
    x = torch.randn(2, 64, 32)
    tokens = audio.tokenize(Preprocessed(x))
    assert math.prod(tokens.grid) == tokens.count == 5 * 3 and set(tokens.grid) == {5, 3}
    back = audio.untokenize(tokens.values, tokens)
    known = ~back.isnan()
    assert known[:, :56].all() and not known[:, 56:].any()  # 40 + 16 frames are reached
    assert (back - x)[known].abs().max() < 1e-6
    assert audio.covered(60) == 56 and audio.covered(15) == 0


def test_overlap_of_published_size():
    assert Audio(size=[1024, 128], patch=16, stride=10).grid == (101, 12)


@pytest.mark.parametrize("shape", [(2, 1, 96, 32), (96, 32)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(MaemmError, match="audio"):
        Audio(size=[96, 32]).tokenize(Preprocessed(torch.zeros(shape)))


# ---------------------------------------------------------------------------------------------- positions
def scrambled(steps, bands, dim):
    """AudioMAE's table: made for bands x steps, used on steps x bands."""
    return rows_of(torch.arange(steps * bands), steps, dim)


def test_stored_tables_are_trimmed_and_extended_by_their_formula():
    long, short = scrambled(64, 8, 48), StoredTable(48, (64, 8), learned=False)
    short.values.copy_(long[None])
    assert period_of(long) == 64
    assert torch.equal(short.table((32, 8))[0], long[: 32 * 8])
    extended = short.table((100, 8))[0]
    assert torch.equal(extended[:512], long)
    assert (extended[512:] - rows_of(torch.arange(512, 800), 64, 48)).abs().max() < 1e-6
    assert len(extended.unique(dim=0)) == 800  # every place has its own code


def test_true_tables_have_the_period_of_the_mel_bands():
    true = sincos(
        torch.stack(torch.meshgrid(torch.arange(10.0), torch.arange(4.0), indexing="ij"), -1).flatten(0, 1), 16
    )
    assert period_of(true) == 4
    table = StoredTable(16, (10, 4), learned=False)
    table.values.copy_(true[None])
    assert (table.table((12, 4))[0, 40:] - sincos(torch.tensor([[10.0, 0], [11.0, 3]]), 16)[[0, 0, 0, 0, 1, 1, 1, 1]])[
        [0, 7]
    ].abs().max() < 1e-6


def test_learned_tables_are_resized_for_longer_clips():
    table = StoredTable(16, (6, 2), learned=True)
    assert period_of(table.values[0].detach()) is None
    assert torch.equal(table.table((3, 2)), table.values[:, :6])
    assert table.table((9, 2)).shape == (1, 18, 16)


# ------------------------------------------------------------------------------------------------- waveforms
@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 44099, 15999])
def test_resampling_keeps_pitch_and_length(rate):
    time = torch.arange(rate) / rate
    wave = resample(torch.sin(2 * torch.pi * 440 * time), rate, 16000)
    assert abs(len(wave) - 16000) <= 1
    assert abs(int(torch.fft.rfft(wave).abs().argmax()) - 440) <= 1


@pytest.mark.parametrize("channel, expected", [("mean", 0.375), (0, 1.0), (2, 0.25)])
def test_channels(channel, expected):
    base = sound(0.5)
    multilabel = Wave(base.samples * np.array([1, 0.5, 0.25, 0.125, 0]), 16000)
    wave = load_wave(multilabel, Cut(16000, 99999, 400, channel), None)
    assert (wave - torch.from_numpy(base.samples[:, 0]) * expected).abs().max() < 1e-6


def test_crops():
    ramp = Wave(np.linspace(-1, 1, 160_000), 16000)
    cut = Cut(16000, 16000, 400, crop="random")
    starts = {round(load_wave(ramp, cut, Rng((0, i)))[0].item(), 4) for i in range(20)}
    assert len(starts) > 15 and all(-1 <= one <= 0.81 for one in starts)
    assert torch.equal(load_wave(ramp, cut, Rng((0, 1))), load_wave(ramp, cut, Rng((0, 1))))
    assert load_wave(ramp, cut, None)[0] == -1
    assert load_wave(ramp, Cut(16000, 16000, 400, crop="head"), Rng((0,)))[0] == -1
    assert abs(load_wave(ramp, Cut(16000, 16000, 400, crop="center"), None)[0] + 0.1) < 1e-3


def test_a_silent_part_is_not_taken_where_there_is_sound():
    half = np.zeros(160_000, np.float32)
    half[:40_000] = np.random.default_rng(0).standard_normal(40_000) * 0.1
    cut, kept = Cut(16000, 8000, 400), 0
    for i in range(20):
        try:
            kept += bool(load_wave(Wave(half, 16000), cut, Rng((i,))).any())
        except ValueError as error:
            assert "silent" in str(error)
    assert kept >= 12  # one try would find sound in 6 of 20


@pytest.mark.parametrize("at", [0, 60_000, 150_000])
def test_where_nothing_is_drawn_a_silent_beginning_is_passed_over(at):
    """Evaluation reads without a draw: a recording that begins with digital silence is not a silent one."""
    samples = np.zeros(160_000, np.float32)
    samples[at : at + 10_000] = np.random.default_rng(0).standard_normal(10_000) * 0.1
    cut = Cut(16000, 40_000, 400)
    wave = load_wave(Wave(samples, 16000), cut, None)
    assert wave.any() and torch.equal(wave, load_wave(Wave(samples, 16000), cut, None))


@pytest.mark.parametrize(
    "wave, what",
    [
        (np.zeros(16000), "silent"),
        (np.full(16000, 0.3), "silent"),
        (np.zeros((0, 1)), "no samples"),
        (np.array([0.1, np.nan, np.inf] * 9000), "10400 samples are not finite"),
        (np.arange(16000.0), "full scale is 1"),
        (np.random.default_rng(0).standard_normal(16000)[:, None] * [0.1, -0.1], "cancel"),
        (np.ones((16000, 65)), "65 channels"),
    ],
)
def test_what_cannot_be_used(wave, what):
    with pytest.raises(ValueError, match=what):
        Audio(size=[96, 32]).load(Wave(wave, 16000), None)


@pytest.mark.parametrize("rate", [0, 1, 10**7])
def test_absurd_rates(rate):
    with pytest.raises(ValueError, match="rate"):
        Audio(size=[96, 32]).load(Wave(np.zeros(100), rate), None)


def test_silence_may_be_kept():
    audio = Audio(size=[96, 32], silent="keep")
    preprocessed = audio.preprocess(audio.collate([audio.load(Wave(np.zeros(16000), 16000), None)]), None)
    assert preprocessed.x.isfinite().all()
    assert audio.target(audio.tokenize(preprocessed), torch.tensor([[0, 1]])).isfinite().all()


# ------------------------------------------------------------------------------------------------- augmentation
def test_roll_really_rolls():
    wave = torch.zeros(3, 100)
    wave[:, 0] = 1.0
    rolled = on_device.roll(wave, torch.tensor([100, 50, 100]), Rng((0,), range(3), 3))
    places = rolled.argmax(1).tolist()
    assert (rolled.sum(1) == 1).all() and len(set(places)) == 3 and places[1] < 50


def test_gain_is_around_one():
    factors = torch.cat([on_device.gain(torch.ones(1, 1), Rng((i,)))[0] for i in range(400)])
    assert factors.min() > 0.5 and factors.max() < 1.5
    assert abs(factors.mean() - 1) < 0.02 and abs(factors.var() - 1 / 84) < 0.003  # Beta(10, 10): variance 1 / 84


def test_spec_augment_hides_narrow_bands():
    x = torch.full((8, 100, 32), -5.0)
    out = on_device.spec_augment(x, Rng((0,), range(8), 8), 8, 20)
    frames, mels = (out == 0).all(2).sum(1), (out == 0).all(1).sum(1)
    assert (frames < 20).all() and (mels < 8).all() and frames.max() > 3 and mels.max() > 1


def test_mixup_mixes_neighbours_whatever_the_split():
    rng, wave = Rng((0,), range(6), 6), torch.randn(6, 50)
    samples = torch.tensor([50, 30, 50, 50, 50, 50])
    wave = on_device.without_mean(wave * on_device.inside(samples, 50), samples)
    mixed, mix = on_device.mixup(wave, samples, rng, 1.0)
    assert mix.partner.tolist() == [1, 0, 3, 2, 5, 4] and (mix.fraction > 0.1).all() and (mix.fraction < 0.9).all()
    expected = mix.fraction[1] * wave[1] + (1 - mix.fraction[1]) * wave[0]
    expected = on_device.without_mean((expected * (torch.arange(50) < 30))[None], samples[1:2])
    assert (mixed[1] - expected).abs().max() < 1e-6 and (mixed[1, 30:] == 0).all()
    part, _ = on_device.mixup(wave[2:4], samples[2:4], Rng((0,), (2, 3), 6), 1.0)
    assert torch.equal(part, mixed[2:4])
    same, none = on_device.mixup(wave, samples, rng, 0.0)
    assert (none.fraction == 1).all() and (same - wave).abs().max() < 1e-6


def test_noise_of_own_rows_alone():
    x = torch.zeros(4, 8, 4)
    whole = on_device.noise(x, Rng((0,), range(4), 4), 0.1)
    part = on_device.noise(x[:2], Rng((0,), (2, 3), 4), 0.1)
    assert torch.equal(part, whole[2:]) and whole.min() >= 0 and whole.max() <= 0.1


def test_all_augmentations_together_are_repeatable():
    audio = Audio(size=[96, 32], gain=True, roll=True, mixup=0.5, noise=0.1, spec_augment={"frequency": 8, "time": 20})
    raw, rng = batch_of(audio, 0.5, 1.0), Rng((0,), range(2), 2)
    one, again, plain = audio.preprocess(raw, rng), audio.preprocess(raw, rng), audio.preprocess(raw, None)
    assert torch.equal(one.x, again.x) and one.x.isfinite().all() and not torch.equal(one.x, plain.x)
    assert set(one.info) == {"mixed_with", "mix_share"} and not plain.info


@pytest.mark.parametrize(
    "options, what",
    [
        ({"size": [96, 32, 3]}, "size must be .int >= 1, int >= 1., got"),
        ({"size": [90, 32]}, "multiple of patch"),
        ({"channels": 2}, "one channel"),
        ({"mixup": 2.0}, "mixup"),
        ({"std": 0.0}, "float > 0"),
        ({"mean": math.nan}, "finite number"),
        ({"channel": -1}, "channel must be 'mean' . int >= 0"),
        ({"rate": 10**12}, "rate must be "),
        ({"seconds": math.nan}, "finite number"),
        ({"bucket": -3}, "bucket must be int >= 1"),
        ({"noise": -1.0}, "noise must be float >= 0"),
        ({"patch": 16, "stride": 0}, "stride"),
    ],
)
def test_wrong_options(options, what):
    with pytest.raises(MaemmError, match=what):
        Audio(**check(Audio, {"size": [96, 32], **options}, "modalities.audio"))


def test_measured_constants_replace_published_ones():
    audio = Audio(size=[96, 32], mean=-5.0, std=4.0)
    assert audio.constants == (-5.0, 4.0, 2.0)
    assert (audio.denormalize_input(torch.tensor([0.0, 1.0])) == torch.tensor([-5.0, 3.0])).all()


# ------------------------------------------------------------------------------------------------- to look at
@pytest.mark.parametrize(
    "frames, times, bands", [(96, "0.8 s", "48 mel"), (1024, "7.5 s", "48 mel"), (16, "0.1 s", "48 mel")]
)
def test_pictures_have_axes_of_seconds_and_mel_bands(frames, times, bands):
    from matplotlib.figure import Figure

    audio = Audio(size=[96, 64])
    signal = torch.zeros(frames, 64)
    signal[: frames // 2] = float("nan")
    axes = Figure().add_subplot()
    axes.set_xticks([])
    audio.plot(axes, signal)
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    assert (right, top) == (pytest.approx(frames * 0.01), 64)
    texts = [[one.get_text() for one in side] for side in (axes.get_xticklabels(), axes.get_yticklabels())]
    assert texts[0][-1] == times and texts[1][-1] == bands
    assert all(0 < place < right for place in axes.get_xticks())


# ------------------------------------------------------------------------------------------------- to listen to
def test_the_reconstruction_can_be_heard():
    from maemm_plugins.audio.sound import to_wave

    audio = Audio(size=[96, 64])
    time = np.arange(16000) / 16000
    raw = Wave((0.3 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32), 16000)
    x = audio.preprocess(audio.collate([audio.load(raw, None)]), None).x
    wave = to_wave(audio.denormalize_input(x), audio.bank)
    assert wave.isfinite().all() and abs(wave.shape[1] - 96 * 160) < 700
    assert abs(int(torch.fft.rfft(wave[0], n=16000).abs().argmax()) - 1000) < 40
    hidden = x.clone()
    hidden[:, 40:] = float("nan")
    piece = audio.interactive({"input": x, "visible": hidden, "reconstruction": x})
    assert piece.count("<audio") == 2 and "http" not in piece and len(piece) < 300_000
    assert audio.interactive({"input": x}) is None


def test_public_api_takes_bare_tensors():
    model = model_of()
    out = model({"audio": torch.randn(2, 96, 32)}, rng=maemm.Rng((0,), range(2), 2))
    assert out.pred["audio"].shape == (2, 9, 256) and model.embed({"audio": torch.randn(1, 160, 32)})[
        "audio"
    ].shape == (1, 32)
