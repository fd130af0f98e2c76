"""MultiMAE against tensors of the published code: draws, forward, gradients, losses, a step, positions, classifiers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import maemm
from maemm import MaemmError, Plan, Rng
from maemm.contract import Preprocessed, Tokens
from maemm.contract.positions import Table, lattice, resize_table
from maemm.model.build import build_model
from maemm.model.masking.dirichlet import Dirichlet, keep_order, official_candidates
from maemm.model.objectives.means import mean_term
from maemm.train.optim import parameter_groups
from maemm_plugins.multimae.depth import standardised
from maemm_plugins.multimae.labels import LabelMap
from maemm_plugins.multimae.modality import Map
from maemm_plugins.multimae.weights import MultiMAE

GOLDEN = Path(__file__).parents[2] / "golden" / "multimae"
NAMES = ("rgb", "depth", "semseg")
OUTPUTS = (*NAMES, "norm_rgb")
SETTINGS = {"kind": "multimae", "heads": 3, "decoder_heads": 2}


def golden(name):
    return load_file(GOLDEN / f"{name}.safetensors"), json.loads((GOLDEN / f"{name}.json").read_text())


def state_of(data):
    return {key.removeprefix("state/"): value for key, value in data.items() if key.startswith("state/")}


def padded(index):
    """Lists padded with -1 -> lists padded with their last index, and which are valid."""
    valid = index >= 0
    return torch.where(valid, index, index.amax(1, keepdim=True).clamp(min=0)), valid


def plans_of(data, budget=None, whole=False):
    """The plans of a case; ``whole``: every place is predicted, and counts."""
    plans = {}
    for name in NAMES:
        visible, visible_valid = padded(data[f"input/visible/{name}"])
        predict, predict_valid = padded(data[f"input/predict/{name}"])
        if whole:
            predict = torch.arange(data[f"input/task_mask/{name}"].shape[1]).expand(len(visible), -1).contiguous()
            predict_valid = torch.ones_like(predict, dtype=torch.bool)
        counted = predict_valid.float() if whole else None
        plans[name] = Plan(visible, predict, visible_valid, predict_valid, counted=counted, budget=budget)
    return plans


def batch_of(model, data, names=NAMES):
    """As preprocess() gives it; the stored depth is that before standardisation."""
    raw = {"rgb": data["input/rgb"], "semseg": data["input/semseg"][:, None].float()}
    raw["depth"] = model.modalities["depth"].preprocess({"x": data["input/depth"]}, None).x
    return {name: raw[name] for name in names}


def out_of_all(model, data, budget):
    """The forward pass that predicts every place."""
    return model(batch_of(model, data), plans=plans_of(data, budget, whole=True))


def channels_first(values, channels):
    """Values of a token, channel last -> as published, channel first."""
    return values.unflatten(-1, (-1, channels)).transpose(-1, -2).flatten(-2)


def close(received, expected, atol=1e-5, rtol=0.0):
    torch.testing.assert_close(received.detach().reshape(expected.shape), expected, rtol=rtol, atol=atol)


# ---------------------------------------------------------------------------------------------------------------- draws
class Stored:
    """An Rng whose numbers are those of a file."""

    def __init__(self, numbers, rows):
        self.numbers, self.rows = numbers, range(rows)

    def uniform(self, purpose, *shape, device="cpu"):
        return self.numbers[purpose].reshape(len(self.rows), *shape)


class OfStoredShares(Dirichlet):
    def shares(self, tokens, rng):
        return rng.numbers["share"]


def tokens_of(counts, rows, valid=None):
    return {
        name: Tokens(torch.zeros(rows, n, 1), lattice((n,))[None], (n,), None if valid is None else valid[name])
        for name, n in counts.items()
    }


SAMPLING = json.loads((GOLDEN / "multimae_sampling.json").read_text())["cases"]


@pytest.mark.parametrize("name", SAMPLING)
def test_published_draws(name):
    data, facts = golden("multimae_sampling")
    case = facts["cases"][name]
    draw = {key.removeprefix(f"{name}/"): value for key, value in data.items() if key.startswith(f"{name}/")}
    counts, budget, rows = case["tokens"], case["budget"], case["batch"]
    assert torch.equal((draw["draw/share"] * budget).round().long(), draw["draw/count_before_repair"])
    noise = [draw[f"draw/noise/{key}"] for key in counts]
    candidates = official_candidates(draw["draw/share"], noise, budget, None)
    assert torch.equal(keep_order(candidates, draw["draw/noise_repair"])[:, :budget], draw["ids_keep"])

    stored = {f"mask/{key}": of for key, of in zip(counts, noise, strict=True)}
    stored |= {"budget/repair": draw["draw/noise_repair"], "share": draw["draw/share"]}
    plans = OfStoredShares(budget=budget, count="official")(tokens_of(counts, rows), Stored(stored, rows))
    for key, plan in plans.items():
        hidden = draw[f"task_mask/{key}"].bool()
        place = torch.arange(counts[key])
        shown = ((plan.visible[..., None] == place) & plan.visible_valid[..., None]).any(1)
        predicted = ((plan.predict[..., None] == place) & plan.predict_valid[..., None]).any(1)
        assert torch.equal(shown, ~hidden) and torch.equal(predicted, hidden)
        assert torch.equal(plan.visible_valid.sum(1), draw[f"visible_count/{key}"])
        assert torch.equal(plan.counted, plan.predict_valid.float()) and plan.budget == budget
    if case["sample_tasks_uniformly"]:
        close(draw["draw/concentration"], draw["draw/subset"] * case["alphas"] + 1e-5, 1e-8)


# ------------------------------------------------------------------------------------------------ forward and gradients
@pytest.mark.parametrize("name", ["multimae_tiny", "multimae_equal"])
def test_forward_and_gradients(name):
    data, facts = golden(name)
    model = maemm.load(state_of(data), **SETTINGS).train()
    plans = plans_of(data, facts["budget"])
    out = model(batch_of(model, data), plans=plans)
    for key, plan in plans.items():
        close(out.encoded[key] * plan.visible_valid[..., None], data[f"out/encoded/{key}"])
        close(out.terms[f"reconstruct.{key}"], data[f"out/loss/{key}"])
    close(out.prefix["joint"], data["out/global"])
    close(out.terms["norm_rgb.rgb"], data["out/loss/norm_rgb"])
    close(out.total, data["out/total"])

    out.total.backward()
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    written = MultiMAE().write(model, {})
    for key in facts["grads"]:
        close(written[key], data[f"grad/{key}"], 1e-5, 1e-4)


@pytest.mark.parametrize("name", ["multimae_tiny", "multimae_equal"])
def test_predictions_targets_and_losses_of_every_place(name):
    data, facts = golden(name)
    model = maemm.load(state_of(data), **SETTINGS).eval()
    out = out_of_all(model, data, facts["budget"])
    channels = {"rgb": 3, "depth": 1, "semseg": facts["classes"]}
    for key in NAMES:
        close(channels_first(out.pred[key], channels[key]), data[f"out/pred/{key}"])
        target = out.target[key].long() if key == "semseg" else channels_first(out.target[key], channels[key])
        close(target, data[f"out/target/{key}"])
        close(out.loss[key], data[f"out/loss_token/{key}"])
        hidden = data[f"input/task_mask/{key}"].float()
        of_each = (out.loss[key] * hidden).sum(1) / hidden.sum(1)
        torch.testing.assert_close(of_each, data[f"out/loss_sample/{key}"], rtol=0, atol=1e-5, equal_nan=True)
        # loss_on_unmasked: a plain mean over everything
        close(mean_term(out.loss[key], torch.ones_like(hidden), "tokens", 1.0).mean, data[f"out/loss_all/{key}"])
    objective = model.objectives["norm_rgb"]
    pred = objective.layers["rgb"](out.decoded["norm_rgb"])
    close(channels_first(pred, 3), data["out/pred/norm_rgb"])
    target = objective.target(out.inputs["rgb"], out.plans["rgb"].predict)
    close(channels_first(target, 3), data["out/target/norm_rgb"])
    close(objective.target.loss(pred, target), data["out/loss_token/norm_rgb"])


OPTIONS = {
    "no_cross_attention": {"cross_attention": False},
    "no_self_attention": {"depth": 0},
    "no_task_queries": {"visible_queries": False},
    "neither": {"cross_attention": False, "depth": 0},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_the_decoder(option):
    data, facts = golden("multimae_tiny")
    whole = maemm.load(state_of(data), **SETTINGS)
    recipe = {**whole.recipe, "decoder": {**whole.recipe["decoder"], **OPTIONS[option]}}
    model = build_model(recipe).eval()
    model.load_state_dict({key: value for key, value in whole.state_dict().items() if key in model.state_dict()})
    out = out_of_all(model, data, facts["budget"])
    close(channels_first(out.pred["rgb"], 3), data[f"out/option/{option}/pred/rgb"])


def test_the_budget_changes_nothing_but_the_cost():
    data, facts = golden("multimae_tiny")
    model = maemm.load(state_of(data), **SETTINGS).eval()
    lengths = []
    model.encoder.blocks[0].register_forward_hook(lambda _, args, out: lengths.append(out.shape[1]))
    with_budget, without = (
        model(batch_of(model, data), plans=plans_of(data, budget)).total for budget in (facts["budget"], None)
    )
    close(with_budget, without)
    assert lengths == [1 + facts["budget"], 1 + 9 + 10 + 4]


# --------------------------------------------------------------------------------------------------- losses and a step
def test_losses():
    data, facts = golden("multimae_losses")
    patch, counted = facts["patch"], data["input/mask"].float()
    size = [patch * side for side in facts["grid"]]
    modalities = {
        "mse": (Map(size=size, patch=patch, channels=3, normalize="none"), "rgb"),
        "mse_norm_pix": (Map(size=size, patch=patch, channels=3, normalize="patch"), "rgb"),
        "l1": (Map(size=size, patch=patch, normalize="none", loss="l1"), "depth"),
        "l1_norm_pix": (Map(size=size, patch=patch, normalize="patch", loss="l1"), "depth"),
        "ce": (LabelMap(size=size, patch=patch, stride=4, classes=facts["classes"]), "semseg"),
        "ce_smooth": (LabelMap(size=size, patch=patch, stride=4, classes=facts["classes"], smoothing=0.1), "semseg"),
    }
    for key, (modality, kind) in modalities.items():
        signal, scores = data[f"input/{kind}"], data[f"input/{kind}_pred"].clone().requires_grad_()
        signal = {"semseg": lambda x: x[:, None].float(), "depth": lambda x: standardised(x, 0.1)}.get(
            kind, lambda x: x
        )(signal)
        tokens = modality.tokenize(Preprocessed(signal))
        index = tokens.all_indices()
        grid = Map(size=list(scores.shape[2:]), patch=modality.patch, channels=scores.shape[1])
        pred = grid.tokenize(Preprocessed(scores)).values
        loss = modality.loss(pred, modality.target(tokens, index))
        masked = mean_term(loss, counted, "samples", 1.0).mean
        close(masked, data[f"out/masked/{key}"])
        close(mean_term(loss, torch.ones_like(counted), "tokens", 1.0).mean, data[f"out/all/{key}"])
        masked.backward()
        assert scores.grad.isfinite().all()  # of a sample that hides nothing the published gradient is NaN
        if key == "mse":
            others = counted.sum(1) > 0
            close(scores.grad[others], data["out/grad_mse_other_samples"])
            assert not scores.grad[~others].any() and (~others).sum() == 1
    nothing = mean_term(loss, torch.zeros_like(counted), "samples", 1.0).mean
    assert nothing == data["out/nothing_hidden/mse"] == 0
    close(standardised(data["input/depth"], 0.1), data["out/depth_standardised"])


def test_a_step_of_adamw_decays_everything():
    data, _ = golden("multimae_tiny")
    step, facts = golden("multimae_adamw1")
    model = maemm.load(state_of(data), **SETTINGS).train()
    groups = parameter_groups(model, facts["weight_decay"], decay_all=True)
    (group,) = groups
    assert len(group["params"]) == facts["parameters_in_first_group"]
    optimizer = torch.optim.AdamW(groups, facts["lr"], tuple(facts["betas"]), facts["eps"])
    model(batch_of(model, data), plans=plans_of(data, 14)).total.backward()
    optimizer.step()
    after = MultiMAE().write(model, {})
    wanted = [key for key in step if key.startswith("after/")]
    assert len(wanted) == 5
    for key in wanted:
        close(after[key.removeprefix("after/")], step[key], facts["tol_after"])
    assert len(parameter_groups(model, 0.05)) == 2  # by default biases and norms are spared


def test_a_sample_that_hides_nothing_of_a_modality_has_finite_gradients():
    """The budget reaches one modality's length; the published code then gives NaN."""
    data, facts = golden("multimae_tiny")
    model = maemm.load(state_of(data), **SETTINGS).train()
    plans = {}
    for name in NAMES:
        index = torch.arange(16).expand(4, -1).contiguous()
        shown = torch.zeros(4, 16, dtype=torch.bool)
        shown[0] = name == "rgb"  # the first sample shows all of rgb and nothing else
        shown[1:, : {"rgb": 6, "depth": 5, "semseg": 5}[name]] = True
        order = (~shown).long().argsort(dim=1, stable=True)
        visible, visible_valid = index.gather(1, order), shown.gather(1, order)
        back = shown.long().argsort(dim=1, stable=True)
        predict, predict_valid = index.gather(1, back), (~shown).gather(1, back)
        plans[name] = Plan(visible, predict, visible_valid, predict_valid, counted=predict_valid.float(), budget=16)
    assert plans["rgb"].counted[0].sum() == 0
    out = model(batch_of(model, data), plans=plans)
    assert out.parts["reconstruct.rgb"].count == 3 and out.parts["reconstruct.depth"].count == 4
    out.total.backward()
    assert out.total.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


