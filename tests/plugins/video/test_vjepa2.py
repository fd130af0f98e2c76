"""V-JEPA 2 against tensors of the published code: rotary attention, forward, gradients, a step with EMA, files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import maemm
from maemm import MaemmError, Plan, Tokens
from maemm.contract.positions import lattice
from maemm.model.build import build_model
from maemm.model.rotary import Rotary, RotaryAttention, rotate
from maemm.tasks.convert.run import convert
from maemm.train.optim import parameter_groups
from maemm.train.schedules import learning_rate
from maemm_plugins.video.positions import TimeFirstSinCos
from maemm_plugins.video.weights.vjepa2 import VJEPA2

GOLDEN = Path(__file__).parents[2] / "golden" / "vjepa2"
HEADS = {"vjepa2_tiny": (2, 2), "vjepa2_sincos": (3, 2)}
NAMES = {  # published -> ours, of the gradients that the cases have
    "encoder.backbone.patch_embed.proj.bias": "modalities.video.embedding.bias",
    "encoder.backbone.blocks.0.attn.qkv.weight": "encoder.blocks.0.attn.qkv.weight",
    "encoder.backbone.norm.weight": "encoder.norm.weight",
    "predictor.backbone.mask_tokens.0": "decoder.mask_token",
    "predictor.backbone.predictor_embed.weight": "decoder.project.weight",
    "predictor.backbone.predictor_blocks.1.mlp.fc1.bias": "decoder.blocks.1.mlp.fc1.bias",
    "predictor.backbone.predictor_proj.bias": "decoder.heads.video.bias",
}
ROPE = json.loads((GOLDEN / "vjepa2_rope.json").read_text())["cases"]


def golden(name):
    return load_file(GOLDEN / f"{name}.safetensors"), json.loads((GOLDEN / f"{name}.json").read_text())


def state_of(data, prefix="state/"):
    return {key.removeprefix(prefix): value for key, value in data.items() if key.startswith(prefix)}


def load(name, **options):
    data, facts = golden(name)
    heads, decoder_heads = HEADS[name]
    return data, facts, maemm.load(state_of(data), heads=heads, decoder_heads=decoder_heads, **options)


# ----------------------------------------------------------------------------------------------------- rotary positions
def rotary_case(name, kind):
    data, case = state_of(golden("vjepa2_rope")[0], f"{name}/"), ROPE[name]
    grid = (case["T"], case["H"], case["W"])
    tokens = Tokens(torch.zeros(2, len(lattice(grid)), 1), lattice(grid)[None], grid)
    rotary = Rotary(case["dim"] // case["heads"], kind, square=not case["pass_hw"])
    attention = RotaryAttention(case["dim"], num_heads=case["heads"], qkv_bias=True)
    attention.load_state_dict(state_of(data))
    return data, rotary(tokens, data["ids"]), attention


@pytest.mark.parametrize("name", ROPE)
def test_rotary_attention(name):
    data, rotation, attention = rotary_case(name, "vjepa2")
    torch.testing.assert_close(rotate(data["q"], rotation), data["q_rotated"], rtol=0, atol=1e-5)
    torch.testing.assert_close(attention(data["x"], rotation=rotation), data["out"], rtol=0, atol=1e-5)
    data, rotation, attention = rotary_case(name, "pairs")
    torch.testing.assert_close(attention(data["x"], rotation=rotation), data["out_if_repaired"], rtol=0, atol=1e-5)


def test_angles_are_float32_under_autocast():
    data, rotation, attention = rotary_case("square_all", "vjepa2")
    q = (data["q"]).bfloat16()
    expected = rotate(q.float(), rotation).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rotate(q, rotation), expected)
        assert attention(data["x"], rotation=rotation).dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------------- the published method
@pytest.mark.parametrize("name", HEADS)
def test_forward_gradients_and_a_step(name):
    data, facts, model = load(name)
    model.train()
    assert model.kind == "vjepa2" and not model.targets["video"].training
    batch, outs = {"video": data["input/video"]}, []
    for number in range(facts["generators"]):
        plan = Plan(data[f"input/{number}/visible"], data[f"input/{number}/predict"])
        out = model(batch, plans={"video": plan})
        answers = {
            "encoded": out.encoded["video"],
            "pred": out.pred["video"],
            "target": out.target["video"],
            "loss_token": out.loss["video"],
            "loss": out.total,
        }
        for key, value in answers.items():
            torch.testing.assert_close(value.detach(), data[f"out/{number}/{key}"], rtol=0, atol=1e-5)
        outs.append(out.total)
    total = sum(outs) / len(outs)
    torch.testing.assert_close(total.detach(), data["out/loss"], rtol=0, atol=1e-5)
    total.backward()
    for theirs, ours in NAMES.items():
        gradient = model.get_parameter(ours).grad
        torch.testing.assert_close(gradient, data[f"grad/{theirs}"], rtol=1e-4, atol=1e-5)

    used, target = facts["used"], model.targets["video"]
    target.momentum = used["momentum"]
    target.before_training(facts["ipe"] * facts["epochs"])
    assert target.momentum_at(0) == target.momentum_at(40) == used["momentum"]
    torch.optim.AdamW(parameter_groups(model, used["wd"]), used["lr"], (0.9, 0.999), 1e-8).step()
    target.after_step(model, 0, torch.tensor(False))
    after = VJEPA2().write(model, {})
    wanted = [key for key in data if key.startswith("after/")]
    assert len(wanted) == 8
    for key in wanted:
        torch.testing.assert_close(after[key.removeprefix("after/")], data[key], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_the_average_as_it_is_evaluated(name):
    data, _, model = load(name, part="target_encoder")
    assert model.decoder is None and not len(model.targets)
    tokens = model.embed({"video": data["input/video"]}, tokens=True)["video"]
    torch.testing.assert_close(tokens.detach(), data["out/target_encoder"], rtol=0, atol=1e-5)
    pooled = model.embed({"video": data["input/video"]})["video"]
    torch.testing.assert_close(pooled.detach(), data["out/target_encoder"].mean(1), rtol=0, atol=1e-5)


def test_mask_tokens_that_are_not_used_stay_as_they_are():
    data, facts, model = load("vjepa2_tiny")
    unused = [name for name in facts["parameters_without_gradient"] if "mask_tokens" in name]
    assert len(unused) == len(model.decoder.other_mask_tokens) == 5
    assert not model.decoder.other_mask_tokens.requires_grad
    trained = {name for group in parameter_groups(model, 0.04) for name in group["names"]}
    assert "decoder.mask_token" in trained and "decoder.other_mask_tokens" not in trained


def test_both_generators_share_a_pass_of_the_average():
    _, _, model = load("vjepa2_tiny", size=[6, 32, 32])
    sets = model.train().plan_sets({"video": torch.randn(2, 3, 6, 32, 32)}, maemm.Rng((0,), range(2), 2))
    small, large = (x["video"].plan for x in sets)
    assert small.visible.shape[1] > large.visible.shape[1] and small.predict.shape[1] < large.predict.shape[1]
    assert sets[0]["video"].computed is sets[1]["video"].computed  # one pass of the teacher


# ------------------------------------------------------------------------------------------------------------ the files
@pytest.mark.parametrize("name", HEADS)
def test_there_and_back(name, tmp_path):
    data, facts, model = load(name)
    state, back = state_of(data), VJEPA2().write(model, {})
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    assert model.modalities["video"].size[1:] == ((256, 256) if facts["use_rope"] else tuple(facts["image"]))
    # As published: a file with an entry for each part, whose names data parallel training has prefixed, and others.
    heads, decoder_heads = HEADS[name]
    parts = VJEPA2().entries(state)
    published = tmp_path / "vitl.pt"
    torch.save({**parts, "opt": {"state": {0: {"step": torch.ones(())}}}, "scaler": None, "epoch": 3}, published)
    convert(published, tmp_path / "ours.safetensors", heads=heads, decoder_heads=decoder_heads)
    convert(tmp_path / "ours.safetensors", tmp_path / "theirs.pt", to="vjepa2")
    written = torch.load(tmp_path / "theirs.pt", weights_only=True)
    assert {part: set(names) for part, names in written.items()} == {part: set(names) for part, names in parts.items()}
    assert all(torch.equal(written[part][key], value) for part, names in parts.items() for key, value in names.items())
    torch.save({"target_encoder": parts["target_encoder"]}, published)  # one part alone
    alone = maemm.load(published, heads=heads)
    assert alone.kind == "vjepa2" and alone.decoder is None
    assert torch.equal(alone.encoder.norm.weight, state["target_encoder.backbone.norm.weight"])


def test_tables_say_what_grid_they_are_of():
    data, _, model = load("vjepa2_sincos")
    assert model.modalities["video"].grid == (2, 6, 6)
    table = TimeFirstSinCos(24).table((2, 6, 6))
    torch.testing.assert_close(table, data["state/encoder.backbone.pos_embed"][0], rtol=0, atol=1e-6)
    state = {key: x + 1 if key.endswith("pos_embed") else x for key, x in state_of(data).items()}
    with pytest.raises(MaemmError, match="72 positions does not say.*give size="):
        maemm.load(state, heads=3, decoder_heads=2)
    assert maemm.load(state, heads=3, decoder_heads=2, size=[4, 24, 24]).modalities["video"].grid == (2, 6, 6)


def recipe_of(**changes):
    return maemm.config.load("video/vjepa2_large", changes)


def test_key_list_of_the_published_file():
    content = json.loads((GOLDEN / "keys_vitl16.json").read_text())
    with torch.device("meta"):
        model = build_model(recipe_of())
        written = VJEPA2().write(model, {})
    for part in ("encoder", "predictor"):
        shapes = {k.removeprefix(f"{part}."): list(v.shape) for k, v in written.items() if k.startswith(f"{part}.")}
        assert shapes == content[part]
    assert {k for k in written if k.startswith("target_encoder.")} == {f"target_{k}" for k in written if k[0] == "e"}
    total = {part: sum(v.numel() for k, v in written.items() if k.startswith(f"{part}.")) for part in content}
    assert (total["encoder"], total["predictor"]) == (303_885_312, 22_084_480)


SMALL = {
    "modalities": {
        "video": {
            "type": "video", "size": [4, 16, 16], "patch": [2, 4, 4], "position": "none", "masking": "random",
            "target": {"type": "ema", "loss": "l1"},
        }
    },
    "encoder": {"type": "vit", "dim": 24, "depth": 2, "heads": 2, "prefix": 0, "rotary": "vjepa2"},
    "decoder": {"type": "predictor", "dim": 24, "depth": 1, "heads": 2, "rotary": "vjepa2", "mask_tokens": 3},
}  # fmt: skip


def small(changes=None):
    return build_model(maemm.config.load(SMALL, changes or {}))


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder.rotary": "pairs"},
        {"decoder.rotary": None},
        {"modalities.video.position": "sincos"},
        {"encoder.rotary": None, "decoder.rotary": None},
        {"encoder.prefix": 1},
        {"decoder": {"type": "full", "dim": 24, "depth": 1, "heads": 2}},
    ],
)
def test_other_models_are_refused(changes):
    with pytest.raises(MaemmError, match="layout 'vjepa2'"):
        VJEPA2().write(small(changes), {})


def test_models_with_tables_of_any_kind_can_be_written():
    for kind in ("sincos_time_first", "sincos", "learned"):
        model = small({"encoder.rotary": None, "decoder.rotary": None, "modalities.video.position": kind})
        written = VJEPA2().write(model, {})
        again = maemm.load(written, heads=2, decoder_heads=2, size=[4, 16, 16])
        back = VJEPA2().write(again, {})
        assert back.keys() == written.keys() and all(torch.equal(back[key], written[key]) for key in written)


# ----------------------------------------------------------------------------------------------------------- the recipe
def test_published_schedule():
    train = recipe_of()["train"]
    lr = learning_rate(train, 300, 800 * 300)
    assert [lr(step) for step in (0, 5_999, 11_999, 200_000)] == pytest.approx(
        [1e-4 + 4.25e-4 / 12_000, 3.125e-4, 5.25e-4, 5.25e-4]
    )


def test_first_weights_of_the_last_layers_shrink_with_depth():
    torch.manual_seed(0)
    recipe = {**SMALL, "encoder": {**SMALL["encoder"], "dim": 96, "init": "normal_by_depth"}}
    first, second = build_model(maemm.config.load(recipe, {})).encoder.blocks
    for block, scale in ((first, 2**0.5), (second, 2.0)):
        assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert weight.std().item() == pytest.approx(0.02 / scale, rel=0.05)
    predictor = small({"decoder.mask_init": "zeros", "decoder.init": "normal_by_depth"}).decoder
    assert not predictor.mask_token.any() and not predictor.other_mask_tokens.any()
