"""CrossMAE: mixes of the encoder's layers, mask tokens that do not see each other, a part of the hidden tokens."""

from dataclasses import replace

import pytest
import torch

import maemm
from maemm import config
from maemm.contract import Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.positions import lattice
from maemm.contract.rng import Rng
from maemm.model.build import build_model
from maemm.model.masking.predict_some import PredictSome

IMAGE = {"type": "image", "size": 32, "patch": 8, "normalize": "none"}


def model_of(names=("image",), **decoder):
    recipe = {
        "modalities": {name: dict(IMAGE) for name in names},
        "encoder": {"type": "vit", "dim": 16, "depth": 3, "heads": 2, "final_norm": False},
        "decoder": {"type": "crossmae", "dim": 8, "depth": 2, "heads": 2, **decoder},
        "data": {"root": None},
    }
    torch.manual_seed(0)
    return build_model(config.load(recipe, {})).eval()


def planned(model, rows=3):
    rng = Rng((0, 0), range(rows), rows)
    return model.plan({name: m.example(rows, rng) for name, m in model.modalities.items()}, rng)


def by_hand(model, inputs):
    """Predictions of one modality, written out with plain operations."""
    (name,), decoder = inputs, model.decoder
    latents = model.encoder(inputs, model.modalities, layers=(-1, 0, 1, 2))
    features = [torch.cat([latents.prefix_layers[k][name], latents.layers[k][name]], 1) for k in (-1, 0, 1, 2)]
    x = decoder.mask_token + model.modalities[name].position(inputs[name].tokens, inputs[name].plan.predict, "decoder")
    for j, block in enumerate(decoder.blocks):
        context = decoder.mix_norms[j](sum(decoder.mix[j, k] * f for k, f in enumerate(features)))
        attention, y = block.attention, block.norm1(x)
        q, (k, v) = attention.q(y), attention.kv(context).chunk(2, -1)
        heads = [(a.unflatten(-1, (2, 4)).transpose(1, 2)) for a in (q, k, v)]
        weights = (heads[0] @ heads[1].mT / 2.0).softmax(-1)
        x = x + attention.proj((weights @ heads[2]).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return decoder.heads[name](decoder.norm(x))


def test_predictions_are_those_of_the_formula():
    model = model_of()
    inputs = planned(model)
    torch.testing.assert_close(model(inputs).pred["image"], by_hand(model, inputs), rtol=1e-5, atol=1e-5)
    entering = model.encoder(inputs, model.modalities, layers=(-1,)).layers[-1]["image"]
    x = inputs["image"]
    modality = model.modalities["image"]
    embedded = modality.embed(x.tokens, x.plan.visible) + modality.position(x.tokens, x.plan.visible, "encoder")
    assert torch.equal(entering, embedded)


@pytest.mark.parametrize("layers", ["weighted", "last"])
def test_a_prediction_does_not_depend_on_what_else_is_predicted(layers):
    model = model_of(layers=layers)
    inputs = planned(model)
    whole = model(inputs).pred["image"]
    x = inputs["image"]
    some = replace(x, plan=replace(x.plan, predict=x.plan.predict[:, ::3], counted=x.plan.counted[:, ::3]))
    torch.testing.assert_close(model({"image": some}).pred["image"], whole[:, ::3], rtol=0, atol=1e-6)


def test_every_layer_is_read_and_learned():
    model = model_of().train()
    model(planned(model)).total.backward()
    assert model.decoder.mix.grad.abs().min() > 0
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_several_modalities_and_padding():
    model = model_of(("a", "b"))
    inputs = planned(model)
    out = model(inputs)
    assert out.pred["a"].shape == out.pred["b"].shape == (3, 12, 192)
    x = inputs["a"]
    padded = torch.cat([x.plan.visible, x.plan.visible[:, -1:]], 1)
    valid = torch.arange(padded.shape[1]).expand_as(padded) < x.plan.visible.shape[1]
    more = {**inputs, "a": replace(x, plan=replace(x.plan, visible=padded, visible_valid=valid))}
    torch.testing.assert_close(model(more).pred["b"], out.pred["b"], rtol=0, atol=1e-5)


def test_encoders_without_blocks_are_refused():
    with pytest.raises(MaemmError, match="decoder crossmae weighs the blocks of the encoder"):
        maemm.build("cav/cav_mae_tiny_cpu", **{"decoder": {"type": "crossmae", "dim": 64, "heads": 2}})


# ------------------------------------------------------------------------------------------------------- predict_some
def tokens_of(count, rows, valid=None):
    return {"image": Tokens(torch.zeros(rows, count, 1), lattice((count,))[None], (count,), valid)}


@pytest.mark.parametrize(
    ("count", "fraction", "expected"), [(196, 0.25, 49), (196, 0.75, 147), (196, 0.1, 20), (64, 0.25, 16)]
)
def test_the_published_number_of_tokens_is_predicted(count, fraction, expected):
    masking = PredictSome(masking={"type": "random", "ratio": 0.75}, fraction=fraction)
    rng = Rng((0, 0), range(40), 40)
    tokens = tokens_of(count, 40)
    plan, whole = masking(tokens, rng)["image"], masking.masking(tokens, rng)["image"]
    assert plan.predict.shape == (40, expected) and torch.equal(plan.visible, whole.visible)
    assert expected == whole.predict.shape[1] - int(count * (0.75 - fraction))
    plan.check("image", tokens["image"])
    hidden = torch.zeros(40, count).scatter(1, whole.predict, 1.0)
    assert hidden.gather(1, plan.predict).eq(1).all() and plan.counted.eq(1).all()
    if fraction < 0.75:  # others for each sample, and all hidden ones equally likely
        assert len(plan.predict.unique(dim=0)) == 40


def test_padded_rows_predict_a_fraction_of_what_they_have():
    valid = torch.arange(64).expand(4, -1) < torch.tensor([[64], [32], [8], [0]])
    rng = Rng((0, 0), range(4), 4)
    plan = PredictSome(masking={"type": "random", "ratio": 0.75}, fraction=0.25)(tokens_of(64, 4, valid), rng)["image"]
    assert plan.predict_valid.sum(1).tolist() == [16, 8, 2, 0] and plan.counted.sum(1).tolist() == [16, 8, 2, 0]
    assert valid.gather(1, plan.predict)[plan.predict_valid].all()
    joint = PredictSome(masking={"type": "dirichlet", "budget": 20}, fraction=0.25)
    plans = joint({"a": tokens_of(64, 4)["image"], "b": tokens_of(64, 4)["image"]}, rng)
    assert all(plan.predict_valid.sum(1).le(17).all() for plan in plans.values())
