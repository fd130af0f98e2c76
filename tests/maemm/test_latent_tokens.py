"""Latent tokens: what they may depend on, on grids of any kind; the way back to the signal; decoders of objectives."""

from dataclasses import replace

import pytest
import torch

import maemm
from maemm import MaemmError
from maemm.contract import Plan, Preprocessed
from maemm.contract.rng import Rng
from maemm.model.build import build_model
from maemm.model.masking.predict_all import PredictAll
from maemm.model.rotary import MixedRotary, rotate

SIGNALS = {
    "signal": {"size": 64, "patch": 16, "channels": 3, "normalize": "none"},
    "image": {"size": 16, "patch": 4, "normalize": "none"},
    "video": {"size": [4, 16, 16], "patch": [2, 8, 8], "normalize": "none"},
}
SIZES = {"dim": 48, "depth": 2, "heads": 4}


def recipe_of(name="image", modality=None, encoder=None, decoder=None, **rest):
    return {
        "modalities": {name: {"type": name, **SIGNALS[name], **(modality or {})}},
        "masking": {"type": "predict_all", "masking": {"type": "random", "ratio": 0.5}},
        "encoder": {"type": "latent", "latents": 5, "latent_dim": 6, **SIZES, **(encoder or {})},
        "decoder": {"type": "latent", **SIZES, **(decoder or {})},
        **rest,
    }


def built(recipe, seed=0):
    torch.manual_seed(seed)
    return build_model(recipe).eval()


def example(model, rows=2):
    return {name: m.example(rows, Rng((0, name), range(rows), rows)) for name, m in model.modalities.items()}


def planned(model, rows=2):
    return model.plan(example(model, rows), Rng((0, "plan"), range(rows), rows))


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("rotary", [None, "pairs", "mixed"])
def test_a_signal_goes_into_latents_and_back(name, rotary):
    axes = {"signal": 2, "image": 2, "video": 3}[name]
    sides = {"rotary": rotary, "rotary_axes": axes}
    model = built(recipe_of(name, encoder=sides, decoder=sides))
    x = example(model)
    inputs, latents = model.encode(x)
    assert latents.latent_tokens[name].shape == (2, 5, 6)
    torch.testing.assert_close(model.embed(x, latents=True)[name], latents.latent_tokens[name])
    signal = model.decode(latents)[name]
    assert signal.shape == x[name].x.shape and signal.isfinite().all()
    # Whatever is handed over, and with the inputs beside it or without, the signal is the same.
    for again in (latents.latent_tokens, latents.latent_tokens[name]):
        assert torch.equal(model.decode(again)[name], signal)
    assert torch.equal(model.decode(latents, inputs)[name], signal)
    # It is what the forward pass predicts where nothing is hidden.
    model.masking.masking.ratio = 0.0
    out = model.predict(planned(model))
    modality, x = model.modalities[name], out.inputs[name]
    whole = modality.untokenize(modality.denormalize_target(out.pred[name], x.tokens, x.plan.predict), x.tokens)
    torch.testing.assert_close(whole, signal, rtol=0, atol=1e-5)


def test_latents_read_what_is_visible_and_the_decoder_the_latents_alone():
    model = built(recipe_of())
    inputs = planned(model)
    plan, tokens = inputs["image"].plan, inputs["image"].tokens
    out = model.predict(inputs)
    hidden = torch.ones(2, tokens.count, dtype=torch.bool).scatter(1, plan.visible, False)
    other = replace(tokens, values=torch.where(hidden[..., None], torch.nan, tokens.values))
    again = model.predict({"image": replace(inputs["image"], tokens=other)})
    assert torch.equal(again.pred["image"], out.pred["image"]) and out.pred["image"].shape[1] == tokens.count
    # Neither does it matter what is asked for: some tokens, or all of them.
    some = Plan(plan.visible, plan.predict[:, 3:7])
    part = model.predict(example(model), plans={"image": some})
    torch.testing.assert_close(part.pred["image"], out.pred["image"][:, 3:7])
    moved = replace(tokens, values=torch.where(hidden[..., None], tokens.values, tokens.values + 1))
    assert not torch.equal(
        model.predict({"image": replace(inputs["image"], tokens=moved)}).pred["image"], out.pred["image"]
    )