# ------------------------------------------------------------------------------------------------------------ positions
def test_positions():
    data, facts = golden("multimae_positions")
    for height, width, dim in facts["tables"]:
        table = Table(dim, (height, width), learned=False, sincos_first=True).values[0]
        name = f"{height}x{width}x{dim}"
        stored = data[f"out/table/{name}"]
        if height == width:
            close(table[data[f"index/{name}"]] if f"index/{name}" in data else table, stored, 1e-6)
        else:  # the published index of a table that is not square confuses height and width; ours is right
            assert (table - stored).abs().max() > 1
            wrong = torch.stack([torch.arange(15) // height, torch.arange(15) % height], 1).float()
            close(maemm.contract.positions.sincos(wrong.flip(-1), dim), stored, 1e-6)
    for height, width, dim, new_height, new_width in facts["resized"]:
        values = Table(dim, (height, width), learned=False, sincos_first=True).values
        for ours, theirs in (("cubic", "bicubic"), ("linear", "bilinear")):
            resized = resize_table(values, (height, width), (new_height, new_width), ours)[0]
            close(resized, data[f"out/{theirs}/{height}x{width}x{dim}to{new_height}x{new_width}"])


# ---------------------------------------------------------------------------------------------------------- classifiers
@pytest.mark.parametrize("names", [("rgb",), NAMES], ids="+".join)
@pytest.mark.parametrize("pool", ["mean", "global"])
def test_fine_tuned(names, pool):
    data, _ = golden("multimae_finetune")
    model = maemm.load(state_of(data), kind="multimae", heads=3, pool=pool).eval()
    assert model.decoder is None and model.head.classes == 5
    raw = {"rgb": data["input/rgb"], "depth": data["input/depth"], "semseg": data["input/semseg"][:, None].float()}
    batch, key = {name: raw[name] for name in names}, "+".join(names)  # depth as it is
    _, latents = model.encode(batch)
    close(torch.cat([*latents.tokens.values(), *latents.prefix.values()], 1), data[f"out/{key}/tokens"])
    close(model.logits(batch), data[f"out/{key}/{pool}/logits"])
    close(model.embed(batch)[names[0]], data[f"out/{key}/{pool}/features"])


# ---------------------------------------------------------------------------------------------------------------- files
@pytest.mark.parametrize("name", ["multimae_tiny", "multimae_equal", "multimae_finetune"])
def test_there_and_back(name, tmp_path):
    state = state_of(golden(name)[0])
    settings = {"heads": 3} if name == "multimae_finetune" else {"heads": 3, "decoder_heads": 2}
    model = maemm.load(state, **settings)
    assert model.kind == "multimae"
    back = MultiMAE().write(model, {})
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)


def test_key_list_of_the_published_model():
    content = json.loads((GOLDEN / "keys_multimae_base.json").read_text())
    with torch.device("meta"):
        model = maemm.build("multimae/base")
    written = MultiMAE().write(model, {})
    assert {key: list(value.shape) for key, value in written.items()} == content["keys"]
    assert len(written) == content["tensors"] and sum(x.numel() for x in written.values()) == content["elements"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == content["trainable"]


def test_files_that_do_not_fit_are_refused():
    state = state_of(golden("multimae_tiny")[0])
    odd = {**state, "output_adapters.norm_rgb.pos_emb": state["output_adapters.rgb.pos_emb"] + 1}
    with pytest.raises(MaemmError, match="different tables of positions"):
        maemm.load(odd, **SETTINGS)
    other = {key.replace("output_adapters.norm_rgb", "output_adapters.edges"): x for key, x in state.items()}
    with pytest.raises(MaemmError, match="'edges' belongs to no input"):
        maemm.load(other, **SETTINGS)
    for changes, words in (
        ({"encoder.vectors": True}, "encoder.vectors"),
        ({"modalities.rgb.position": "sincos"}, "modalities.rgb.position"),
        ({"modalities.depth.only": "encode"}, "are inputs and outputs"),
    ):
        model = maemm.build("multimae/tiny_cpu", **changes)
        with pytest.raises(MaemmError, match=words):
            MultiMAE().write(model, {})


def test_plans_of_the_recipe_are_its_budget():
    model = maemm.build("multimae/tiny_cpu")
    batch = {name: modality.example(3, Rng(("x",))) for name, modality in model.modalities.items()}
    inputs = model.plan(batch, Rng((0, 0), range(3), 3))
    assert sum(x.plan.visible_valid.sum(1) for x in inputs.values()).tolist() == [32, 32, 32]
