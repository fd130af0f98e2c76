"""Weights that a training begins with, by part: what is loaded is said, and nothing is left random in silence."""

from __future__ import annotations

import json

import pytest
import torch

import maemm
from maemm import config
from maemm.contract import MaemmError
from maemm.model.build import build_model
from maemm.train.distributed import DistContext
from maemm.train.initialize import initialize_from
from maemm.train.setup import make_train_state

BASE = {
    "modalities": {"toy": {"size": 8}},
    "encoder": {"type": "vit", "dim": 16, "depth": 2, "heads": 2},
    "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
    "data": {"workers": 0, "source": {"type": "toy"}},
    "train": {"epochs": 2, "batch": 16, "lr": 1e-3, "warmup_epochs": 0},
    "out": "unused",
}
CLASSIFIER = {
    "decoder": None,
    "objectives": {"classify": {}},
    "head": {"type": "linear", "classes": 4},
    "encoder.final_norm": False,
}
ENCODING, DECODING = ["encoder", "modalities.toy.embedding"], {"decoder", "modalities.toy"}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def recipe(**overrides):
    return config.load(BASE, {key.replace("__", "."): value for key, value in overrides.items()}, training=True)


def model(seed=0, **overrides):
    torch.manual_seed(seed)
    return build_model(recipe(**overrides))


def changed(new, before, old):
    """Keys that were loaded, after a check that they are those of the old model, and all others as before."""
    loaded = set()
    for key, value in new.state_dict().items():
        if (
            key in old.state_dict()
            and torch.equal(value, old.state_dict()[key])
            and not torch.equal(value, before[key])
        ):
            loaded.add(key)
        else:
            assert torch.equal(value, before[key]), key
    return loaded


def test_parts_are_loaded_and_nothing_else(toys):
    old, new = model(1), model(2)
    before = {key: value.clone() for key, value in new.state_dict().items()}
    maemm.save(old, "old.safetensors")
    report = initialize_from(new, {"weights": "old.safetensors", "parts": ["encoder.blocks.1", "modalities.toy"]})
    loaded = changed(new, before, old)
    assert loaded == {k for k in report.loaded if not torch.equal(before[k], old.state_dict()[k])}
    assert {k for k in before if k.startswith(("encoder.blocks.1.", "modalities.toy."))} == set(report.loaded)
    assert set(report.initial) == set(before) - set(report.loaded)
    assert set(report.initial.values()) == {"left out by init.parts"}
    assert set(report.left_over) == set(old.state_dict()) - set(report.loaded)


def test_every_tensor_is_in_the_report_once(toys):
    """Of pre-training to a classifier, back to a decoder, and to pictures of another size."""
    maemm.save(model(1), "mae.safetensors")
    maemm.save(model(1, **CLASSIFIER), "classifier.safetensors")
    cases = [
        ({"weights": "mae.safetensors"}, CLASSIFIER, {"head"}, 0),
        ({"weights": "classifier.safetensors", "parts": ENCODING}, {"encoder.final_norm": False}, DECODING, 0),
        ({"weights": "classifier.safetensors"}, {"encoder.final_norm": False}, DECODING, 0),
        ({"weights": "mae.safetensors"}, {"modalities.toy.position": "learned", "modalities.toy.size": 16}, set(), 2),
    ]
    for init, overrides, own, resized in cases:
        new = model(2, **overrides)
        report = initialize_from(new, init)
        keys = [*report.loaded, *report.resized, *report.initial]
        assert sorted(keys) == sorted(new.state_dict())
        assert {key.split(".")[0] if "toy" not in key else "modalities.toy" for key in report.initial} == own
        assert len(report.resized) == resized
        text = "\n".join(report.lines())
        assert init["weights"] in text and all(reason in text for reason in report.initial.values())


