"""AudioMAE's files: key lists, the way back, gradients, the block, positions, refusals."""

import argparse
import json
import os
from pathlib import Path, PosixPath

import pytest
import torch
from safetensors.torch import load_file

import maemm
from maemm import MaemmError, registry
from maemm.model.build import build_model
from maemm_plugins.audio.positions import period_of
from maemm_plugins.audio.window import Lattice, WindowBlock

GOLDEN = Path(__file__).parents[2] / "golden" / "audiomae"
SHARED = Path(os.environ.get("MAEMM_SHARED", Path(__file__).parents[4] / "shared")) / "golden" / "audiomae"
KNOWN = {
    "local": {"heads": 4, "norm_pix": True},
    "global": {"heads": 4, "decoder_heads": 3, "norm_pix": True},
    "finetune": {"heads": 4},
}


def data_of(name):
    for folder in (GOLDEN, SHARED):
        if (folder / f"audiomae_{name}_tiny.safetensors").is_file():
            return load_file(folder / f"audiomae_{name}_tiny.safetensors")
    pytest.skip(f"audiomae_{name}_tiny is not here; set MAEMM_SHARED")


def state_of(name):
    return {k.removeprefix("state/"): v for k, v in data_of(name).items() if k.startswith("state/")}


def written(model):
    return registry.find("weights", "audiomae")().write(model, model.extras)


@pytest.mark.parametrize("name", KNOWN)
def test_there_and_back_is_the_identity(name):
    state = state_of(name)
    model = maemm.load(state, kind="audiomae", **KNOWN[name])
    back = written(model)
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("name", ["local", "global"])
def test_gradients(name):
    data = data_of(name)
    model = maemm.load(state_of(name), kind="audiomae", **KNOWN[name])
    model({"audio": data["x"]}, plans={"audio": maemm.Plan(data["visible"], data["predict"])}).total.backward()
    for parameter in model.parameters():
        parameter.data = parameter.grad
    found, wanted = written(model), {k: v for k, v in data.items() if k.startswith("grad/")}
    assert len(wanted) >= 5
    for key, value in wanted.items():
        assert (found[key.removeprefix("grad/")] - value).abs().max() <= 1e-5, key


def test_gradients_of_the_fine_tuned_model():
    data = data_of("finetune")
    model = maemm.load(state_of("finetune"), kind="audiomae", heads=4)
    logits = model.logits({"audio": data["x"]})
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, data["labels"])
    assert abs(loss - data["loss_bce"]) < 1e-5
    loss.backward()
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    found = written(model)
    for key, value in data.items():
        if key.startswith("grad/"):
            assert (found[key.removeprefix("grad/")] - value).abs().max() <= 1e-5, key


def test_logits_with_structured_masking():
    """Fine-tuning hides whole columns and rows and averages what is left."""
    data = data_of("finetune")
    model = maemm.load(state_of("finetune"), kind="audiomae", heads=4)
    plan = maemm.Plan(data["visible"], data["visible"][:, :0])
    inputs = model._inputs({"audio": data["x"]}, {"audio": plan}, None)
    with torch.no_grad():
        tokens = model.encoder(inputs, model.modalities).tokens["audio"]
        logits = model.head.linear(model.head.norm(tokens.mean(1)))
    assert (logits - data["logits_masked"]).abs().max() <= 1e-5


@pytest.mark.parametrize("tag, shift", [("w", (0, 0)), ("sw", (2, 0))])
def test_the_window_block(tag, shift):
    data = load_file(GOLDEN / "audiomae_swin_blocks_tiny.safetensors")
    block = WindowBlock(32, 4, (4, 4), shift, 4.0, 1e-6, 384).eval()
    start = f"{tag}/state/"
    block.load_state_dict({k.removeprefix(start): v for k, v in data.items() if k.startswith(start)})
    x = data[f"{tag}/x"].unflatten(1, (16, 8))
    lattice = Lattice((16, 8), (4, 4), None, x)
    with torch.no_grad():
        assert (block(x, lattice).flatten(1, 2) - data[f"{tag}/y"]).abs().max() <= 1e-4
        assert (block.attn.bias() - data[f"{tag}/bias"]).abs().max() <= 1e-4
    added = lattice.added(shift)
    if tag == "sw":
        assert torch.equal(added[0, :, 0], data["sw/attn_mask"])
    else:
        assert added is None


