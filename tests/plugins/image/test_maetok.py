"""MAETok against tensors of the published code: tokenising with and without a mask, gradients, files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import maemm
from maemm import MaemmError, Plan
from maemm.model.build import build_model
from maemm.tasks.convert.run import convert
from maemm_plugins.image.weights.maetok import UNUSED, MAETok

GOLDEN = Path(__file__).parents[2] / "golden" / "maetok" / "maetok_tiny.safetensors"
HEADS = {"heads": 3, "decoder_heads": 3}


@pytest.fixture(scope="module")
def data():
    return load_file(GOLDEN)


def state_of(data):
    return {key.removeprefix("state/"): value for key, value in data.items() if key.startswith("state/")}


def plan_of(mask):
    """A mask (B, N), 1 where hidden, which hides another number in each row: all tokens are predicted and count."""
    hidden = mask.bool()
    order = hidden.long().argsort(dim=1, stable=True)  # visible ones first
    count = int((~hidden).sum(1).max())
    valid = torch.arange(count) < (~hidden).sum(1, keepdim=True)
    last = order.gather(1, (~hidden).sum(1, keepdim=True) - 1)
    visible = torch.where(valid, order[:, :count], last)
    everything = torch.arange(mask.shape[1]).expand(len(mask), -1)
    return Plan(visible, everything, visible_valid=valid, counted=torch.ones_like(mask))


def test_masked_tokenising_and_its_gradients(data):
    model = maemm.load(state_of(data), **HEADS).train()
    assert model.kind == "maetok"
    out = model({"image": data["input/x"]}, plans={"image": plan_of(data["input/mask"])})
    picture = model.modalities["image"].untokenize(out.pred["image"], out.inputs["image"].tokens)
    answers = {
        "out/h_masked": out.latents.latent_tokens["image"],
        "out/pixels_masked": picture,
        "out/mse_masked": out.total[None],
    }
    for key, value in answers.items():
        torch.testing.assert_close(value.detach(), data[key], rtol=0, atol=1e-5)
    out.total.backward()
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    gradients = MAETok().write(model, {})
    wanted = [key for key in data if key.startswith("grad/")]
    assert len(wanted) == 11
    for key in wanted:
        torch.testing.assert_close(gradients[key.removeprefix("grad/")], data[key], rtol=1e-4, atol=1e-7)


def test_the_mean_of_latents_is_the_feature(data):
    model = maemm.load(state_of(data), **HEADS)
    x = {"image": data["input/x"]}
    torch.testing.assert_close(model.embed(x)["image"], data["out/h"].mean(1), rtol=0, atol=1e-5)
    assert model.embed(x, pool="mean")["image"].shape == (2, 48)
    assert model.embed(x, tokens=True)["image"].shape == (2, 16, 48)


def test_there_and_back(data, tmp_path):
    state = state_of(data)
    model = maemm.load(state, **HEADS)
    back = MAETok().write(model, model.extras)
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    torch.save({"model": state, "optimizer": {"state": {}}}, tmp_path / "published.pt")
    convert(tmp_path / "published.pt", tmp_path / "ours.safetensors", **HEADS)
    convert(tmp_path / "ours.safetensors", tmp_path / "theirs.pt", to="maetok")
    written = torch.load(tmp_path / "theirs.pt", weights_only=True)["model"]
    assert written.keys() == state.keys() and all(torch.equal(written[key], state[key]) for key in state)


def test_auxiliary_decoders_of_a_file_are_kept(data):
    state = state_of(data)
    more = {**state, "dino_decoder.blocks.0.weight": torch.randn(3, 3)}
    model = maemm.load(more, **HEADS)
    back = MAETok().write(model, model.extras)
    assert back.keys() == more.keys() and torch.equal(
        back["dino_decoder.blocks.0.weight"], more["dino_decoder.blocks.0.weight"]
    )
    with pytest.raises(MaemmError, match=r"1 unexpected \(encoder.adapter.weight\)"):
        maemm.load({**state, "encoder.adapter.weight": torch.randn(3)}, **HEADS)


def test_a_model_of_ours_becomes_a_whole_file(data):
    """With the parts that the published decoder has and never uses; the auxiliary decoders are left out."""
    state = state_of(data)
    recipe = maemm.load(state, **HEADS).recipe
    auxiliary = {"type": "predict", "target": {"type": "hog", "cell": 4, "window": 8}, "decoder": "latent"}
    model = build_model({**recipe, "objectives": {"reconstruct": {}, "hog": auxiliary}})
    assert len(model.objectives["hog"].decoder.blocks) == 2
    written = MAETok().write(model, {})
    assert {k: v.shape for k, v in written.items()} == {k: v.shape for k, v in state.items()}
    assert not any(written[key].any() for key in UNUSED)


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder.rotary": "pairs"},
        {"decoder.rotary": None},
        {"encoder.prefix": 2},
        {"encoder.hidden": "remove"},
        {"encoder.latent_dim": None},
        {"modalities.image.decoder_position": "sincos"},
        {"modalities.image.normalize": "patch"},
        {"encoder": {"type": "vit", "dim": 48}, "decoder": {"type": "full"}},
    ],
)
def test_other_models_are_refused(data, changes):
    recipe = maemm.load(state_of(data), **HEADS).recipe
    with pytest.raises(MaemmError, match="layout 'maetok' .*; use another layout"):
        MAETok().write(build_model(maemm.config.load(recipe, changes)), {})


def test_files_that_lack_something(data):
    state = state_of(data)
    with pytest.raises(MaemmError, match="give heads="):
        maemm.load(state, kind="maetok")
    del state["encoder.freqs"]
    with pytest.raises(MaemmError, match=r"not of kind 'maetok': missing encoder\.freqs"):
        maemm.load(state, kind="maetok", **HEADS)


def test_the_published_size():
    with torch.device("meta"):
        model = maemm.build("image/maetok_base")
    shapes = {key: list(x.shape) for key, x in MAETok().write(model, {}).items()}
    assert shapes["quant_conv.weight"] == [32, 768] and shapes["encoder.latent_tokens"] == [1, 128, 768]
    assert shapes["encoder.freqs"] == [2, 12, 384] and shapes["encoder.model.pos_embed"] == [1, 257, 768]
    assert json.dumps(sorted(shapes)).count("blocks.11.") == 2 * 14


def test_masks_are_drawn_as_published():
    """The ratio is highest at 0.6 and never below 0.4; it is that of the whole batch, and all patches are predicted."""
    model = maemm.build("image/maetok_tiny_cpu").train()
    x = model.modalities["image"].example(2, maemm.Rng((0, "x"), range(2), 2))
    counts = []
    for step in range(60):
        (inputs,) = model.plan_sets({"image": x}, maemm.Rng((0, step), range(2), 2))
        plan = inputs["image"].plan
        assert plan.predict.shape == (2, 64) and plan.counted.all()
        assert plan.visible.shape == (2, 64)  # padded: one shape in all steps
        visible = int(plan.visible_valid[0].sum())
        assert plan.of_hidden().counted.sum() == 2 * (64 - visible)
        counts.append(1 - visible / 64)
    assert 0.4 <= min(counts) < 0.45 and 0.55 < max(counts) <= 0.61 and len(set(counts)) > 8
    assert sum(ratio > 0.5 for ratio in counts) > sum(ratio < 0.5 for ratio in counts)
