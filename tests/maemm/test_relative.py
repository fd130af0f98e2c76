"""Relative biases of attention: timm's BEiT with the same weights, grids of any axes, hidden and left-out tokens."""

import copy

import pytest
import torch
from timm.models.beit import Beit

import maemm
from maemm import MaemmError, Plan, Rng, Tokens
from maemm.contract.positions import lattice
from maemm.model.build import build_model
from maemm.model.encoders.vit import plain_vit
from maemm.model.repeated import recompute_activations
from maemm.tasks.diagnose.attention import weights_of


def recipe(encoder=None, **modality):
    image = {"type": "image", "size": [12, 20], "patch": 4, "position": "none"}
    image |= {"masking": {"type": "random", "ratio": 0.5}, "normalize": "none", **modality}
    return {
        "modalities": {"image": image},
        "encoder": {
            "type": "vit",
            "dim": 24,
            "depth": 2,
            "heads": 2,
            "qkv_bias": "no_key",
            "layer_scale": 0.1,
            "relative_bias": "shared",
            **(encoder or {}),
        },
        "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
    }


def build(encoder=None, change=None, **modality):
    spec = recipe(encoder, **modality)
    if (encoder or {}).get("hidden") == "replace":
        spec["decoder"] = {"type": "linear"}
    if change is not None:
        change(spec)
    torch.manual_seed(0)
    model = build_model(maemm.config.load(spec, {})).eval()
    with torch.no_grad():
        for table in model.encoder.relative_bias.tables if model.encoder.relative_bias else ():
            table.normal_()
    return model


def pictures(batch=2, size=(12, 20)):
    return {"image": torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))}


def timm_beit(model, kind):
    """timm's network with the weights of ``model``."""
    encoder, image = model.encoder, model.modalities["image"]
    beit = Beit(
        img_size=(12, 20), patch_size=4, num_classes=0, embed_dim=24, depth=2, num_heads=2, init_values=0.1,
        use_abs_pos_emb=False, use_rel_pos_bias=kind == "per_block", use_shared_rel_pos_bias=kind == "shared",
        global_pool="token",
    )  # fmt: skip
    names = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2", "attn.qkv.q_bias": "attn.q_bias"}
    names |= {"attn.qkv.v_bias": "attn.v_bias"}
    state = {"cls_token": encoder.prefix, "norm.weight": encoder.norm.weight, "norm.bias": encoder.norm.bias}
    for name, parameter in encoder.blocks.named_parameters():
        block, _, rest = name.partition(".")
        state[f"blocks.{block}.{names.get(rest, rest)}"] = parameter
    kernel = image.embedding.weight.view(24, 4, 4, 3).permute(0, 3, 1, 2)
    state |= {"patch_embed.proj.weight": kernel, "patch_embed.proj.bias": image.embedding.bias}
    tables = encoder.relative_bias.tables
    if kind == "shared":
        state["rel_pos_bias.relative_position_bias_table"] = tables[0]
    else:
        state |= {f"blocks.{i}.attn.relative_position_bias_table": table for i, table in enumerate(tables)}
    missing, unexpected = beit.load_state_dict(state, strict=False)
    assert not missing and not unexpected
    return beit.eval()


@pytest.mark.parametrize("kind", ["shared", "per_block"])
@pytest.mark.parametrize("hidden", ["remove", "replace"])
def test_features_and_gradients_are_those_of_timm(kind, hidden):
    model, batch = build({"relative_bias": kind, "hidden": hidden}), pictures()
    beit = timm_beit(model, kind)
    _, latents = model.encode(batch)
    ours = torch.cat([latents.prefix["image"], latents.tokens["image"]], 1)
    theirs = beit.forward_features(batch["image"])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    (ours * direction).sum().backward()
    (theirs * direction).sum().backward()
    if kind == "shared":
        pairs = [(model.encoder.relative_bias.tables[0], beit.rel_pos_bias.relative_position_bias_table)]
    else:
        blocks = [block.attn.relative_position_bias_table for block in beit.blocks]
        pairs = list(zip(model.encoder.relative_bias.tables, blocks, strict=True))
    for own, block in zip(model.encoder.blocks, beit.blocks, strict=True):
        pairs += [(own.attn.qkv.q_bias, block.attn.q_bias), (own.attn.qkv.v_bias, block.attn.v_bias)]
        pairs += [(own.attn.qkv.weight, block.attn.qkv.weight), (own.ls1.gamma, block.gamma_1)]
    pairs.append((model.encoder.prefix, beit.cls_token))
    for own, other in pairs:
        assert own.grad.abs().max() > 0
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-5, atol=1e-5)


