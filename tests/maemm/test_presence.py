"""Samples that lack a modality: not seen, not predicted, not counted, in no pair."""

import pytest
import torch

from maemm import MaemmError, Rng, registry
from maemm.contract import Preprocessed
from maemm.contract.rng import seeded
from maemm.data.loader import Loader
from maemm.data.order import ShuffledBatches
from maemm.data.single_pass import each
from maemm.model.build import build_model
from maemm.ui.pictures import make_rows

pytestmark = pytest.mark.usefixtures("toys")


STREAMS = {"type": "streams", "dim": 16, "depth": 1, "joint_depth": 2, "heads": 2, "streams": ["toy", "other"]}
VIT = {"type": "vit", "dim": 16, "depth": 2, "heads": 2}
CONTRASTIVE = {"pair": ["toy", "other"], "weight": 0.5, "both": True}


def made(encoder=STREAMS, masking="random"):
    recipe = {
        "modalities": {name: {"type": "toy", "masking": {"type": masking, "ratio": 0.5}} for name in ("toy", "other")},
        "encoder": encoder,
        "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2, "prefix": "none"},
        "objectives": {"reconstruct": {}, **({"contrastive": CONTRASTIVE} if encoder is STREAMS else {})},
    }
    with seeded(0):
        return build_model(recipe)


def batch(rows=4, **present):
    values = torch.Generator().manual_seed(0)
    made = {name: torch.randn(rows, 1, 8, 8, generator=values) for name in ("toy", "other")}
    return {name: Preprocessed(x, present=torch.tensor(present[name]) if name in present else None)
            for name, x in made.items()}  # fmt: skip


def rng(*rows):
    return Rng((0,), rows, 4)


def without(one, kept):
    return {name: Preprocessed(value.x[kept], value.valid) for name, value in one.items()}


# ------------------------------------------------------------------------------------------------- the model
@pytest.mark.parametrize("encoder", [STREAMS, VIT], ids=["streams", "vit"])
@pytest.mark.parametrize("masking", ["random", "block", "inverse_block"])
def test_terms_of_an_absent_modality_are_those_of_the_batch_without_the_sample(encoder, masking):
    model = made(encoder, masking)
    whole = batch(other=[True, True, False, True])
    out = model(whole, rng=rng(0, 1, 2, 3))
    kept = model(without(batch(), [0, 1, 3]), rng=rng(0, 1, 3))
    assert out.terms.keys() == kept.terms.keys()
    for name in out.terms.keys() - {"reconstruct.toy"}:  # the sample has the other modality, which is learned from
        assert float(out.parts[name].count) == float(kept.parts[name].count)
        assert torch.allclose(out.terms[name], kept.terms[name], atol=1e-6), name
    # The half that is there goes through the model as if nothing stood beside it.
    if encoder is VIT:
        alone = model({"toy": batch()["toy"].x[2:3]}, rng=rng(2))
        assert torch.allclose(out.loss["toy"][2], alone.loss["toy"][0], atol=1e-5)
    counts = model.counts(model.plan(whole, rng(0, 1, 2, 3)))
    assert {name: float(term.count) for name, term in out.parts.items()} == {k: float(v) for k, v in counts.items()}


def test_what_fills_the_place_changes_nothing():
    model = made().eval()
    one, other = batch(other=[True, False, True, True]), batch(other=[True, False, True, True])
    other["other"].x[1] = 100.0
    first, second = (model(some, rng=rng(0, 1, 2, 3)) for some in (one, other))
    for name, value in first.terms.items():
        assert torch.equal(value, second.terms[name]), name
    plan = first.plans["other"]
    assert not plan.visible_valid[1].any() and not plan.predict_valid[1].any() and not plan.counted[1].any()


@pytest.mark.parametrize("encoder", [STREAMS, VIT], ids=["streams", "vit"])
def test_a_modality_that_nobody_has_gives_no_loss_and_finite_gradients(encoder):
    model = made(encoder)
    values = torch.randn(3, 1, 8, 8)
    gone = torch.zeros(3, dtype=torch.bool)
    preprocessed = model.preprocess({"toy": {"x": values}}, None, {"toy": ~gone, "other": gone})
    assert list(preprocessed) == ["toy", "other"] and preprocessed["other"].x.shape == values.shape
    out = model(preprocessed, rng=Rng((0,), range(3), 3))
    for name in out.parts.keys() - {"reconstruct.toy"}:
        assert float(out.parts[name].count) == 0 and float(out.parts[name].mean.detach()) == 0, name
    out.total.backward()
    gradients = {name: one.grad for name, one in model.named_parameters()}
    assert all(one is not None and one.isfinite().all() for one in gradients.values())  # nobody waits for one
    assert float(out.total.detach()) > 0 and not gradients["modalities.other.embedding.weight"].any()
    assert gradients["modalities.toy.embedding.weight"].any()