def base(kind):
    tuned, size = kind == "finetune", {"size": [1024, 128], "patch": 16}
    recipe = {
        "modalities": {"audio": size},
        "encoder": {"type": "vit", "dim": 768, "depth": 12, "heads": 12, "final_norm": not tuned},
        "decoder": {
            "local": {"type": "window", "dim": 512, "depth": 16, "heads": 16},
            "global": {"type": "full", "dim": 512, "depth": 8, "heads": 16},
            "finetune": None,
        }[kind],
    }
    return recipe | ({"head": {"type": "linear", "classes": 527}} if tuned else {})


@pytest.mark.parametrize("kind", ["local", "global", "finetune"])
def test_key_lists_are_met_exactly(kind):
    content = json.loads((GOLDEN / f"keys_{kind}_base.json").read_text())
    with torch.device("meta"):
        model = build_model(base(kind))
        found = written(model)
    assert {k: tuple(v.shape) for k, v in found.items()} == {k: tuple(v) for k, v in content["keys"].items()}
    assert len(found) == content["n_tensors"] and sum(v.numel() for v in found.values()) == content["n_elements"]
    if kind == "local":
        assert (len(found), content["n_elements"]) == (430, 136_992_768)
    if kind != "finetune":  # the fine-tuned file's table is stored and not trained
        assert sum(p.numel() for p in model.parameters()) == content["n_trainable"]


@pytest.mark.parametrize("kind", ["local", "global", "finetune"])
def test_published_sizes_load(kind):
    keys = json.loads((GOLDEN / f"keys_{kind}_base.json").read_text())["keys"]
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in keys.items()}
        recipe, ours, extras = registry.find("weights", "audiomae")().read(state)
        model = build_model(recipe)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert recipe["modalities"]["audio"]["size"] == [1024, 128] and recipe["encoder"]["heads"] == 12
    assert len(extras) == (kind == "local")


def test_layers_of_fine_tuning():
    content = json.loads((GOLDEN / "layer_decay_finetune_base.json").read_text())
    with torch.device("meta"):
        model = build_model(base("finetune"))
    names = {"cls_token": "prefix"}
    for group in content["groups"]:
        layer = int(group["group"].split("_")[1])
        for name in group["params"]:
            if name.startswith(("blocks.", "cls_token")):
                assert model.encoder.layer_of(names.get(name, name)) == layer, name


def test_the_scrambled_table_is_used_as_it_is():
    state = state_of("global")
    model = maemm.load(state, kind="audiomae", **KNOWN["global"])
    assert period_of(state["pos_embed"][0, 1:]) == 16  # made for 6 x 16, used on 16 x 6
    assert model.modalities["audio"].grid == (16, 6)
    assert torch.equal(model.modalities["audio"].positions.table((16, 6)), state["pos_embed"][:, 1:])
    tokens = model.modalities["audio"].tokenize(maemm.contract.Preprocessed(torch.randn(1, 64, 48)))
    found = model.modalities["audio"].position(tokens, tokens.all_indices(), "encoder")
    assert torch.equal(found[0], state["pos_embed"][0, 1:49])  # a shorter clip keeps the codes of its tokens


@pytest.mark.parametrize("frames", [16, 128, 160])
def test_loaded_weights_take_other_lengths(frames):
    model = maemm.load(state_of("global"), kind="audiomae", **KNOWN["global"])
    out = model({"audio": torch.randn(2, frames, 48)}, rng=maemm.Rng((0,), range(2), 2))
    assert out.total.isfinite()


def test_pickled_files_with_settings_and_paths(tmp_path):
    args = argparse.Namespace(lr=1e-4, data_path=PosixPath("/data"), device="cuda")
    torch.save({"model": state_of("global"), "args": args, "epoch": 3, "scaler": {"scale": 2.0}}, tmp_path / "x.pth")
    model = maemm.load(tmp_path / "x.pth", kind="audiomae", **KNOWN["global"])
    assert model.kind == "audiomae"


def test_fine_tuned_files_have_no_decoder():
    model = maemm.load(state_of("finetune"), kind="audiomae", heads=4)
    with pytest.raises(MaemmError, match="no decoder"):
        model({"audio": torch.randn(1, 256, 32)}, rng=maemm.Rng((0,)))