def test_hidden_tokens_in_any_order_are_those_of_the_whole_grid():
    """With mask tokens in their places, timm's network sees what ours sees in the order [visible, hidden]."""
    model, batch = build({"hidden": "replace"}), pictures()
    beit = timm_beit(model, "shared")
    out = model.predict(batch, rng=Rng((3,), range(2), 2))
    plan = out.plans["image"]
    with torch.no_grad():
        x = beit.patch_embed(batch["image"])
        hidden = torch.zeros(2, 15, dtype=torch.bool).scatter(1, plan.predict, True)
        x = torch.where(hidden[..., None], model.encoder.hidden_token, x)
        x = torch.cat([beit.cls_token.expand(2, -1, -1), x], 1)
        for block in beit.blocks:
            x = block(x, shared_rel_pos_bias=beit.rel_pos_bias())
        x = beit.norm(x)[:, 1:]
    for index, ours in ((plan.visible, out.encoded["image"]), (plan.predict, out.decoded["image"])):
        torch.testing.assert_close(ours, x.gather(1, index[..., None].expand(-1, -1, 24)), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- the tables
def by_hand(bias, tokens, rows, prefix):
    """(R, L, L) entries, one pair after the other; a token is (modality, coordinates) or None for prefix tokens."""
    names, starts, after = list(bias.grids), {}, 0
    for name, grid in bias.grids.items():
        starts[name] = after
        after += torch.tensor([2 * side - 1 for side in grid]).prod().item()
    pairs = [(a, b) for a in names for b in names if a != b]

    def entry(query, key):
        if query is None or key is None:
            return after + len(pairs) + (2 if query is key else 0 if query is None else 1)
        if query[0] != key[0]:
            return after + pairs.index((query[0], key[0]))
        place = 0
        for a, b, side in zip(query[1], key[1], bias.grids[query[0]], strict=True):
            place = place * (2 * side - 1) + int(a - b) + side - 1
        return starts[query[0]] + place

    return torch.tensor([[[entry(q, k) for k in row] for q in row] for row in rows])


@pytest.mark.parametrize("grids", [{"a": (5,)}, {"a": (3, 4)}, {"a": (2, 3, 4)}, {"a": (3, 2), "b": (4,)}])
@pytest.mark.parametrize("prefix", [0, 2])
def test_every_pair_has_the_entry_of_its_offset(grids, prefix):
    from maemm.model.relative import RelativeBias

    bias = RelativeBias(grids, 3, 1, bool(prefix))
    generator = torch.Generator().manual_seed(0)
    inputs, rows = {}, [[None] * prefix for _ in range(2)]
    for name, grid in grids.items():
        places = lattice(grid)
        tokens = Tokens(torch.zeros(2, len(places), 1), places[None], grid)
        order = torch.rand(2, len(places), generator=generator).argsort(1)
        plan = Plan(order[:, :2].sort(1).values, order[:, 2:4].sort(1).values)
        inputs[name] = maemm.contract.ModalityInput(tokens, plan, maemm.contract.Preprocessed(tokens.values))
        for row in range(2):
            for index in (plan.visible, plan.predict):
                rows[row] += [(name, places[i].tolist()) for i in index[row]]
    length = len(rows[0])
    index = bias.index(inputs, prefix, True, None)
    assert index.shape[2] % 8 == 0
    expected = by_hand(bias, None, rows, prefix)
    assert torch.equal(index[..., :length], expected)
    assert len(bias.tables[0]) > expected.max() and expected.min() >= 0
    order = torch.stack([torch.randperm(length, generator=generator)[:3].sort().values for _ in range(2)])
    few = bias.index(inputs, prefix, True, order)[..., :3]
    for row in range(2):
        assert torch.equal(few[row], expected[row][order[row]][:, order[row]])


def test_samples_without_hidden_tokens_share_one_bias():
    model = build()
    inputs = model.with_all_visible(pictures(3))
    index = model.encoder.relative_bias.index(inputs, 1, False, None)
    assert index.shape == (1, 16, 16)


def test_a_shorter_grid_keeps_its_offsets_and_a_longer_one_is_resized():
    model = build()
    bias, batch = model.encoder.relative_bias, pictures(1, (8, 12))
    inputs = model.with_all_visible(batch)
    whole = model.with_all_visible(pictures(1))
    index, of_whole = bias.index(inputs, 1, False, None), bias.index(whole, 1, False, None)
    kept = torch.tensor([0, 1, 2, 3, 6, 7, 8])  # the class token and a corner of 2 x 3 of the 3 x 5
    assert torch.equal(index[0, :, :7], of_whole[0][kept][:, kept])
    wide = model.with_all_visible(pictures(1, (12, 40)))
    added = bias(wide, 0, bias.index(wide, 1, False, None), None, torch.float32)
    assert added.shape == (1, 2, 31, 31)
    table = bias.tables[0][:45].detach().view(1, 5, 9, 2).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(table, size=(5, 19), mode="bicubic")
    torch.testing.assert_close(added[0, :, 1, 1], resized[0, :, 2, 9], rtol=0, atol=1e-6)
    assert torch.equal(added[0, :, 0, 0], bias.tables[0][-1])


# ---------------------------------------------------------------------------------------- with everything beside it
@pytest.mark.parametrize(
    "encoder",
    [
        {},
        {"relative_bias": "per_block", "prefix": 0},
        {"hidden": "replace", "prefix": 2},
        {"block_norm": "post", "layer_scale": None},
        {"rotary": "pairs", "position_every_block": True},
    ],
)
def test_it_trains_with_the_other_options_of_the_encoder(encoder):
    model = build(encoder).train()
    plain, checkpointed = (copy.deepcopy(model) for _ in range(2))
    recompute_activations(checkpointed.encoder.blocks)
    for each in (plain, checkpointed):
        each(pictures(), rng=Rng((0,), range(2), 2)).total.backward()
    for (name, parameter), (_, other) in zip(plain.named_parameters(), checkpointed.named_parameters(), strict=True):
        assert parameter.grad is not None and torch.equal(parameter.grad, other.grad), name


def test_tables_of_zeros_change_nothing():
    model = build({"hidden": "replace"})
    plain = build({"hidden": "replace", "relative_bias": None})
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "relative_bias" not in k})
    with torch.no_grad():
        model.encoder.relative_bias.tables[0].zero_()
    out, other = (each.predict(pictures(), rng=Rng((0,), range(2), 2)).pred["image"] for each in (model, plain))
    torch.testing.assert_close(out, other, rtol=0, atol=1e-6)
    fresh = build_model(maemm.config.load({k: v for k, v in recipe().items() if k != "decoder"}, {}))
    assert not fresh.encoder.relative_bias.tables[0].any()


