"""Published weights: key lists of the official sizes, tensors both ways, gradients and batch statistics."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import maemm
from maemm.contract.errors import MaemmError
from maemm.model.build import build_model
from maemm.registry import find
from maemm_plugins.pointcloud.weights.pointmae import PCPMAE, PointMAE

TESTS = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("golden_comparison", TESTS / "test_golden.py")
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)
CASES = {one["id"].removeprefix("public/pointmae/"): one for one in golden.CASES if "pointmae/" in one["id"]}
KEYS = json.loads((TESTS / "golden/pointmae/keys.json").read_text())
PUBLISHED = {
    "pretrain": ("pointmae", {}),
    "classifier_40": ("pointmae", {"groups": 64}),
    "part_segmentation": ("pointmae", {}),
    "pcp_mae_pretrain": ("pcp_mae", {}),
}
TRAINED = ["pointmae_tiny_train#cdl2", "pointmae_tiny_train#cdl1", "pointmae_tiny_eval#cdl2", "pointmae_tiny_eval#cdl1",
           "pcp_mae_tiny#train"]  # fmt: skip


def loaded(name):
    """(model in the case's mode, the case's tensors, its state, its batch and plans)"""
    case = CASES[name]
    data, state = golden.tensors_of(case), golden.state_of(case)
    model = maemm.load(state, kind=case["kind"], **case["load_args"]).train(case["mode"] == "train")
    return model, data, state, {"pointcloud": data["x"]}, {"pointcloud": maemm.Plan(data["visible"], data["predict"])}


def written(model):
    return find("weights", model.kind)().write(model, model.extras)


@pytest.mark.parametrize("name", PUBLISHED)
def test_official_sizes_have_exactly_the_published_keys(name):
    kind, known = PUBLISHED[name]
    listed = KEYS[name]
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in listed["keys"].items()}
        layout = find("weights", kind)()
        assert layout.match(set(state), {key: tuple(one.shape) for key, one in state.items()})
        recipe, ours, extras = layout.read(state, **known)
        model = build_model(recipe)
    assert not extras and {key: one.shape for key, one in ours.items()} == {
        key: one.shape for key, one in model.state_dict().items()
    }
    back = layout.write(model, {})
    assert {key: list(one.shape) for key, one in back.items()} == listed["keys"]
    assert len(back) == listed["entries"]
    assert sum(one.numel() for one in model.parameters()) == listed["parameters"]
    assert len(list(model.parameters())) == listed["parameter_tensors"]


def test_exactly_one_kind_knows_each_layout():
    for name, (kind, _) in PUBLISHED.items():
        shapes = {key: tuple(shape) for key, shape in KEYS[name]["keys"].items()}
        matching = [one for one in maemm.registry.names("weights") if find("weights", one)().match(set(shapes), shapes)]
        assert matching == [kind], name


def test_the_recipes_are_the_published_models():
    for recipe, name in (("pointcloud/point_mae", "pretrain"), ("pointcloud/pcp_mae", "pcp_mae_pretrain")):
        with torch.device("meta"):
            model = maemm.build(recipe)
        layout = (PCPMAE if "pcp" in recipe else PointMAE)()
        assert {key: list(one.shape) for key, one in layout.write(model, {}).items()} == KEYS[name]["keys"]


@pytest.mark.parametrize("name", [*TRAINED, "pointmae_cls_tiny"])
def test_weights_go_back_exactly(name, tmp_path):
    case = CASES[name]
    state = golden.state_of(case)
    torch.save({"base_model": {f"module.{key}": one for key, one in state.items()}, "epoch": 3}, tmp_path / "x.pth")
    model = maemm.load(tmp_path / "x.pth", **case["load_args"])  # the kind is told from the keys
    assert model.kind == case["kind"]
    maemm.save(model, tmp_path / "model.safetensors")
    for one in (model, maemm.load(tmp_path / "model.safetensors")):
        found = written(one)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", TRAINED)
def test_published_gradients(name):
    model, data, _, batch, plans = loaded(name)
    model(batch, plans=plans).total.backward()
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    found = written(model)
    prefix = "grad/" if "pcp" in name else f"grad_{CASES[name]['part']}/"
    wanted = {key.removeprefix(prefix): value for key, value in data.items() if key.startswith(prefix)}
    assert len(wanted) >= 7
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ["pointmae_tiny_train#cdl2", "pcp_mae_tiny#train"])
def test_batch_statistics_move_as_published(name):
    """Hidden groups count in them, and one forward moves them once."""
    model, data, state, batch, plans = loaded(name)
    model(batch, plans=plans)
    found = written(model)
    wanted = {key.removeprefix("after/"): value for key, value in data.items() if key.startswith("after/")}
    assert len(wanted) >= 4
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)
        assert not torch.equal(value, state[key])


def test_statistics_of_visible_groups_alone():
    """``stats: visible``, which is no published order: against the numbers of the published layers in it."""
    model, data, _, batch, plans = loaded("pointmae_tiny_train#cdl2")
    model.modalities["pointcloud"].embedding.stats = "visible"
    out = model(batch, plans=plans)
    found = {"encoded": out.encoded, "pred": out.pred, "loss_cdl2": out.loss}
    for key, value in found.items():
        assert (value["pointcloud"] - data[f"alt_visible_only/{key}"]).abs().max() <= 1e-5
    assert abs(out.total - data["alt_visible_only/total_cdl2"]) <= 1e-5
    for key, value in written(model).items():
        if f"alt_visible_only/after/{key}" in data:
            torch.testing.assert_close(value, data[f"alt_visible_only/after/{key}"], rtol=0, atol=1e-5)


def test_tokens_and_centres_as_published():
    model, data, _, batch, plans = loaded("pcp_mae_tiny#train")
    modality = model.modalities["pointcloud"]
    tokens = modality.tokenize(maemm.Preprocessed(data["x"]))
    assert torch.equal(tokens.coords, data["centers"])
    every = tokens.all_indices()
    torch.testing.assert_close(modality.code(tokens, every), data["sincos_all"], rtol=0, atol=1e-6)
    torch.testing.assert_close(modality.embed(tokens, every), data["tokens"], rtol=0, atol=1e-5)
    out = loaded("pcp_mae_tiny#train")[0](batch, plans=plans)
    term = out.parts["centers"]
    assert abs(term.weight * term.mean - data["loss_center_weighted"]) <= 1e-6
    target = out.target["pointcloud"].unflatten(-1, (-1, 3)).flatten(0, 1)
    expected = data["target_unordered"].unflatten(-1, (-1, 3)).flatten(0, 1)
    for one, other in zip(target, expected, strict=True):
        assert {tuple(p) for p in one.tolist()} == {tuple(p) for p in other.tolist()}


@pytest.mark.parametrize(
    ("name", "prefixes"),
    [
        ("pointmae_tiny_train#cdl2", ("MAE_encoder.blocks.blocks.0.", "MAE_encoder.blocks.blocks.1.")),
        ("pointmae_tiny_eval#cdl2", ("MAE_decoder.blocks.0.", "MAE_decoder.blocks.1.")),
        ("pcp_mae_tiny#train", ("MAE_encoder.blocks.blocks.1.", "MAE_encoder.blocks.blocks.2.")),
    ],
)
def test_a_mutation_is_caught(name, prefixes, monkeypatch):
    """Swapped blocks must not pass: the comparison can fail."""
    state = golden.state_of(CASES[name])
    swap = dict([prefixes, prefixes[::-1]])
    swapped = {
        next((b + key.removeprefix(a) for a, b in swap.items() if key.startswith(a)), key): value
        for key, value in state.items()
    }
    monkeypatch.setattr(golden, "state_of", lambda _: swapped)
    with pytest.raises(AssertionError, match="off by"):
        golden.test_case(CASES[name])


def test_what_weights_do_not_tell_is_asked_for():
    state = golden.state_of(CASES["pointmae_tiny_train#cdl2"])
    with pytest.raises(MaemmError, match="give heads="):
        maemm.load(state)
    with pytest.raises(MaemmError, match="give decoder_heads="):
        maemm.load(state, heads=3)
    with pytest.raises(MaemmError, match="group_size is 16, the weights predict groups of 8"):
        maemm.load(state, heads=3, decoder_heads=3, group_size=16)
    with pytest.raises(MaemmError, match=r"not in a classifier's weights; give groups="):
        maemm.load(golden.state_of(CASES["pointmae_cls_tiny"]), heads=3)
    with pytest.raises(MaemmError, match="loss must be 'cdl1' | 'cdl2'"):
        maemm.load(state, heads=3, decoder_heads=3, loss="emd")


def test_broken_weights_are_named():
    state = golden.state_of(CASES["pointmae_tiny_train#cdl2"])
    known = {"heads": 3, "decoder_heads": 3}
    with pytest.raises(MaemmError, match="1 missing.*mask_token|mask_token.*missing|unexpected"):
        maemm.load({key: one for key, one in state.items() if key != "mask_token"}, **known)
    with pytest.raises(MaemmError, match="1 unexpected .*extra_thing"):
        maemm.load({**state, "extra_thing": torch.zeros(1)}, **known)
    with pytest.raises(MaemmError, match="1 missing .*decoder.norm.bias"):
        maemm.load({key: one for key, one in state.items() if key != "MAE_decoder.norm.bias"}, **known)
    whole = {key: one for key, one in state.items() if "second_conv.0" not in key}
    with pytest.raises(MaemmError, match="second_conv.0.weight is missing"):
        maemm.load(whole, **known)


def test_an_encoder_alone():
    """In both layouts, without decoder and head: features, and no reconstruction."""
    state = golden.state_of(CASES["pointmae_tiny_eval#embed"])
    data = golden.tensors_of(CASES["pointmae_tiny_eval#embed"])
    inner = {key: one for key, one in state.items() if key.startswith("MAE_encoder.")}
    for part in (inner, {key.removeprefix("MAE_encoder."): one for key, one in inner.items()}):
        model = maemm.load(part, kind="pointmae", heads=3, groups=16, group_size=8)
        features = model.embed({"pointcloud": data["x"]})["pointcloud"]
        assert (features - data["embed_mean"]).abs().max() <= 1e-5
        with pytest.raises(MaemmError, match="no decoder"):
            model({"pointcloud": data["x"]}, rng=maemm.Rng((0,), range(2), 2))