def test_padding_is_not_seen_and_not_predicted():
    model = built(recipe_of("image"))
    x = example(model)["image"]
    valid = torch.ones(2, 16, 16, dtype=torch.bool)
    valid[1, 8:] = False  # the lower half of the second picture
    batch = {"image": Preprocessed(x.x, valid)}
    inputs = model.plan(batch, Rng((0, "plan"), range(2), 2))
    plan = inputs["image"].plan
    assert plan.predict_valid.sum(1).tolist() == [16, 8] and plan.counted.sum(1).tolist() == [16, 8]
    assert plan.of_hidden().counted.sum(1).tolist() == [8, 4]
    out = model(inputs)
    other = x.x.clone()
    other[1, :, 8:] = 7.0
    again = model({"image": Preprocessed(other, valid)}, rng=Rng((0, "plan"), range(2), 2))
    assert torch.equal(out.total, again.total)
    latents = model.encode(batch)[1].latent_tokens["image"]
    alone = model.encode({"image": Preprocessed(x.x[1:, :, :8])})[1].latent_tokens["image"]
    torch.testing.assert_close(latents[1:], alone, rtol=0, atol=1e-5)
    decoded = model.decode(*model.encode(batch)[::-1])["image"]
    assert decoded[1, :, 8:].isnan().all() and decoded[1, :, :8].isfinite().all() and decoded[0].isfinite().all()


def test_hidden_tokens_may_leave_the_sequence():
    model = built(recipe_of(encoder={"hidden": "remove"}))
    lengths = []
    model.encoder.blocks[0].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    model.predict(planned(model))
    assert lengths == [1 + 8 + 5] and not hasattr(model.encoder, "hidden_token")
    assert torch.equal(
        model.decode(model.embed(example(model), latents=True))["image"].isfinite().all(), torch.tensor(True)
    )


def test_modalities_share_their_latents():
    recipe = recipe_of()
    recipe["modalities"]["signal"] = {"type": "signal", **SIGNALS["signal"]}
    model = built(recipe)
    x = example(model)
    latents = model.embed(x, latents=True)
    assert latents["joint"].shape == (2, 5, 6)
    signals = model.decode(latents)
    assert {name: signal.shape for name, signal in signals.items()} == {name: v.x.shape for name, v in x.items()}
    assert {name: v.shape for name, v in model.embed(x).items()} == {"image": (2, 6), "signal": (2, 6)}
    model.train()
    model(model.plan(x, Rng((0, 0), range(2), 2))).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# ------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (recipe_of(modality={"normalize": "patch"}), "without their mean and variance"),
        (recipe_of(modality={"target": {"type": "hog", "cell": 4, "window": 4}}), "a target in place of 'image'"),
    ],
)
def test_signals_that_latents_do_not_give_back(recipe, message):
    model = built(recipe)
    with pytest.raises(MaemmError, match=message):
        model.decode(model.embed(example(model), latents=True))