def test_padding_is_not_attended_to():
    model = build(position="sincos")
    x = pictures(2)["image"]
    valid = torch.ones(2, 12, 20, dtype=torch.bool)
    valid[0, :, 12:] = False
    other = x.clone()
    other[0, :, :, 12:] = 7.0
    features = [model.embed(maemm.contract.Preprocessed(each, valid), tokens=True)["image"] for each in (x, other)]
    torch.testing.assert_close(features[0][0, :9], features[1][0, :9], rtol=0, atol=1e-6)
    torch.testing.assert_close(features[0][1], features[1][1], rtol=0, atol=1e-6)
    alone = model.embed({"image": x[1:]}, tokens=True)["image"]
    torch.testing.assert_close(features[0][1:], alone, rtol=0, atol=1e-5)


def two_modalities(spec):
    spec["modalities"] = {name: {**spec["modalities"]["image"]} for name in "ab"}


def test_a_budget_over_modalities_changes_no_place():
    model = build({"prefix": 1}, two_modalities)
    counts = {"a": torch.tensor([5, 2]), "b": torch.tensor([2, 5])}

    def encoded(budget):
        plans = {}
        for name, count in counts.items():
            index = (torch.arange(5) * 3 + torch.arange(2)[:, None]).clamp(max=14)
            valid = torch.arange(5) < count[:, None]
            index = torch.where(valid, index, index.gather(1, count[:, None] - 1))
            plans[name] = Plan(index, index[:, :0], visible_valid=valid, budget=budget)
        return model({name: pictures()["image"] for name in "ab"}, plans=plans).encoded, plans

    (expected, plans), (tokens, _) = encoded(None), encoded(7)
    for name, plan in plans.items():
        torch.testing.assert_close(
            tokens[name][plan.visible_valid], expected[name][plan.visible_valid], rtol=0, atol=1e-5
        )