def test_gradients_equal_those_of_the_batch_without_the_pair():
    model = made()
    absent = model(batch(toy=[True, True, True, False], other=[True, True, True, False]), rng=rng(0, 1, 2, 3))
    absent.total.backward()
    found = {name: one.grad.clone() for name, one in model.named_parameters()}
    model.zero_grad()
    model(without(batch(), [0, 1, 2]), rng=rng(0, 1, 2)).total.backward()
    for name, one in model.named_parameters():
        assert torch.allclose(found[name], one.grad, atol=1e-6), name


def test_pictures_leave_the_place_grey():
    rows = make_rows(made(), batch(other=[False, True, True, True]))
    for signals in rows["other"].columns.values():
        assert signals[0].isnan().all() and not signals[1].isnan().all()
    assert not rows["toy"].columns["input"].isnan().any()


# ------------------------------------------------------------------------------------------------- the loader
def source(**options):
    return registry.find("sources", "toy")(None, None, samples=16, **options)


def loader(missing, **options):
    model = made()
    return Loader(source(**options), model.modalities, ShuffledBatches(16, 8, 0), seed=0, missing=missing)


def test_by_default_such_a_sample_is_bad_and_named():
    batches = [*loader("skip", lacks={"other": [3]}).batches(0, 2)]
    found = [bad for one in batches for bad in one.bad]
    assert [(bad.id, bad.reason) for bad in found] == [("toy-3", "ValueError: the sample has no 'other', only 'toy'")]
    assert all(not one.present and "toy-3" not in one.ids for one in batches)


def test_allowed_it_keeps_its_place():
    batches = [*loader("allow", lacks={"other": [3], "toy": [5, 6]}).batches(0, 2)]
    assert not any(one.bad for one in batches)
    for one in batches:
        assert one.raw["toy"]["x"].shape == one.raw["other"]["x"].shape == (8, 1, 8, 8)
        for name, gone in (("toy", {"toy-5", "toy-6"}), ("other", {"toy-3"})):
            assert one.present[name].tolist() == [id not in gone for id in one.ids]
    assert "other" not in next(loader("allow", lacks={"other": range(16)}).batches(0, 1)).raw


def test_workers_tell_the_same():
    lacks = {"other": [3, 7], "toy": [5]}
    modalities = {name: registry.find("modalities", "toy")() for name in ("toy", "other")}
    options = {"seed": 0, "missing": "allow", "pin": False}
    here, there = (
        [*Loader(source(lacks=lacks), modalities, ShuffledBatches(16, 8, 0), workers=workers, **options).batches(0, 2)]
        for workers in (0, 1)
    )
    for one, other in zip(here, there, strict=True):
        assert one.ids == other.ids
        for name in ("toy", "other"):
            assert torch.equal(one.present[name], other.present[name])
            assert torch.equal(one.raw[name]["x"], other.raw[name]["x"])


def test_a_sample_without_anything_is_bad_all_the_same():
    batches = [*loader("allow", lacks={"other": [3], "toy": [3]}).batches(0, 2)]
    assert [bad.reason for one in batches for bad in one.bad] == ["ValueError: the sample has no 'toy', only nothing"]


def test_evaluation_leaves_out_what_it_cannot_compare():
    batches = [*each(source(lacks={"other": [3]}), made().modalities, batch=16)]
    assert len(batches[0].ids) == 15 and batches[0].bad[0].id == "toy-3"
    alone = [*each(source(lacks={"other": [3]}), {"toy": made().modalities["toy"]}, batch=16)]
    assert len(alone[0].ids) == 16 and not alone[0].bad


def test_presence_reaches_the_device_with_the_batch():
    moved = next(loader("allow", lacks={"other": [3]}).batches(0, 1)).to("meta")
    assert moved.present["other"].device.type == "meta"


def test_an_absent_modality_needs_an_example(monkeypatch):
    model = made()
    monkeypatch.setattr(type(model.modalities["other"]), "example", lambda *_: (_ for _ in ()).throw(MaemmError("no")))
    with pytest.raises(MaemmError, match="no"):
        model.preprocess({"toy": {"x": torch.zeros(1, 1, 8, 8)}}, None, {"other": torch.zeros(1, dtype=torch.bool)})
