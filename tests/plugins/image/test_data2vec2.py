"""data2vec 2.0 against tensors of the published code: blocks, targets, decoder, losses; and its files."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import maemm
from maemm import MaemmError, Plan
from maemm.contract import Latents, ModalityInput, Output, Preprocessed, Tokens
from maemm.contract.rng import Rng
from maemm.model.build import build_model
from maemm.model.decoders.conv import Conv
from maemm.model.encoders.vit import ViT
from maemm.model.objectives.pooled import Pooled
from maemm.model.targets.ema import EMA
from maemm.model.targets.losses import feature_loss
from maemm.tasks.convert.run import convert
from maemm_plugins.image.weights.data2vec2 import Data2Vec2

GOLDEN = Path(__file__).parents[2] / "golden" / "data2vec2"
CLONES = 2
PUBLISHED = {"features": "ffn", "instance_norm": True, "loss": "mse", "reduction": "sum_by_root"}


@pytest.fixture(scope="module")
def data():
    return load_file(GOLDEN / "data2vec2_tiny.safetensors")


@pytest.fixture(scope="module")
def facts():
    return json.loads((GOLDEN / "data2vec2_tiny.json").read_text())


class Embedded(nn.Module):
    """A modality whose tokens are embedded and have their positions already."""

    def embed(self, tokens, index):
        return tokens.gather(index)

    def position(self, tokens, index, role):
        return torch.zeros(1, index.shape[1], tokens.values.shape[-1])


@pytest.fixture(scope="module")
def encoder(data):
    encoder = ViT(["x"], dim=24, depth=4, heads=3, block_norm="post", input_norm=True, final_norm=False).eval()
    state = {}
    for key, value in data.items():
        if key.startswith("state/teacher.blocks."):
            number, rest = key.removeprefix("state/teacher.blocks.").split(".", 1)
            state[f"blocks.{int(number) + 1}.{rest}"] = value
        elif key.startswith("state/teacher.context_encoder."):
            state[key.removeprefix("state/teacher.context_encoder.").replace("norm.", "input_norm.", 1)
                  if ".norm." in key else key.removeprefix("state/teacher.context_encoder.")] = value  # fmt: skip
    encoder.load_state_dict({**state, "prefix": torch.zeros(1, 1, 24)})
    encoder.prefix = nn.Parameter(data["input/teacher_tokens"][:, :1])  # behind it, one for each sample
    return encoder


def inputs_of(data, plan=None, **more):
    tokens = Tokens(data["input/teacher_tokens"][:, 1:], torch.zeros(1, 25, 2), (5, 5))
    return ModalityInput(
        tokens, Plan.all_visible(tokens) if plan is None else plan, Preprocessed(torch.zeros(2)), **more
    )


def close(received, expected, atol=1e-5, rtol=0.0):
    torch.testing.assert_close(received.detach(), expected, atol=atol, rtol=rtol)


def test_blocks_whose_norms_stand_behind_the_residuals(encoder, data):
    try:
        for kind, name in (("block", "end"), ("ffn", "target")):
            encoder.layer_features = kind
            layers = encoder({"x": inputs_of(data)}, {"x": Embedded()}, layers=range(4)).layers
            for number in range(3):
                close(layers[number + 1]["x"], data[f"out/layer/{number}/{name}"][:, 1:])
            if kind == "block":
                close(layers[0]["x"], data["out/after_prenet"][:, 1:])
    finally:
        encoder.layer_features = "block"


def target_of(encoder, **options):
    target = EMA(["x"], 24, layers=2, **{**PUBLISHED, **options})
    target.connect(SimpleNamespace(encoder=encoder, modalities={"x": Embedded()}))
    return target


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "out/target_all"),
        ({"instance_norm": False}, "out/option/no_instance_norm/target_all"),
        ({"layer_norm_each": True, "instance_norm": False}, "out/option/layer_norm_each_layer/target_all"),
        ({"layer_norm": False}, "out/option/no_final_norm/target_all"),
    ],
)
def test_targets(encoder, data, options, name):
    close(target_of(encoder, **options).precompute(None, {"x": inputs_of(data)})["x"], data[name])


def decoder_of(data):
    decoder = Conv({"x": 24}, 24, 1, dim=24, depth=2, kernel=3, groups=4)
    names = {"blocks.0.0.": "layers.x.0.", "blocks.1.0.": "layers.x.1.", "proj.": "heads.x."}
    state = {key.removeprefix("state/decoder."): v for key, v in data.items() if key.startswith("state/decoder.")}
    ours = {next(mine + key.removeprefix(old) for old, mine in names.items() if key.startswith(old)): v
            for key, v in state.items()}  # fmt: skip
    decoder.load_state_dict(ours)
    return decoder


def test_decoder_losses_and_gradients(encoder, data, facts):
    rows, (samples, clones) = torch.arange(2).repeat_interleave(CLONES), (2, CLONES)
    assert (facts["batch"], facts["clone_batch"]) == (samples, clones)
    plan = Plan(data["input/visible"], data["input/predict"], rows=rows)
    noise = torch.zeros(4, 25, 24).scatter(1, plan.predict[..., None].expand(-1, -1, 24), data["input/mask_noise"])
    target, decoder = target_of(encoder), decoder_of(data)
    computed = target.precompute(None, {"x": inputs_of(data)})["x"]
    x = inputs_of(data, plan, computed=computed, drawn=noise / facts["mask_noise_std"])
    student = data["input/student"].clone().requires_grad_()
    latents = Latents({"x": student[:, 1:]}, {"x": student[:, :1]})
    pred = decoder(latents, {"x": x}, {})["x"]
    close(pred, data["out/pred"])
    wanted = target(x, plan.predict)
    close(wanted, data["out/target"])
    losses = target.loss(pred, wanted)
    close(losses, data["out/loss_token"], atol=0, rtol=1e-5)
    close(losses.sum(), data["out/loss_regression_sum"], atol=0, rtol=1e-6)

    model = SimpleNamespace(encoder=encoder, modalities={"x": Embedded()}, targets={"x": target})
    target.output_dim = lambda: 24
    pooled = Pooled("pooled", weight=facts["cls_loss"] * len(student))  # published: a sum over the rows of a GPU
    pooled.connect(model)
    assert not len(pooled.heads)
    out = Output({"x": plan}, {}, {}, {}, {}, latents.prefix, {}, inputs={"x": x})
    (term,) = pooled(out, model).values()
    close(term.weight * term.mean * plan.predict.numel(), data["out/loss_cls_sum"], atol=0, rtol=1e-6)
    total = losses.sum() / plan.predict.numel() + term.weight * term.mean
    close(total, data["out/total_per_sample_size"], atol=0, rtol=1e-6)
    total.backward()
    gradients = {
        "grad/student": student.grad,
        "grad/decoder.blocks.0.0.weight": decoder.layers["x"][0].weight.grad,
        "grad/decoder.blocks.1.0.bias": decoder.layers["x"][1].bias.grad,
        "grad/decoder.proj.weight": decoder.heads["x"].weight.grad,
        "grad/decoder.proj.bias": decoder.heads["x"].bias.grad,
    }
    for key, gradient in gradients.items():
        close(gradient, data[key], atol=1e-5, rtol=1e-4)


def test_the_loss_with_a_beta_is_scaled_alike():
    torch.manual_seed(0)
    pred, wanted = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    plain = feature_loss(pred, wanted, "smooth_l1", beta=0.5)
    close(feature_loss(pred, wanted, "smooth_l1", beta=0.5, reduction="sum_by_root"), plain * 4)


# ------------------------------------------------------------------------------------------------------ noise
RECIPE = {
    "modalities": {"image": {"type": "image", "size": 16, "patch": 4, "masking": {"type": "random", "ratio": 0.75},
                             "target": {"type": "ema", "layers": 2, **PUBLISHED}}},
    "masking": {"type": "multi_mask", "masks_per_sample": 3},
    "encoder": {"type": "vit", "dim": 16, "depth": 3, "heads": 2, "block_norm": "post", "input_norm": True,
                "final_norm": False},
    "decoder": {"type": "conv", "dim": 16, "depth": 2, "groups": 4},
    "objectives": {"reconstruct": {}, "pooled": {"weight": 0.1}},
}  # fmt: skip


def model_of(**overrides):
    torch.manual_seed(0)
    return build_model(maemm.config.load(RECIPE, {key.replace("__", "."): value for key, value in overrides.items()}))


def pictures(rows):
    return {"image": Preprocessed(torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))[list(rows)])}


def test_normal_numbers():
    rng = Rng((0, "normal"), range(3), 3)
    values = rng.normal("x", 20_001)
    assert values.shape == (3, 20_001) and values.dtype == torch.float32 and values.isfinite().all()
    assert abs(float(values.mean())) < 0.01 and abs(float(values.std()) - 1) < 0.01
    assert abs(float((values.abs() < 1).float().mean()) - 0.6827) < 0.01
    assert torch.equal(rng.normal("x", 5, 7).flatten(1), values[:, :35])
    assert torch.equal(Rng((0, "normal"), [2], 3).normal("x", 35)[0], values[2, :35])


def test_noise_is_drawn_in_training_and_a_function_of_sample_and_plan():
    model = model_of().train()
    whole = model.plan(pictures(range(4)), Rng((0, 5), range(4), 4))["image"].drawn
    assert whole.shape == (12, 16, 16) and abs(float(whole.mean())) < 0.1 and abs(float(whole.std()) - 1) < 0.05
    for rows in (range(2), range(2, 4)):
        part = model.plan(pictures(rows), Rng((0, 5), rows, 4))["image"].drawn
        assert torch.equal(part.view(3, 2, 16, 16), whole.view(3, 4, 16, 16)[:, list(rows)])
    assert len({float(row[0, 0]) for row in whole}) == 12
    assert model.eval().plan(pictures(range(4)), Rng((0, 5), range(4), 4))["image"].drawn is None


def test_noise_changes_predictions_a_little_and_none_where_it_is_0():
    for std in (0.0, 0.01):
        model = model_of(decoder__noise=std).train()
        inputs = model.plan(pictures(range(2)), Rng((0, 0), range(2), 2))
        silent = {"image": replace(inputs["image"], drawn=None)}
        with torch.no_grad():
            change = (model.predict(inputs).pred["image"] - model.predict(silent).pred["image"]).abs().max()
        assert 0 < change < 0.5 if std else change == 0


def test_a_pooled_target_of_weight_0_changes_nothing():
    plain, beside = model_of(), model_of(objectives__pooled__weight=0.0)
    del plain.objectives["pooled"]
    for model in (plain, beside):
        model.train()(model.plan(pictures(range(2)), Rng((0, 0), range(2), 2))).total.backward()
    gradients = [{name: p.grad for name, p in model.named_parameters()} for model in (plain, beside)]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is gradients[1][name] is None or torch.equal(gradient, gradients[1][name]), name


def test_what_the_decoder_refuses():
    with pytest.raises(MaemmError, match="encoder.dim 24 is no multiple of 16 groups"):
        Conv({"x": 24}, 24, 1)
    with pytest.raises(MaemmError, match="a kernel of 4 has no middle"):
        Conv({"x": 24}, 32, 1, kernel=4)
    with pytest.raises(MaemmError, match=r"lie on a grid of 2 axes, the convolutions have 1 \(decoder.axes\)"):
        model_of(decoder__axes=1)(pictures(range(2)), rng=Rng((0,), range(2), 2))
    with pytest.raises(MaemmError, match="compares a class token, and the encoder has none"):
        model_of(encoder__prefix=0)


# ------------------------------------------------------------------------------------------------------ files
def test_files_there_and_back(tmp_path):
    model = model_of(modalities__image__position="fixed")
    state = Data2Vec2().write(model, {})
    image = "modality_encoders.IMAGE."
    for name in ("context_encoder.blocks.0.attn.qkv.weight", "decoder.blocks.1.0.bias", "extra_tokens"):
        assert f"{image}{name}" in state
    assert {"blocks.1.mlp.fc1.bias", f"_ema.{image}local_encoder.proj.weight", "_ema.blocks.0.norm1.weight"} <= set(
        state
    )
    assert "blocks.2.mlp.fc1.bias" not in state and not any("_ema" in key and "decoder" in key for key in state)
    loaded = maemm.load(state, heads=2)
    assert loaded.kind == "data2vec2" and loaded.recipe["modalities"]["image"]["target"]["layers"] == 2
    back = Data2Vec2().write(loaded, loaded.extras)
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    plan = model.plan(pictures(range(2)), Rng((0,), range(2), 2))["image"].plan
    ours, theirs = (net.eval().predict(pictures(range(2)), {"image": plan}) for net in (model, loaded))
    close(theirs.loss["image"], ours.loss["image"].detach())
    # As published: the average lies in an entry among the weights.
    average = {key.removeprefix("_ema."): value for key, value in state.items() if key.startswith("_ema.")}
    own = {key: value for key, value in state.items() if not key.startswith("_ema.")}
    torch.save({"model": {**own, "_ema": average}, "args": None}, tmp_path / "base.pt")
    convert(tmp_path / "base.pt", tmp_path / "ours.safetensors", heads=2)
    convert(tmp_path / "ours.safetensors", tmp_path / "theirs.pt", to="data2vec2")
    written = torch.load(tmp_path / "theirs.pt", weights_only=True)["model"]
    assert written.keys() == {*own, "_ema"} and written["_ema"].keys() == average.keys()


def test_an_encoder_alone():
    state = Data2Vec2().write(model_of(modalities__image__position="fixed"), {})
    alone = {key: value for key, value in state.items() if not key.startswith("_ema.") and ".decoder." not in key}
    model = maemm.load(alone, heads=2)
    assert model.decoder is None and not len(model.targets)
    back = Data2Vec2().write(model, model.extras)
    assert back.keys() == alone.keys() and all(torch.equal(back[key], alone[key]) for key in alone)
    with pytest.raises(MaemmError, match="does not say how many"):
        Data2Vec2().write(model, {})
    for changes in ({"encoder__block_norm": "pre"}, {"encoder__final_norm": True}, {"decoder": {"type": "predictor"}}):
        with pytest.raises(MaemmError, match="layout 'data2vec2'"):
            Data2Vec2().write(model_of(**changes), {})
