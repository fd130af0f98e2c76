"""Rotary positions in encoder and predictor: what turns, what stays, and that everything that reads attention knows."""

import copy
import math

import pytest
import torch

import maemm
from maemm import MaemmError, Plan, Rng, Tokens
from maemm.contract.positions import lattice
from maemm.model.build import build_model
from maemm.model.encoders.vit import plain_vit
from maemm.model.repeated import recompute_activations
from maemm.model.rotary import Rotary, RotaryAttention, rotate, rotation_of
from maemm.tasks.diagnose.attention import recording, weights_of

SIDE = 4


def recipe(encoder=None, decoder=None, **modality):
    image = {"type": "image", "size": 16, "patch": 4, "position": "none", "masking": {"type": "random", "ratio": 0.5}}
    return {
        "modalities": {"image": {**image, **modality}},
        "encoder": {
            "type": "vit",
            "dim": 24,
            "depth": 2,
            "heads": 2,
            "prefix": 0,
            "rotary": "pairs",
            **(encoder or {}),
        },
        "decoder": {"type": "predictor", "dim": 24, "depth": 1, "heads": 2, "rotary": "pairs", **(decoder or {})},
    }


def build(*args, **options):
    torch.manual_seed(0)
    return build_model(maemm.config.load(recipe(*args, **options), {})).eval()


def pictures(batch=2):
    return {"image": torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(1))}


def tokens_of(grid):
    places = lattice(grid)
    return Tokens(torch.zeros(1, len(places), 1), places[None], grid)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("width", [6, 7, 14, 20, 64])
