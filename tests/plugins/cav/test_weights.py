import json
from pathlib import Path

import pytest
import torch

import maemm
from maemm import MaemmError, registry

GOLDEN = Path(__file__).parents[2] / "golden" / "cavmae"


def keys(name):
    shapes = json.loads((GOLDEN / name).read_text())
    with torch.device("meta"):
        return shapes, {key.removeprefix("module."): torch.empty(shape) for key, shape in shapes["keys"].items()}


@pytest.mark.parametrize(
    "name, used", [("keys_pretrain_base.json", 191_036_160), ("keys_finetune_base.json", 164_907_023)]
)
def test_published_files_fit_to_the_last_key(name, used):
    shapes, state = keys(name)
    assert len(state) == shapes["n_tensors"] and sum(value.numel() for value in state.values()) == used
    with torch.device("meta"):
        recipe, ours, extras = registry.find("weights", "cavmae")().read(state)
        model = maemm.build(recipe)
    model.load_state_dict(ours, strict=True)
    back = registry.find("weights", "cavmae")().write(model, extras)
    assert {key: value.shape for key, value in back.items()} == {key: value.shape for key, value in state.items()}
    assert sum(value.numel() for value in model.state_dict().values()) + sum(v.numel() for v in extras.values()) == used


def test_the_wrapper_s_prefix_is_no_matter(cases):
    state = {f"module.{key}": value for key, value in cases.state_of("cavmae_tiny").items()}
    model = maemm.load(state, heads=3, decoder_heads=4, norm_pix=True)
    assert model.kind == "cavmae"


@pytest.mark.parametrize("name, known", [("cavmae_tiny", {"decoder_heads": 4}), ("cavmae_finetune_tiny", {})])
def test_weights_go_back_exactly(cases, name, known):
    state = cases.state_of(name)
    model = maemm.load(state, heads=3, **known)
    back = registry.find("weights", "cavmae")().write(model, model.extras)
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)


def test_gradients_are_the_published_ones(cases):
    for name in ("cavmae_tiny", "cavmae_joint2_tiny"):
        state, data = cases.state_of(name), cases.tensors_of(name)
        model = maemm.load(state, heads=3, decoder_heads=4, norm_pix=True)
        plans = {m: maemm.Plan(data[f"visible_{m}"], data[f"predict_{m}"]) for m in ("audio", "image")}
        out = model({m: data[m] for m in plans}, plans=plans)
        assert out.terms["contrastive_accuracy"] == pytest.approx(data["contrastive_accuracy"].item())
        out.total.backward()
        for parameter in model.parameters():
            parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found = registry.find("weights", "cavmae")().write(model, {})
        wanted = {key.removeprefix("grad/"): value for key, value in data.items() if key.startswith("grad/")}
        assert len(wanted) == 8
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)


def test_retrieval_features_and_both_directions(cases):
    data = cases.tensors_of("cavmae_tiny")
    model = maemm.load(cases.state_of("cavmae_tiny"), heads=3, decoder_heads=4, norm_pix=True)
    found = model.embed({m: data[m] for m in ("audio", "image")})
    for name, value in found.items():
        torch.testing.assert_close(torch.nn.functional.normalize(value, dim=-1), data[f"retrieval_{name}"])
    model.objectives["contrastive"].both = True
    plans = {m: maemm.Plan(data[f"visible_{m}"], data[f"predict_{m}"]) for m in ("audio", "image")}
    terms = model({m: data[m] for m in plans}, plans=plans).terms
    torch.testing.assert_close(terms["contrastive"], data["contrastive_bidirectional"])
    torch.testing.assert_close(terms["contrastive_accuracy"], data["contrastive_accuracy_bidirectional"])


def test_one_modality_alone_answers_as_it_does_beside_the_other(cases):
    data = cases.tensors_of("cavmae_finetune_tiny")
    model = maemm.load(cases.state_of("cavmae_finetune_tiny"), heads=3)
    alone = model.logits({"audio": data["audio"]})
    assert set(alone) == {"audioonly", "missingaudioonly"}
    torch.testing.assert_close(alone["missingaudioonly"], data["logits_missingaudioonly"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "change, what",
    [
        (lambda state: state.pop("norm_a.weight"), "missing norm_a.weight"),
        (lambda state: state.pop("blocks_v.3.mlp.fc1.bias"), "1 missing .*trunks.image.3.mlp.fc1.bias"),
        (lambda state: state.update(surprise=torch.ones(1)), "1 unexpected .*surprise"),
        (lambda state: state.update(pos_embed_v=torch.ones(1, 15, 24)), "no square"),
        (lambda state: state.update(pos_embed_a=torch.ones(1, 33, 24)), "do not fill 128 mels"),
    ],
)
def test_partial_matches_are_refused(cases, change, what):
    state = cases.state_of("cavmae_tiny")
    change(state)
    with pytest.raises(MaemmError, match=what):
        maemm.load(state, kind="cavmae", heads=3, decoder_heads=4)


def test_other_models_are_not_written_as_cavmae():
    model = maemm.build("image/mae_tiny_cifar10")
    with pytest.raises(MaemmError, match="encoder streams over audio and image"):
        registry.find("weights", "cavmae")().write(model, {})