def test_other_networks_and_shapes_are_refused():
    model = built(recipe_of())
    with pytest.raises(MaemmError, match=r"latent tokens are \(B, 5, 6\) in this model, not \(2, 5, 7\)"):
        model.decode(torch.zeros(2, 5, 7))
    with pytest.raises(MaemmError, match="latents of 3 samples and inputs of"):
        model.decode(torch.zeros(3, 5, 6), model.encode(example(model))[0])
    with pytest.raises(MaemmError, match="have no pool, norm, layers or tokens"):
        model.embed(example(model), pool="mean", latents=True)
    with pytest.raises(MaemmError, match="projected behind the norm"):
        model.embed(example(model), norm="after")
    with pytest.raises(MaemmError, match=r"reads latent tokens, and ViT has none \(encoder.type\)"):
        built({**recipe_of(), "encoder": {"type": "vit", **SIZES}})
    with pytest.raises(MaemmError, match=r"which Full does not read \(decoder.type\)"):
        built({**recipe_of(), "decoder": {"type": "full", **SIZES}})
    plain = built({**recipe_of(), "encoder": {"type": "vit", **SIZES}, "decoder": {"type": "full", **SIZES}})
    for call in (
        lambda: plain.embed(example(plain), latents=True),
        lambda: plain.embed(example(plain), pool="latents"),
        lambda: plain.decode(torch.zeros(2, 5, 6)),
    ):
        with pytest.raises(MaemmError, match="no latent tokens"):
            call()
    with pytest.raises(MaemmError, match="rotary positions are for 1 axes, these tokens have 2"):
        built(recipe_of(encoder={"rotary": "mixed", "rotary_axes": 1})).encode(example(model))


def test_samples_without_a_usual_size_need_their_inputs():
    model = built(recipe_of())
    inputs, latents = model.encode(example(model))
    model.modalities["image"].sample_shape = lambda: None
    with pytest.raises(MaemmError, match="have no usual size"):
        model.decode(latents)
    assert model.decode(latents, inputs)["image"].isfinite().all()


# -------------------------------------------------------------------------------- decoders of objectives
HOG = {"type": "predict", "target": {"type": "hog", "cell": 4, "window": 4}, "tokens": "hidden"}
OWN = {**HOG, "decoder": {"type": "latent", "depth": 1}}


def gradients(model, inputs):
    model.zero_grad()
    out = model(inputs)
    out.total.backward()
    return out, {name: p.grad for name, p in model.named_parameters() if not name.startswith("objectives.")}


def test_an_objective_with_a_decoder_of_its_own_reads_the_latents():
    model = built(recipe_of(objectives={"reconstruct": {}, "hog": OWN}))
    own = model.objectives["hog"].decoder
    assert (
        len(own.blocks) == 1
        and own.dim == 48
        and own.heads["image"].out_features == model.objectives["hog"].target.output_dim()
    )
    inputs = planned(model)
    out, both = gradients(model, inputs)
    counts = model.counts(inputs)
    assert counts == {"reconstruct.image": 32, "hog.image": 16}
    assert all(out.parts[name].count == count for name, count in counts.items())
    _, alone = gradients(built(recipe_of()), inputs)  # of the same weights: an objective changes no initial weight
    assert all((both[name] == grad).all() for name, grad in alone.items() if name.startswith("decoder."))
    assert not torch.equal(both["encoder.project.weight"], alone["encoder.project.weight"])
    assert all(p.grad is not None for p in own.parameters())


def test_what_visible_tokens_are_predicted_as_is_not_in_its_loss():
    model = built(recipe_of(objectives={"reconstruct": {}, "hog": OWN}))
    inputs = planned(model)
    wanted = model.objectives["hog"]
    before, target = model(inputs).parts["hog.image"].sum, wanted.target.forward
    plan = inputs["image"].plan

    def changed(inputs, index):
        seen = (plan.predict[:, :, None] == plan.visible[:, None]).any(-1)
        return torch.where(seen[..., None], 100.0, target(inputs, index))

    wanted.target.forward = changed
    assert torch.equal(model(inputs).parts["hog.image"].sum, before)


def test_weight_zero_is_the_plain_tokenizer_bit_for_bit():
    model = built(recipe_of(objectives={"reconstruct": {}, "hog": {**OWN, "weight": 0.0}}))
    inputs = planned(model)
    out, grads = gradients(model, inputs)
    _, alone = gradients(built(recipe_of()), inputs)
    assert all(torch.equal(grads[name], grad) for name, grad in alone.items())
    assert out.parts["hog.image"].sum > 0
    assert all(not p.requires_grad for p in model.objectives["hog"].decoder.parameters())


