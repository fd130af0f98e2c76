"""Published layouts of video models: key lists, gradients, the way back, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import maemm
from maemm import registry
from maemm.contract.errors import MaemmError

GOLDEN = Path(__file__).parents[2] / "golden"
CASES = {
    c["id"].rpartition("/")[2]: c for c in json.loads((GOLDEN / "CASES.json").read_text()) if "/videomae/" in c["id"]
}
PRETRAINING = [name for name, case in CASES.items() if case["forward"] == "pretrain" and "data_file" not in case]


def tensors(name):
    return load_file(GOLDEN / CASES[name]["file"])


def state_of(name):
    return {k.removeprefix("state/"): v for k, v in tensors(name).items() if k.startswith("state/")}


def loaded(name):
    case = CASES[name]
    return maemm.load(state_of(name), kind=case["kind"], **case["load_args"])


def write(model, kind=None):
    return registry.find("weights", kind or model.kind)().write(model, model.extras)


def inputs(name):
    case, data = CASES[name], tensors(name)
    ((key, (visible, predict)),) = case["plan"].items()
    return {key: data[case["input"]]}, {key: maemm.Plan(data[visible], data[predict])}, data


@pytest.mark.parametrize("name", CASES)
def test_the_way_back_is_exact(name):
    state, written = state_of(name), write(loaded(name))
    assert written.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(written[key], value), key


@pytest.mark.parametrize("name", CASES)
def test_the_kind_is_recognised(name):
    assert maemm.load(state_of(name), **CASES[name]["load_args"]).kind == CASES[name]["kind"]


@pytest.mark.parametrize("name", PRETRAINING)
def test_gradients(name):
    model = loaded(name)
    batch, plans, data = inputs(name)
    model(batch, plans=plans).total.backward()
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    model.extras.clear()
    written = write(model)
    start = CASES[name]["part"] + "/grad/" if "part" in CASES[name] else "grad/"
    wanted = {k.removeprefix(start): v for k, v in data.items() if k.startswith(start)}
    assert len(wanted) >= 3
    if CASES[name]["kind"] == "hf_videomae":  # without the mark among the extras, names are those of files
        wanted = {k.replace("query.bias", "q_bias"): v for k, v in wanted.items()}
    for key, value in wanted.items():
        torch.testing.assert_close(written[key], value, atol=1e-5, rtol=1e-4, msg=lambda text, k=key: f"{k}: {text}")


@pytest.mark.parametrize("name", PRETRAINING)
def test_restored_targets_are_the_signal(name):
    model = loaded(name)
    batch, plans, _ = inputs(name)
    ((key, plan),) = plans.items()
    modality = model.modalities[key]
    tokens = modality.tokenize(maemm.contract.Preprocessed(batch[key]))
    values = modality.denormalize_target(modality.target(tokens, plan.predict), tokens, plan.predict)
    signal = modality.untokenize(values, tokens, plan.predict)
    known = ~signal.isnan()
    assert known.float().mean() == plan.predict.shape[1] / tokens.count
    if name == "mae_st_tiny":  # half of the frames are predicted
        signal, known = signal[:, :, [0, 2, 4, 7]], known[:, :, [0, 2, 4, 7]]
        batch = {key: batch[key][:, :, [0, 2, 4, 7]]}
    given = batch[key] if batch[key].ndim == 5 else batch[key][:, :, None]
    assert (signal - given)[known].abs().max() <= 1e-4


def test_the_decoder_mask_is_part_of_the_model():
    """VideoMAE v2's weights without its decoder mask: all hidden tokens are predicted, as the original does then."""
    model = loaded("videomae_v2_tiny")
    batch, plans, data = inputs("videomae_v2_tiny")
    hidden = data["mask"].nonzero()[:, 1].reshape(len(data["mask"]), -1)
    out = model(batch, plans={"video": maemm.Plan(plans["video"].visible, hidden)})
    assert (out.pred["video"] - data["pred_without_decode_mask"]).abs().max() <= 1e-5