def test_strict_names_what_is_missing_or_of_another_shape(toys):
    maemm.save(model(1), "old.safetensors")
    deeper = {"encoder__depth": 3, "decoder__dim": 32}
    with pytest.raises(
        MaemmError, match=r"old.safetensors\) do not fit: 12 missing \(encoder.blocks.2.* another shape"
    ):
        initialize_from(model(2, **deeper), "old.safetensors")
    with pytest.raises(MaemmError, match=r"do not fit: 12 missing"):
        initialize_from(model(2, **deeper), {"weights": "old.safetensors", "parts": ["encoder"]})
    new = model(2, **deeper)
    before = {key: value.clone() for key, value in new.state_dict().items()}
    report = initialize_from(new, {"weights": "old.safetensors", "strict": False})
    assert sum(key.startswith("encoder.blocks.2.") for key in report.initial) == 12
    assert report.initial["encoder.blocks.2.norm1.weight"] == "not in the weights"
    assert report.initial["decoder.mask_token"] == "(1, 1, 16) in the weights, (1, 1, 32) here"
    assert all(torch.equal(new.state_dict()[key], before[key]) for key in report.initial)
    assert any(key.startswith("encoder.blocks.1.") for key in report.loaded)


def test_a_head_is_loaded_where_it_is_named(toys):
    maemm.save(model(1, **CLASSIFIER), "old.safetensors")
    new = model(2, **CLASSIFIER)
    before = new.head.linear.weight.clone()
    assert initialize_from(new, "old.safetensors").initial["head.linear.weight"].startswith("never loaded unless")
    assert torch.equal(new.head.linear.weight, before)
    initialize_from(new, {"weights": "old.safetensors", "parts": ["head"]})
    assert torch.equal(new.head.linear.weight, model(1, **CLASSIFIER).head.linear.weight)


def test_wrong_parts_are_one_line(toys):
    maemm.save(model(1), "old.safetensors")
    for parts in ([], "encoder", [3], {"encoder": 1}):
        with pytest.raises(MaemmError, match=r"init.parts must be a list of names of parts, got .*; write init.parts"):
            recipe(init={"weights": "old.safetensors", "parts": parts})
    with pytest.raises(MaemmError, match="init.strict must be true or false"):
        recipe(init={"weights": "old.safetensors", "strict": "no"})
    with pytest.raises(MaemmError, match=r"no weights in 'encodr' \(init.parts\); did you mean 'encoder'"):
        initialize_from(model(), {"weights": "old.safetensors", "parts": ["encodr"]})


def test_a_run_says_what_it_began_with(toys):
    maemm.save(build_model(toys.recipe()), "old.safetensors")
    folder = toys.train(
        init={"weights": "old.safetensors", "parts": ["encoder"]}, train__epochs=1, train__freeze=["encoder"]
    )
    said = "\n".join(toys.lines)
    assert "begins with the weights of old.safetensors: encoder " in said
    assert "keeps its own initialisation (left out by init.parts): modalities.toy " in said
    stored = json.loads((folder / "init.json").read_text())
    assert stored["loaded"] and set(stored["initial"].values()) == {"left out by init.parts"}
    old, new = maemm.load("old.safetensors").state_dict(), toys.weights()
    for key, value in new.items():  # the encoder was frozen
        if key.startswith("encoder."):
            assert torch.equal(value, old[key])
    assert not torch.equal(new["decoder.mask_token"], old["decoder.mask_token"])


# ------------------------------------------------------------------------------------------------ frozen parts
def test_frozen_parts_do_not_move_and_drop_nothing(toys):
    state = make_train_state(
        recipe(train__freeze=["encoder", "modalities.toy.embedding"], encoder__drop_path=0.5), 4, 1, DistContext()
    )
    net = state.model
    trained = {name for group in state.optimizer.param_groups for name in group["names"]}
    assert trained and all(name.startswith("decoder.") for name in trained)
    assert not net.encoder.training and net.decoder.training and net.training
    net.eval()
    net.train()
    assert not any(module.training for module in net.encoder.modules()) and net.decoder.training
    one = make_train_state(recipe(train__freeze=["encoder.prefix"]), 4, 1, DistContext())
    assert one.model.encoder.training and not one.model.encoder.prefix.requires_grad


def test_frozen_parts_that_are_not_there(toys):
    with pytest.raises(MaemmError, match=r"no parameters in 'decodr' \(train.freeze\); did you mean 'decoder'"):
        make_train_state(recipe(train__freeze=["decodr"]), 4, 1, DistContext())
    with pytest.raises(MaemmError, match="nothing to train"):
        make_train_state(recipe(train__freeze=["encoder", "decoder", "modalities"]), 4, 1, DistContext())
