"""Modalities that are only encoded or only decoded: plans, losses, features, and what recipes refuse."""

import numpy as np
import pytest
import torch

import maemm
from maemm import config, registry
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.model.build import build_model
from maemm.ui.pictures import make_rows

IMAGE = {"type": "image", "size": 16, "patch": 4, "normalize": "none"}
BASE = {
    "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
    "decoder": {"type": "full", "dim": 8, "depth": 1, "heads": 2},
    "data": {"root": None},
}


def model_of(second, joint, decoder="full", **more):
    recipe = {**BASE, "modalities": {"a": dict(IMAGE), "b": {**IMAGE, **second}}}
    if decoder != "full":
        recipe["decoder"] = {"type": decoder, "dim": 8, "heads": 2}
    if joint:
        recipe["masking"] = {"type": "dirichlet", "budget": 8}
    torch.manual_seed(0)
    return build_model(config.load({**recipe, **more}, {}))


def batch_of(model, rows=3):
    return {name: m.example(rows, Rng((name,), range(rows), rows)) for name, m in model.modalities.items()}


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("decoder", ["full", "cross"])
def test_only_encoded(joint, decoder):
    model = model_of({"only": "encode"}, joint, decoder).train()
    inputs = model.plan(batch_of(model), Rng((0, 0), range(3), 3))
    assert inputs["b"].plan.predict.shape == (3, 0) and inputs["b"].plan.visible.shape[1] > 0
    out = model(inputs)
    assert set(out.parts) == {"reconstruct.a"} == set(model.counts(inputs)) and set(out.loss) == {"a"}
    assert not any("heads.b" in name for name, _ in model.named_parameters())
    out.total.backward()
    assert model.modalities["b"].embedding.weight.grad.abs().sum() > 0
    assert set(model.embed(batch_of(model))) == {"a", "b"}


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("decoder", ["full", "cross"])
def test_only_decoded(joint, decoder):
    model = model_of({"only": "decode"}, joint, decoder).train()
    inputs = model.plan(batch_of(model), Rng((0, 0), range(3), 3))
    plan = inputs["b"].plan
    assert plan.visible.shape == (3, 0) and torch.equal(plan.predict, torch.arange(16).expand(3, -1))
    out = model(inputs)
    assert set(out.parts) == {"reconstruct.a", "reconstruct.b"} and out.parts["reconstruct.b"].count == 48
    out.total.backward()
    assert model.decoder.heads["b"].weight.grad.abs().sum() > 0
    features = model.eval().embed(batch_of(model))
    assert set(features) == {"a"}  # the embedding of b has learned nothing
    alone = model.embed({"a": batch_of(model)["a"]})
    assert torch.equal(features["a"], alone["a"])
    with pytest.raises(MaemmError, match="b can only be decoded"):
        model.embed({"b": batch_of(model)["b"]})


def test_missing_samples_of_a_decoded_modality_are_not_counted():
    model = model_of({"only": "decode"}, True).train()
    batch = batch_of(model)
    present = torch.tensor([True, False, True])
    batch["b"] = maemm.contract.Preprocessed(batch["b"].x, present=present)
    out = model(model.plan(batch, Rng((0, 0), range(3), 3)))
    assert out.parts["reconstruct.b"].count == 32 and not out.plans["b"].counted[1].any()


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({}, {"only": "both"}, "modalities.b.only is 'both'.*write encode or decode"),
        ({}, {"only": "decode", "masking": "random"}, "modalities.b.only is decode.*leave its masking out"),
        ({"only": "decode"}, {"only": "decode"}, "nothing is left to encode"),
        ({"only": "encode"}, {"only": "encode"}, "nothing is left to decode"),
    ],
)
def test_recipes_that_are_refused(first, second, words):
    with pytest.raises(MaemmError, match=words):
        config.load({**BASE, "modalities": {"a": {**IMAGE, **first}, "b": {**IMAGE, **second}}}, {})


@pytest.mark.parametrize("only", ["encode", "decode"])
def test_pictures_and_scores(only, tmp_path):
    model = model_of({"only": only}, True, "cross").eval()
    rows = make_rows(model, batch_of(model), count=2)
    titles = {name: list(of.columns) for name, of in rows.items()}
    assert titles["a"][0] == "input" and titles["a"][-1] == "reconstruction"
    assert (titles["b"][-1] == "reconstruction") == (only == "decode") and "visible" in titles["b"][1]
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((4, 16, 16, 3)).astype(np.float32))
    parts = {name: {"type": "image", "root": str(tmp_path / "a.npy")} for name in ("a", "b")}
    source = registry.find("sources", "paired")(None, parts=parts)
    scores = maemm.score(model, source, plans=1, workers=0)
    assert set(scores.spans) == ({"a"} if only == "encode" else {"a", "b"}) and np.isfinite(scores.samples).all()