KEYS = {
    "vit_base_pretrain": ("video/videomae_base", {}),
    "v2_base_pretrain": ("video/videomae_v2_base", {}),
    "vit_base_finetune": ("video/videomae_base", {"head": {"type": "linear", "classes": 400}}),
    "v2_base_finetune": ("video/videomae_base", {"head": {"type": "linear", "classes": 710}}),
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_and_shapes_are_the_published_ones(name):
    published = json.loads((GOLDEN / "videomae" / f"keys_{name}.json").read_text())
    recipe, more = KEYS[name]
    with torch.device("meta"):
        resolved = maemm.build(recipe).recipe | more
        if more:
            resolved = resolved | {"decoder": None, "encoder": resolved["encoder"] | {"final_norm": False}}
        written = write(maemm.build(resolved), "videomae")
    assert {k: list(v.shape) for k, v in written.items()} == published["keys"]
    assert sum(v.numel() for v in written.values()) == published["parameters"]


def test_wrappers_and_prefixes_are_taken_off():
    state = state_of("videomae_tiny")
    args = CASES["videomae_tiny"]["load_args"]
    for wrapped in ({"model": state, "epoch": 3}, {"module": {f"module.{k}": v for k, v in state.items()}}):
        assert maemm.load(wrapped, **args).kind == "videomae"
    tuned = {f"backbone.{k}": v for k, v in state_of("videomae_finetune").items()}
    assert maemm.load(tuned, kind="videomae", heads=4).head.classes == 7


def test_an_encoder_alone_loads():
    state = {k: v for k, v in state_of("videomae_tiny").items() if k.startswith("encoder.")}
    model = maemm.load(state, heads=4)
    batch, _, _ = inputs("videomae_tiny")
    assert model.decoder is None and model.embed(batch)["video"].shape == (2, 32)
    bare = {k.removeprefix("videomae."): v for k, v in state_of("hf_videomae").items() if k.startswith("videomae.")}
    assert maemm.load(bare, heads=4).kind == "hf_videomae"
    light = {k: v for k, v in state_of("mae_st_tiny").items() if "decoder" not in k and k != "mask_token"}
    assert maemm.load(light, heads=4).kind == "mae_st"


@pytest.mark.parametrize("name, key", [
    ("videomae_tiny", "encoder.blocks.0.attn.v_bias"),
    ("videomae_tiny", "decoder.blocks.1.attn.q_bias"),
    ("hf_videomae", "videomae.encoder.layer.1.attention.attention.query.bias"),
    ("hf_videomae_old_names", "decoder.decoder_layers.0.attention.attention.v_bias"),
    ("hf_videomae", "videomae.encoder.layer.0.attention.attention.key.weight"),
    ("mae_st_tiny", "blocks.0.attn.k.weight"),
    ("omnimae_tiny#video", "trunk.blocks.0.attn.qkv.bias"),
])  # fmt: skip
def test_a_dropped_tensor_is_an_error(name, key):
    state = state_of(name)
    del state[key]
    with pytest.raises(MaemmError):
        maemm.load(state, kind=CASES[name]["kind"], **CASES[name]["load_args"])


def test_both_biases_dropped_from_everywhere_is_an_error():
    state = {k: v for k, v in state_of("videomae_tiny").items() if not k.endswith("_bias")}
    with pytest.raises(MaemmError, match=r"missing .*qkv\.bias"):
        maemm.load(state, kind="videomae", **CASES["videomae_tiny"]["load_args"])


def test_what_is_not_in_the_file_is_asked_for():
    state = state_of("videomae_tiny")
    with pytest.raises(MaemmError, match="give heads="):
        maemm.load(state)
    model = maemm.load(state, heads=4, decoder_heads=2)
    batch, plans, _ = inputs("videomae_tiny")
    with pytest.raises(MaemmError, match="norm_pix"):
        model(batch, plans=plans)


def test_a_model_that_the_layout_cannot_hold_is_refused():
    with torch.device("meta"):
        model = maemm.build("video/videomae_tiny_cpu", **{"modalities.video.position": "learned"})
    with pytest.raises(MaemmError, match="positions of kind learned"):
        write(model, "videomae")
    with pytest.raises(MaemmError, match="same_as"):
        write(model, "omnimae")