def test_attention_that_guides_is_that_of_the_model():
    model, seen = build({"prefix": 1}), []
    attention = model.encoder.blocks[-1].attn
    handle = attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0], kwargs["attn_mask"])), with_kwargs=True
    )
    inputs, _ = model.encode(pictures())
    handle.remove()
    ((x, mask),) = seen
    weights = weights_of(attention, x, mask)
    received = model.encoder.guide(inputs, model.modalities, "attention")["image"]
    torch.testing.assert_close(received, weights.mean((1, 2))[:, 1:], rtol=0, atol=1e-6)
    with pytest.raises(MaemmError, match=r"relative biases are no part of \(encoder.relative_bias\); leave them out"):
        model.encoder.guide(inputs, model.modalities, "first_attention")


def test_layers_of_the_tables():
    assert build().encoder.layer_of("relative_bias.tables.0") == 3
    assert build({"relative_bias": "per_block"}).encoder.layer_of("relative_bias.tables.1") == 2


def test_tokens_without_a_grid_and_other_layouts_are_refused():
    with pytest.raises(MaemmError, match=r"tokens on a grid, which 'pointcloud' does not have.*use encoder.rotary"):
        maemm.build("pointcloud/point_mae_tiny_cpu", **{"encoder.relative_bias": "shared"})
    with pytest.raises(MaemmError, match="layout 'timm' holds a plain ViT"):
        plain_vit(build({"layer_scale": None}), "timm")
    with pytest.raises(MaemmError, match="layout 'timm' holds a plain ViT"):
        plain_vit(build({"layer_scale": None, "relative_bias": None}), "timm")


@pytest.mark.parametrize("name", ["signal/tiny_cpu", "video/videomae_tiny_cpu", "audio/audiomae_tiny_cpu"])
def test_other_modalities(name):
    model = maemm.build(name, **{"encoder.relative_bias": "per_block"})
    batch = {key: modality.example(2, Rng((0,))) for key, modality in model.modalities.items()}
    model(batch, rng=Rng((0,), range(2), 2)).total.backward()
    assert all(table.grad.abs().max() > 0 for table in model.encoder.relative_bias.tables)


def test_features_are_exported(tmp_path):
    model = build()
    made = maemm.export(model, tmp_path / "features.pt2", to="torch")
    assert max(made.differences.values()) < 1e-5
    with pytest.raises(MaemmError, match="cannot be exported to timm.*choose --to safetensors, torch, onnx"):
        maemm.export(model, tmp_path / "vit.safetensors", to="timm")
    model(pictures(), rng=Rng((0,), range(2), 2)).total.backward()  # the model is what it was
