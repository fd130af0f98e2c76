"""Reconstruction error as a score: of each sample alone, every token hidden once, bad samples left out."""

import csv
import json

import numpy as np
import pytest
import torch

import maemm
from maemm.__main__ import main
from maemm.contract import Plan, Preprocessed, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.grid import GridModality
from maemm.contract.rng import Rng
from maemm.model.build import build_model
from maemm.model.decoders.full import Full
from maemm.model.encoders.vit import ViT
from maemm.model.masking.random import Random
from maemm.model.model import Model
from maemm.tasks._shared.scoring import PerSampleRng, _only, score_samples
from maemm.tasks.score.run import score_data


class Series(GridModality):
    """(B, 1, L), padded to the longest of the batch."""

    def load(self, raw, rng):
        return {"x": torch.from_numpy(raw)}

    def collate(self, samples):
        longest = max(one["x"].shape[-1] for one in samples)
        x = torch.zeros(len(samples), 1, longest)
        for row, one in zip(x, samples, strict=True):
            row[:, : one["x"].shape[-1]] = one["x"]
        lengths = torch.tensor([one["x"].shape[-1] for one in samples])
        return {"x": x, "valid": torch.arange(longest) < lengths[:, None]}

    def preprocess(self, raw, rng):
        return Preprocessed(raw["x"], raw["valid"])


class Lengths(Source):
    """Series of 8 to 16 values; ``trouble`` cannot be read, ``nan`` holds a NaN."""

    classes = ["a", "b"]

    def __init__(self, n=12, trouble=(), nan=(), even=False):
        self.n, self.trouble, self.nan, self.even = n, trouble, nan, even

    def __len__(self):
        return self.n

    def name(self, index):
        return f"series-{index}"

    def length(self, index):
        return 16 if self.even else 8 + 2 * (index % 5)

    def read(self, index, rng):
        if index in self.trouble:
            raise ValueError("broken")
        x = np.random.default_rng(index).normal(size=(1, self.length(index))).astype("float32")
        if index in self.nan:
            x[0, 3] = np.nan
        return Sample({"series": x}, self.name(index), index % 2 if index % 3 else None)


def model(ratio=0.5, masking=None, decoder=True):
    torch.manual_seed(0)
    modality = Series(size=(16,), patch=(2,), channels=1, normalize="none")
    encoder = ViT(["series"], dim=16, depth=1, heads=2)
    full = Full({"series": 2}, 16, 1, dim=16, depth=1, heads=2) if decoder else None
    modality.connect(16, 16 if decoder else None)
    return Model({"series": modality}, masking or Random(ratio=ratio), encoder, full)


