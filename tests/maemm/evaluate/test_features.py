import numpy as np
import pytest
import torch

from maemm.contract import Plan
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.subset import Subset
from maemm.tasks._shared.embedding import NOT_FINITE, features, raw_values


def test_every_sample_once_in_order_with_labels_and_ids(world):
    model, source = world.model(), world.source(samples=21, unlabelled=[4])
    seen = []
    found = features(model, source, batch=8, on_progress=lambda *at: seen.append(at))["marks"]
    assert found.x.shape == (21, 16) and found.x.dtype == np.float32
    assert found.ids == [f"{i:03d}" for i in range(21)]
    assert found.labels.tolist() == [-1 if i == 4 else i % 4 for i in range(21)]
    assert len(found.labelled) == 20 and found.classes == ("a", "b", "c", "d")
    assert seen == [(8, 21), (16, 21), (21, 21)] and not found.skipped
    x = torch.from_numpy(np.stack([source.read(i, Rng((0,))).raw["marks"] for i in range(21)]))
    with torch.no_grad():
        expected = model.embed({"marks": x})["marks"]
    torch.testing.assert_close(torch.from_numpy(found.x), expected, atol=1e-5, rtol=0)


def test_choices_of_the_embedding(world):
    model, source = world.model(), world.source(samples=6)
    for choice, width in (({"pool": "cls+max"}, 32), ({"layers": [0, 1]}, 32), ({"norm": "after"}, 16)):
        found = features(model, source, **choice)["marks"].x
        assert found.shape == (6, width) and not np.allclose(found[:, :16], features(model, source)["marks"].x)
    assert features(model, source, tokens=True)["marks"].x.shape == (6, 4, 16)
    raw = features(model, source, embed=raw_values)["marks"].x
    assert raw.shape == (6, 64) and np.array_equal(raw[2], source.read(2, Rng((0,))).raw["marks"].ravel())


def test_tokens_of_ragged_samples_say_which_are_real(world):
    found = features(world.model(modalities__marks__ragged=True), world.source(samples=5), tokens=True, batch=2)[
        "marks"
    ]
    assert found.x.shape == (5, 4, 16)
    assert found.valid.tolist() == [[True] * 4, [True, True, False, False]] * 2 + [[True] * 4]
    with pytest.raises(MaemmError, match="no vector of one length"):
        features(world.model(modalities__marks__ragged=True), world.source(samples=2), embed=raw_values)


def test_workers_change_nothing(world):
    model, source = world.model(), world.source(samples=12, bad=[3])
    alone, shared = (features(model, source, batch=4, workers=n)["marks"] for n in (0, 2))
    assert np.array_equal(alone.x, shared.x) and alone.ids == shared.ids and alone.skipped == shared.skipped
    assert np.array_equal(alone.digests, shared.digests)


def test_bad_samples_are_left_out_and_named(world):
    source = world.source(samples=12, bad=[0, 1, 2, 3, 9], nan=[6])
    found = features(world.model(), source, batch=4)["marks"]
    assert found.ids == ["004", "005", "007", "008", "010", "011"] and len(found.digests) == 6
    assert [one.index for one in found.skipped] == [0, 1, 2, 3, 6, 9]
    assert found.skipped[0].reason == "ValueError: broken on purpose" and found.skipped[4].reason == NOT_FINITE
    with pytest.raises(MaemmError, match=r"none of 4 samples gave features \(first: 000: ValueError: broken on purp"):
        features(world.model(), world.source(samples=4, bad=[0, 1, 2, 3]))
    model = world.model()
    model.encoder.norm.weight.data.fill_(float("nan"))
    with pytest.raises(MaemmError, match="none of 5 samples.*000: features are not finite.*the weights"):
        features(model, world.source(samples=5))


def test_digests_tell_content_not_names(world):
    model = world.model()
    one = features(model, world.source(samples=8))["marks"]
    same = features(model, world.source(samples=8, prefix="x-"))["marks"]
    other = features(model, world.source(samples=8, seed=1))["marks"]
    assert np.array_equal(one.digests, same.digests) and one.ids != same.ids
    assert not set(one.digests) & set(other.digests) and len(set(one.digests)) == 8


def test_the_model_comes_back_in_its_mode_and_hides_nothing(world, monkeypatch):
    model, plans = world.model().train(), []
    original = Plan.all_visible
    monkeypatch.setattr(Plan, "all_visible", lambda tokens: plans.append(1) or original(tokens))
    features(model, world.source(samples=4))
    assert model.training and plans and all(one.grad is None for one in model.parameters())


def test_a_stamp_follows_every_file_of_a_source(tmp_path):
    """Also those that lie elsewhere, that are not probed, and that stand behind other sources."""
    from maemm.data.arrays import ArrayFiles
    from maemm.data.labels import Labelled
    from maemm.data.mixture import Mixture, Part
    from maemm.data.paired import Paired
    from maemm.data.tta import TtaView
    from maemm.tasks._shared.inputs import data_stamp

    names = [f"{i:02d}.npy" for i in range(36)]
    for name in names:
        np.save(tmp_path / name, np.zeros((4, 4)))
    (tmp_path / "elsewhere").mkdir()
    files = ArrayFiles(tmp_path, names, [i % 2 for i in range(36)], ["a", "b"], name="m")
    subset = Subset(Labelled(files, ["a", "b"]), range(36))
    pair = Paired({"m": files, "n": files}, names, [(i, i) for i in range(36)])
    sources = [files, subset, TtaView(subset, 0), Mixture({"one": Part(subset, ("m",))}), pair]

    def stamps():
        return [data_stamp(one, tmp_path / "elsewhere") for one in sources]

    before = stamps()
    assert before == stamps()
    np.save(tmp_path / names[7], np.ones((5, 4)))
    assert not set(before) & set(stamps())


def test_a_subset_is_a_source(world):
    source = Subset(world.source(samples=10, bad=[7]), [7, 2, 9])
    found = features(world.model(), source)["marks"]
    assert found.ids == ["002", "009"] and found.skipped[0].id == "007" and found.skipped[0].index == 0
    assert len(source) == 3 and source.fingerprint() != Subset(source.source, [7, 2, 8]).fingerprint()