def test_pairs_turn_by_their_distance_alone(axes, width):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, width, generator=generator).double()
    place, other = torch.randint(0, 9, (2, 1, axes), generator=generator).double()
    shift = torch.arange(1, axes + 1)

    def score(offset):
        turned = [
            rotate(x, rotation_of(at + offset, width, "pairs")[:, None, None]) for x, at in ((q, place), (k, other))
        ]
        return float((turned[0] * turned[1]).sum()), float(turned[0].norm())

    assert score(0) == pytest.approx(score(shift), abs=1e-5)
    assert score(0)[1] == pytest.approx(float(q.norm()), abs=1e-5)
    kept = rotate(q, rotation_of(place, width, "pairs")[:, None, None])[..., 2 * (width // axes // 2) * axes :]
    assert torch.equal(kept, q[..., width - kept.shape[-1] :])


def test_angles_of_both_kinds():
    cos, sin = rotation_of(torch.tensor([[3.0]]), 8, "pairs")
    angles = [3 * 10000 ** (-i / 4) for i in range(4)]
    assert cos[0].tolist() == pytest.approx([math.cos(a) for a in angles for _ in range(2)], abs=1e-6)
    cos, sin = rotation_of(torch.tensor([[3.0]]), 8, "vjepa2")
    signs = [-1, 1] * 4  # of the other member of the pair
    assert sin[0].tolist() == pytest.approx([s * math.sin(a) for s, a in zip(signs, 2 * angles, strict=True)], abs=1e-6)
    with pytest.raises(MaemmError, match="heads of 5 channels are too narrow for rotary positions of 3 axes"):
        rotation_of(torch.zeros(1, 3), 5, "pairs")


def test_a_table_is_made_once_for_each_grid(monkeypatch):
    rotary, index = Rotary(12, "pairs"), torch.tensor([[0, 5, 7]])
    first = rotary(tokens_of((2, 4)), index)
    assert first.shape == (2, 1, 1, 3, 12)
    monkeypatch.setattr("maemm.model.rotary.rotation_of", None)
    assert torch.equal(rotary(tokens_of((2, 4)), index), first)
    assert not copy.deepcopy(rotary)._cache and not rotary.state_dict()


def test_tokens_without_a_grid_turn_by_their_own_coordinates():
    rotary, coords = Rotary(12, "pairs"), torch.rand(2, 5, 3)
    index = torch.tensor([[0, 2], [1, 4]])
    rotation = rotary(Tokens(torch.zeros(2, 5, 1), coords), index)
    for row in range(2):
        assert torch.equal(rotation[:, row, 0], rotation_of(coords[row, index[row]], 12, "pairs"))


def test_wide_frames_as_the_published_predictor_counts_them():
    index = torch.arange(2 * 3 * 5)[None]
    published = Rotary(12, "vjepa2", square=True)(tokens_of((2, 3, 5)), index)
    n = torch.arange(30)
    expected = rotation_of(torch.stack([n // 9, n % 9 // 3, n % 3], -1).float(), 12, "vjepa2")
    assert torch.equal(published[:, 0, 0], expected)
    assert not torch.equal(published, Rotary(12, "vjepa2")(tokens_of((2, 3, 5)), index))
    assert torch.equal(
        Rotary(12, "vjepa2", square=True)(tokens_of((2, 4, 4)), index),
        Rotary(12, "vjepa2")(tokens_of((2, 4, 4)), index),
    )


# ------------------------------------------------------------------------------------------------ encoder and predictor
def test_only_the_order_of_tokens_has_no_meaning():
    """Features follow the places of the tokens: without rotary positions exchanged patches would change nothing."""
    model, batch = build(), pictures()
    x = batch["image"]
    turned = {"image": x.flip(-1).view(2, 3, 16, 4, 4).flip(-1).reshape(2, 3, 16, 16)}  # patches in another order
    features, others = (model.embed(b, tokens=True)["image"].view(2, SIDE, SIDE, -1) for b in (batch, turned))
    assert not torch.allclose(features, others.flip(2), atol=1e-3)
    plain = build({"rotary": None}, {"rotary": None})
    features, others = (plain.embed(b, tokens=True)["image"].view(2, SIDE, SIDE, -1) for b in (batch, turned))
    torch.testing.assert_close(features, others.flip(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "encoder", [{}, {"prefix": 2}, {"hidden": "replace"}, {"block_norm": "post"}, {"position_every_block": True}]
)
def test_it_trains_with_the_other_options_of_the_encoder(encoder):
    model = build(encoder).train()
    plain, checkpointed = (copy.deepcopy(model) for _ in range(2))
    recompute_activations([*checkpointed.encoder.blocks, *checkpointed.decoder.blocks])
    for each in (plain, checkpointed):
        each(pictures(), rng=Rng((0,), range(2), 2)).total.backward()
    for (name, parameter), (_, other) in zip(plain.named_parameters(), checkpointed.named_parameters(), strict=True):
        assert parameter.grad is not None and torch.equal(parameter.grad, other.grad), name


def test_class_tokens_stay_as_they_are():
    none = Rotary(12, "pairs").none(3, 2, torch.device("cpu"))
    x = torch.randn(3, 2, 2, 12)
    assert none.shape == (2, 3, 1, 2, 12) and torch.equal(rotate(x, none), x)


def test_features_of_feed_forward_parts_are_those_of_the_same_pass():
    model = build()
    _, expected = model.encode(pictures(), layers=[0, 1])
    model.encoder.layer_features = "ffn"
    _, latents = model.encode(pictures(), layers=[0, 1])
    assert torch.equal(latents.tokens["image"], expected.tokens["image"])
    assert not torch.equal(latents.layers[1]["image"], expected.layers[1]["image"])


def test_attention_that_is_shown_is_that_of_the_model(monkeypatch):
    """The weights that diagnose and guided masks compute again give the output of the layer."""
    model, seen, scores = build(), [], []
    attention = model.encoder.blocks[-1].attn
    forward = RotaryAttention.forward

    def note(layer, x, attn_mask=None, is_causal=False, rotation=None):
        out = forward(layer, x, attn_mask, is_causal, rotation)
        if layer is attention:
            seen.append((x, rotation, out))
        return out

    monkeypatch.setattr(RotaryAttention, "forward", note)
    with recording(model.encoder, lambda layer, weights, row: scores.append((layer, weights))):
        inputs, _ = model.encode(pictures())
    ((x, rotation, out),) = seen
    weights = weights_of(attention, x, None, rotation)
    values = attention.qkv(x).unflatten(-1, (3, 2, -1))[:, :, 2].transpose(1, 2)
    torch.testing.assert_close(attention.proj((weights @ values).transpose(1, 2).flatten(2)), out, rtol=0, atol=1e-5)
    recorded = torch.stack([weights for layer, weights in scores if layer == "blocks.1.attn"])
    torch.testing.assert_close(recorded, weights, rtol=0, atol=1e-6)
    received = model.encoder.guide(inputs, model.modalities, "attention")["image"]
    torch.testing.assert_close(received, weights.mean((1, 2)), rtol=0, atol=1e-6)


def test_several_modalities_in_one_sequence():
    spec = recipe({"prefix": 1})
    spec["modalities"] = {"a": {**spec["modalities"]["image"]}, "b": {**spec["modalities"]["image"], "patch": 8}}
    model = build_model(maemm.config.load(spec, {})).train()
    batch = {name: pictures()["image"] for name in "ab"}
    out = model(batch, rng=Rng((0,), range(2), 2))
    assert out.total.isfinite() and set(out.pred) == {"a", "b"}


def test_a_budget_over_modalities_changes_no_place():
    """Rows see 7 tokens of two modalities together: the encoder runs on those alone, turned by their own places."""
    spec = recipe({"prefix": 1})
    spec["modalities"] = {name: {**spec["modalities"]["image"]} for name in "ab"}
    model = build_model(maemm.config.load(spec, {})).eval()
    counts = {"a": torch.tensor([5, 2]), "b": torch.tensor([2, 5])}

    def encoded(budget):
        plans = {}
        for name, count in counts.items():
            index = (torch.arange(5) * 3 + torch.arange(2)[:, None]).clamp(max=15)
            valid = torch.arange(5) < count[:, None]
            index = torch.where(valid, index, index.gather(1, count[:, None] - 1))
            plans[name] = Plan(index, index[:, :0], visible_valid=valid, budget=budget)
        return model({name: pictures()["image"] for name in "ab"}, plans=plans).encoded, plans

    (expected, plans), (tokens, _) = encoded(None), encoded(7)
    for name, plan in plans.items():
        assert plan.visible_valid.any() and not plan.visible_valid.all()
        torch.testing.assert_close(
            tokens[name][plan.visible_valid], expected[name][plan.visible_valid], rtol=0, atol=1e-5
        )


def test_other_layouts_and_options_are_refused():
    model = build()
    with pytest.raises(MaemmError, match="layout 'timm' holds a plain ViT"):
        plain_vit(model, "timm")
    assert plain_vit(model, "vjepa2", rotary=True) is model.encoder
    with pytest.raises(MaemmError, match="square_frames is about rotary positions.*set decoder.rotary"):
        build(None, {"rotary": None, "square_frames": True})
    with pytest.raises(MaemmError, match="exponent is that of l1, not of mse.*set target.loss=l1"):
        build(target={"type": "ema", "loss": "mse", "exponent": 2.0})


# --------------------------------------------------------------------------------------------------------- the losses
@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0, 3.0])
def test_powers_of_the_error(exponent):
    model = build(target={"type": "ema", "loss": "l1", "exponent": exponent})
    target = model.targets["image"]
    values, pred = torch.randn(2, 2, 7, 5, generator=torch.Generator().manual_seed(0))
    expected = (pred - values).abs().pow(exponent).mean(-1) / exponent
    torch.testing.assert_close(target.loss(pred, values), expected, rtol=1e-6, atol=1e-6)
    counted = torch.ones(2, 7)
    counted[0, :3] = 0
    best = float((target.baseline(values, counted) * counted).sum())
    for constant in (values[counted > 0].mean(0), values[counted > 0].median(0).values):
        for offset in (-0.05, 0.0, 0.05):
            loss = target.loss((constant + offset).expand_as(values), values)
            assert best <= float((loss * counted).sum()) + 1e-4