@pytest.mark.parametrize("ratio", [0.3, 0.75])
def test_a_score_is_the_sample_s_own(ratio):
    source, net = Lengths(), model(ratio).train()
    whole = score_samples(net, source, batch=12, seed=3)
    assert net.training
    for size in (1, 5):
        other = score_samples(net, source, batch=size, seed=3)
        np.testing.assert_allclose(other.samples, whole.samples, rtol=1e-5)
        np.testing.assert_allclose(other.tokens, whole.tokens, rtol=1e-4, atol=1e-6)
    assert not np.allclose(score_samples(net, source, batch=12, seed=4).samples, whole.samples)
    counts = [source.length(index) // 2 for index in range(12)]
    assert whole.tokens.shape == (12, 8) and (~np.isnan(whole.tokens)).sum(1).tolist() == counts
    np.testing.assert_allclose(whole.samples, np.nanmean(whole.tokens, 1), rtol=1e-5)
    assert whole.ids[3] == "series-3" and whole.labels.tolist()[:5] == [-1, 1, 0, -1, 0]
    assert whole.spans == {"series": (0, 8)} and whole.indices.tolist() == list(range(12))
    assert whole.worst(2).tolist() == np.argsort(-whole.samples)[:2].tolist()


def test_the_error_is_that_of_the_plans():
    net, source = model().eval(), Lengths(1, even=True)
    found = score_samples(net, source, plans=3, seed=7)
    x = {"series": torch.from_numpy(source.read(0, Rng((0,))).raw["series"])[None]}
    total, times = torch.zeros(8), torch.zeros(8)
    for number in range(15):
        if number >= 3 and times.all():
            break
        out = net(net.plan(x, Rng((7, "score", 0, number))))
        total[out.plans["series"].predict[0]] += out.loss["series"][0].detach()
        times[out.plans["series"].predict[0]] += 1
    np.testing.assert_allclose(found.tokens[0], total / times, rtol=1e-5)


class Last(Random):
    """Hides the last two tokens and no others; the first of them is visible too, so it does not count."""

    def plan(self, name, tokens, rng):
        every = tokens.all_indices()
        return Plan(every[:, :-1], every[:, -2:])


def test_tokens_that_are_never_hidden_have_no_error():
    found = score_samples(model(masking=Last()), Lengths(even=True), plans=2)
    assert np.isnan(found.tokens[:, :7]).all() and np.isfinite(found.tokens[:, 7]).all()
    np.testing.assert_allclose(found.samples, found.tokens[:, 7], rtol=1e-6)
    with pytest.raises(MaemmError, match="none of 12 samples has a finite score"):
        score_samples(model(0.0), Lengths(even=True))


class Twice(Random):
    """Two plans for every sample."""

    def plan(self, name, tokens, rng):
        one, two = (super(Twice, self).plan(name, tokens, rng.fold_in(k)) for k in (0, 1))
        rows = torch.arange(tokens.batch).repeat(2)
        return Plan(torch.cat([one.visible, two.visible]), torch.cat([one.predict, two.predict]), rows=rows)


def test_several_plans_of_a_sample():
    net, source = model(masking=Twice(ratio=0.5)), Lengths(6, even=True)
    whole = score_samples(net, source, plans=1, batch=6)
    assert np.isfinite(whole.tokens).all()
    np.testing.assert_allclose(score_samples(net, source, plans=1, batch=4).samples, whole.samples, rtol=1e-5)
    inputs = net.plan({"series": torch.rand(3, 1, 16)}, Rng((1,), range(3), 3))["series"]
    some = _only(inputs, torch.tensor([False, True, True]), inputs.plan.rows).plan
    assert some.rows.tolist() == [1, 2, 1, 2] and torch.equal(some.predict, inputs.plan.predict[[1, 2, 4, 5]])


def test_bad_samples_are_left_out_and_told():
    found = score_samples(model(), Lengths(trouble=(2, 4), nan=(7,)), batch=2)
    assert len(found) == 9 and found.indices.tolist() == [0, 1, 3, 5, 6, 8, 9, 10, 11]
    assert [(one.index, one.id, one.reason) for one in found.skipped] == [
        (2, "series-2", "ValueError: broken"),
        (4, "series-4", "ValueError: broken"),
        (7, "series-7", "the score is not a finite number"),
    ]
    clean = score_samples(model(), Lengths(), batch=12)
    np.testing.assert_allclose(found.samples, clean.samples[found.indices], rtol=1e-5)


def test_mistakes():
    with pytest.raises(MaemmError, match="needs a decoder"):
        score_samples(model(decoder=False), Lengths())
    with pytest.raises(MaemmError, match="plans is 0"):
        score_samples(model(), Lengths(), plans=0)
    with pytest.raises(MaemmError, match=r"none of 2 samples can be read \(first: series-0: ValueError: broken\)"):
        score_samples(model(), Lengths(2, trouble=(0, 1)))
    with pytest.raises(MaemmError, match="no samples"):
        score_samples(model(), Lengths(0))
    with pytest.raises(MaemmError, match="give a file with -o"):
        score_data(model(), Lengths(), pictures=2)


def test_each_draw_gives_every_row_its_own_numbers():
    both = PerSampleRng([(1, 2), (1, 3)], (1,))
    assert both.uniform("x", 2, 3).shape == (2, 2, 3)
    assert torch.equal(both.uniform("x", 4)[1:], Rng((1, 3)).uniform("x", 4))
    assert torch.equal(both.fold_in("m").uniform("x", 4)[:1], Rng((1, 2, "m")).uniform("x", 4))


# ------------------------------------------------------------------------------------------------ files
def test_tables_and_pictures(tmp_path):
    done = []
    made = score_data(
        model(), Lengths(trouble=(2,)), tmp_path / "s.csv", pictures=3, on_progress=lambda *two: done.append(two)
    )
    table = list(csv.reader((tmp_path / "s.csv").read_text().splitlines()))
    assert table[0] == ["id", "label", "score"] and len(table) == 12 and done == [(12, 12)]
    assert [row[:2] for row in table[1:4]] == [["series-0", ""], ["series-1", "b"], ["series-3", ""]]
    assert float(table[1][2]) == pytest.approx(made.scores.samples[0], rel=1e-8)
    assert made.pictures == tmp_path / "s-worst.png" and made.pictures.read_bytes().startswith(b"\x89PNG")
    assert "11 samples scored, 1 skipped (first: series-2: ValueError: broken)" in str(made)
    assert f"  {made.scores.samples.max():.4g}  {made.scores.ids[made.scores.worst(1)[0]]}" in str(made)

    made = score_data(model(), Lengths(), tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as file:
        assert np.array_equal(file["scores"], made.scores.samples) and file["ids"][1] == "series-1"
        assert np.array_equal(file["tokens"], made.scores.tokens, equal_nan=True)
        assert file["modalities"].tolist() == ["series"] and file["spans"].tolist() == [[0, 8]]
    assert made.pictures is None and score_data(model(), Lengths()).path is None
    assert sorted(one.name for one in tmp_path.iterdir()) == ["s-worst.png", "s.csv", "s.npz"]


RECIPE = {
    "modalities": {"toy": {"type": "toy", "size": 8, "patch": 2, "masking": {"type": "random", "ratio": 0.5}}},
    "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
    "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
    "data": {"source": {"type": "toy", "samples": 20, "bad": [5]}, "root": "x", "workers": 2},
}


def test_the_command_scores_a_model_on_its_own_data(tmp_path, monkeypatch, capsys):
    from pathlib import Path

    from maemm import registry

    monkeypatch.setenv(registry.VARIABLE, str(Path(__file__).parents[1] / "toy_plugin"))
    registry.clear_cache()
    monkeypatch.chdir(tmp_path)
    maemm.save(build_model(RECIPE), "m.safetensors")
    assert main(["score", "m.safetensors", "-o", "s.csv", "--plans", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], told["skipped"], told["pictures"], len(told["worst"])) == (19, 1, None, 10)
    alone = maemm.score("m.safetensors", plans=2, workers=0, batch=7)
    assert alone.samples.mean() == pytest.approx(told["mean"], rel=1e-5)
    assert main(["score", "m.safetensors", "-o", "s.csv", "data.wrkers=2"]) == 2
    assert "'data.wrkers' means nothing here" in capsys.readouterr().err
    registry.clear_cache()