def test_decoders_of_objectives_are_checked():
    for options, message in (
        ({"decoder": {"type": "latent", "depth": -1}}, "objectives.hog.decoder.depth"),
        ({"decoder": {"type": "latent", "dim": 24}}, "this one is 24 wide"),
        ({"decoder": "latent", "layer": "shared"}, "which is not shared"),
    ):
        with pytest.raises(MaemmError, match=message):
            built(recipe_of(objectives={"reconstruct": {}, "hog": {**HOG, **options}}))
    plain = recipe_of(objectives={"reconstruct": {}, "hog": {**HOG, "decoder": {"type": "full", "depth": 1}}})
    plain["encoder"], plain["decoder"] = {"type": "vit", **SIZES}, {"type": "full", **SIZES}
    model = built(plain)  # of any network whose decoder reads what the encoder gives
    out, _ = gradients(model, planned(model))
    assert out.parts["hog.image"].count == 16 and model.objectives["hog"].decoder.mask_token.grad is not None


# ------------------------------------------------------------------------------------------------ masks
def test_a_ratio_that_falls_over_the_training():
    masking = PredictAll(masking={"type": "random", "ratio": {"start": 0.6, "end": 0.0, "shape": "linear"}})
    model = built(recipe_of())
    tokens = {"image": model.modalities["image"].tokenize(example(model)["image"])}
    seen = []
    for progress in (0.0, 0.5, 1.0):
        rng = Rng((0, 0), range(2), 2, progress=progress)
        plan = masking(tokens, rng)["image"]
        assert plan.visible.shape == (2, 16)  # padded: one shape in all steps
        seen.append(16 if plan.visible_valid is None else int(plan.visible_valid[0].sum()))
        assert masking.notes(tokens, rng)["image"] == [
            f"ratio from 0.6 to 0 over 100 % of the training (linear), here {0.6 * (1 - progress):g}"
        ]
    assert seen == [6, 11, 16] and masking.shapes(tokens) == 1


# --------------------------------------------------------------------------------------- learned rotations
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_learned_rotations_begin_as_orthogonal_directions(axes):
    torch.manual_seed(0)
    rotary = MixedRotary(width=12, heads=2, depth=3, axes=axes)
    groups = rotary.frequencies.detach().permute(1, 2, 3, 0).reshape(6, axes, 6 // axes, axes)  # head, group, j, A
    lengths = groups.norm(dim=-1)
    torch.testing.assert_close(lengths, (10.0 ** (-torch.arange(6 // axes) / (6 // axes))).expand_as(lengths))
    directions = groups[:, :, 0]
    torch.testing.assert_close(directions @ directions.mT, torch.eye(axes).expand(6, -1, -1), atol=1e-6, rtol=0)


def test_learned_rotations_depend_on_differences_alone():
    rotary = MixedRotary(width=8, heads=2, depth=1, axes=2)
    places = torch.tensor([[0.0, 0], [1, 2], [3, 1]])[None, None]
    q, k = torch.randn(2, 1, 2, 3, 8)
    scores = [rotate(q, r) @ rotate(k, r).mT for r in (rotary.of_block(0, places), rotary.of_block(0, places + 5))]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=0)
    nowhere = rotary.none(1, 3, torch.device("cpu"))
    assert torch.equal(rotate(q, rotary.of_block(0, nowhere)), q)


def test_the_plain_encoder_may_have_them_too():
    recipe = {
        "modalities": {"image": {"type": "image", **SIGNALS["image"], "position": "none"}},
        "encoder": {"type": "vit", **SIZES, "rotary": "mixed"},
        "decoder": {"type": "full", **SIZES},
    }
    model = built(recipe).train()
    model(planned(model)).total.backward()
    grad = model.encoder.rotary.frequencies.grad
    assert grad.shape == (2, 2, 4, 6) and grad.abs().amax((0, 2, 3)).min() > 0
    assert maemm.build(recipe).encoder.layer_of("rotary.frequencies") == 0
