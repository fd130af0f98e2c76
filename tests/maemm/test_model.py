"""The model through its public entry, on a small grid signal."""

import pytest
import torch

from maemm import MaemmError, Plan, Preprocessed, Rng
from maemm.model.build import build_model

RECIPE = {
    "modalities": {"image": {"type": "image", "size": 16, "patch": 4, "masking": {"type": "random", "ratio": 0.75}}},
    "encoder": {"type": "vit", "dim": 16, "depth": 2, "heads": 2},
    "decoder": {"type": "full", "dim": 8, "depth": 1, "heads": 2},
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(RECIPE).eval()


def batch(rows=3):
    return {"image": torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(1))}


def rng(rows=3):
    return Rng((0, 0), range(rows), rows)


def test_shapes_and_counts(model):
    inputs = model.plan(batch(), rng())
    out = model(inputs)
    assert out.pred["image"].shape == out.target["image"].shape == (3, 12, 48)
    assert out.encoded["image"].shape == (3, 4, 16) and out.prefix["image"].shape == (3, 1, 16)
    assert out.loss["image"].dtype == torch.float32
    assert torch.allclose(out.total, out.loss["image"].mean())
    counts = model.counts(inputs)
    assert {n: c.item() for n, c in counts.items()} == {n: t.count.item() for n, t in out.parts.items()}


def test_hidden_tokens_do_not_leak(model):
    inputs = model.plan(batch(), rng())
    first = model(inputs)
    signal = batch()["image"]
    tokens = model.modalities["image"].tokenize(Preprocessed(signal))
    changed = tokens.values.clone()
    index = inputs["image"].plan.predict[..., None].expand(-1, -1, 48)
    changed.scatter_(1, index, 7.0)
    x = model.modalities["image"].untokenize(changed, tokens)
    second = model({"image": x}, plans={"image": inputs["image"].plan})
    assert torch.equal(first.encoded["image"], second.encoded["image"])
    assert torch.equal(first.pred["image"], second.pred["image"])
    assert not torch.equal(first.loss["image"], second.loss["image"])


def test_every_trainable_parameter_gets_a_gradient(model):
    model(batch(), rng=rng()).total.backward()
    lonely = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum())]
    assert lonely == []


def test_a_row_alone_equals_the_row_in_a_batch(model):
    inputs = model.plan(batch(), rng())
    out = model(inputs)
    plan = inputs["image"].plan
    alone = model({"image": batch()["image"][1:2]}, plans={"image": Plan(plan.visible[1:2], plan.predict[1:2])})
    assert torch.allclose(alone.pred["image"], out.pred["image"][1:2], atol=1e-5)


def test_padding_changes_nothing(model):
    valid = torch.ones(2, 16, 16, dtype=torch.bool)
    valid[0, 8:] = False
    x = batch(2)["image"]
    other = x.clone()
    other[0, :, 8:] = 5.0
    first, second = ({"image": Preprocessed(one, valid)} for one in (x, other))
    assert torch.equal(model.embed(first)["image"], model.embed(second)["image"])
    one, two = model(first, rng=rng(2)), model(second, rng=rng(2))
    assert torch.equal(one.total, two.total) and one.total.isfinite()


def test_a_sample_without_valid_tokens_is_finite_and_not_counted(model):
    valid = torch.ones(2, 16, 16, dtype=torch.bool)
    valid[0] = False
    out = model({"image": Preprocessed(batch(2)["image"], valid)}, rng=rng(2))
    assert out.total.isfinite() and out.plans["image"].counted[0].sum() == 0
    out.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_several_plans_per_sample(model):
    rows = torch.tensor([0, 0, 1])
    plan = model.plan(batch(3), rng())["image"].plan
    both = Plan(plan.visible, plan.predict, rows=rows)
    out = model({"image": batch(3)["image"][:2]}, plans={"image": both})
    same = model({"image": batch(3)["image"][rows]}, plans={"image": plan})
    assert torch.allclose(out.loss["image"], same.loss["image"], atol=1e-6)


def test_nothing_predicted_is_legal(model):
    every = torch.arange(16).expand(3, -1)
    out = model(batch(), plans={"image": Plan(every, every[:, :0])})
    assert out.pred["image"].shape == (3, 0, 48) and out.total == 0


@pytest.mark.parametrize("pool", ["mean", "cls", "max", "cls+max"])
@pytest.mark.parametrize("norm", ["before", "none"])
def test_embed(model, pool, norm):
    features = model.embed(batch(), pool=pool, norm=norm)["image"]
    assert features.shape == (3, 32 if pool == "cls+max" else 16)
    assert torch.equal(features, model.embed(batch(), pool=pool, norm=norm)["image"])


def test_embed_of_layers_and_tokens(model):
    assert model.embed(batch(), layers=[0, 1])["image"].shape == (3, 32)
    assert model.embed(batch(), tokens=True)["image"].shape == (3, 16, 16)
    with pytest.raises(MaemmError, match="layers"):
        model.embed(batch(), layers=[9])


def test_another_size_is_embedded(model):
    assert model.embed({"image": torch.randn(1, 3, 8, 24)})["image"].shape == (1, 16)


@pytest.mark.parametrize(
    "call, what",
    [
        (lambda m: m(batch()), "plans= or rng="),
        (lambda m: m({"other": batch()["image"]}, rng=rng()), "no modality 'other'"),
        (lambda m: m(batch(), plans={}), "plans are for"),
        (lambda m: m.logits(batch()), "classifier"),
        (lambda m: m.embed(batch(), pool="sum"), "unknown pool"),
        (lambda m: m.embed(batch(), norm="x"), "unknown norm"),
        (lambda m: m.embed({"image": [1]}), "tensors or Preprocessed"),
    ],
)
def test_mistakes_are_named(model, call, what):
    with pytest.raises(MaemmError, match=what):
        call(model)


def test_encoder_cost_follows_the_visible_tokens(model):
    seen = []
    hook = model.encoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    embedded = []
    other = model.modalities["image"].embedding.register_forward_pre_hook(
        lambda _, args: embedded.append(args[0].shape[1])
    )
    model(batch(), rng=rng())
    hook.remove(), other.remove()
    assert seen == [5] and embedded == [4]


def test_bf16_keeps_losses_in_float32(model):
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch(), rng=rng())
    assert out.loss["image"].dtype == out.total.dtype == torch.float32
    plain = model(batch(), rng=rng())
    assert abs(out.total - plain.total) < 0.05


def test_meta_build():
    with torch.device("meta"):
        model = build_model(RECIPE)
    assert all(p.is_meta for p in model.parameters())


def test_two_names_share_one_module():
    recipe = {**RECIPE, "modalities": {**RECIPE["modalities"], "other": {"same_as": "image"}}}
    model = build_model(recipe)
    assert model.modalities["other"] is model.modalities["image"]
    out = model({"image": batch()["image"], "other": batch()["image"]}, rng=rng())
    assert set(out.parts) == {"reconstruct.image", "reconstruct.other"} and out.prefix["joint"].shape == (3, 1, 16)


def test_a_wrong_option_names_the_part():
    with pytest.raises(MaemmError, match="unknown key 'encoder.widht'"):
        build_model({**RECIPE, "encoder": {"type": "vit", "widht": 3}})
    with pytest.raises(MaemmError, match="multiple of 5 heads"):
        build_model({**RECIPE, "encoder": {"type": "vit", "dim": 16, "heads": 5}})