def test_the_encoder_alone():
    state = {k: v for k, v in state_of("global").items() if "decoder" not in k and k != "mask_token"}
    model = maemm.load(state, kind="audiomae", heads=4)
    whole = maemm.load(state_of("global"), kind="audiomae", **KNOWN["global"])
    x = {"audio": torch.randn(2, 128, 48)}
    assert torch.equal(model.embed(x)["audio"], whole.embed(x)["audio"])
    assert written(model).keys() == state.keys()


@pytest.mark.parametrize("pool, classes", [("token", 0), ("avg", 0), ("avg", 5)])
def test_encoders_ported_to_timm(pool, classes):
    """Key names of timm's VisionTransformer; its pooled features and its logits are ours."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    ported = VisionTransformer(
        img_size=(64, 48), patch_size=16, in_chans=1, num_classes=classes, global_pool=pool, embed_dim=48, depth=2,
        num_heads=4,
    ).eval()  # fmt: skip
    state = {key: torch.randn_like(value) * 0.2 for key, value in ported.state_dict().items()}
    ported.load_state_dict(state)
    assert ("fc_norm.weight" in state) == (pool == "avg")
    model = maemm.load(state, kind="audiomae", heads=4, size=[64, 48])
    x = torch.randn(2, 64, 48)
    with torch.no_grad():
        theirs = ported(x[:, None])
        if classes:
            ours = model.logits({"audio": x})
        elif pool == "avg":
            ours = model.embed({"audio": x}, pool="mean", norm="after")["audio"]
        else:
            ours = model.embed({"audio": x}, pool="cls")["audio"]
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-4


def without(key, name="global"):
    return {k: v for k, v in state_of(name).items() if not k.startswith(key)}


@pytest.mark.parametrize(
    "state, known, what",
    [
        (without("?"), {**KNOWN["global"], "decoder": "window"}, "hold the full decoder, not 'window'"),
        (without("?", "finetune"), {"heads": 4, "decoder": "full"}, "hold no decoder"),
        (without("?"), {"heads": 4}, "decoder_heads="),
        (without("?"), {"decoder_heads": 3}, "give heads="),
        (without("blocks.1.attn.qkv.bias"), KNOWN["global"], "1 missing"),
        (without("blocks.0.mlp"), KNOWN["global"], "mlp.fc1.weight is missing"),
        (without("cls_token"), KNOWN["global"], "missing cls_token"),
        ({**without("?"), "extra": torch.ones(1)}, KNOWN["global"], "1 unexpected"),
        (without("fc_norm", "finetune"), {"heads": 4}, "head without fc_norm"),
        (without("head", "finetune") | {"norm.weight": torch.ones(48)}, {"heads": 4}, "both norm and fc_norm"),
        (without("?"), {**KNOWN["global"], "hats": 1}, "hats"),
        ({**without("pos"), "pos_embed": torch.randn(1, 14, 48)}, KNOWN["global"], "size="),
    ],
)
def test_partial_matches_are_refused(state, known, what):
    with pytest.raises(MaemmError, match=what):
        maemm.load(state, kind="audiomae", **known)


def test_blocks_of_another_decoder_are_never_noise():
    """16 window blocks cannot be filled into 8 global ones: published code only warned."""
    local = data_of("local")
    state = {k.removeprefix("state/"): v for k, v in local.items() if k.startswith("state/")}
    with pytest.raises(MaemmError, match="hold the window decoder, not 'full'"):
        maemm.load(state, kind="audiomae", heads=4, decoder="full", decoder_heads=16)


def test_our_own_models_become_published_files():
    recipe = {
        "modalities": {"audio": {"size": [64, 32], "patch": 8}},
        "encoder": {"type": "vit", "dim": 32, "depth": 1, "heads": 2},
        "decoder": {"type": "window", "dim": 32, "depth": 2, "heads": 2},
    }
    model = build_model(recipe).eval()
    again = maemm.load(written(model), kind="audiomae", heads=2, norm_pix=True, size=[64, 32])
    x, rng = {"audio": torch.randn(2, 64, 32)}, maemm.Rng((0,), range(2), 2)
    plans = {"audio": model.plan(x, rng)["audio"].plan}
    assert (again(x, plans=plans).pred["audio"] - model(x, plans=plans).pred["audio"]).abs().max() < 1e-6
    recipe["modalities"]["audio"]["order"] = "mel_major"
    with pytest.raises(MaemmError, match="mel_major"):
        written(build_model(recipe))
