"""I-JEPA against tensors of the published code: forward, gradients, one step with its average, files, schedules."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file

import maemm
from maemm import MaemmError, Plan
from maemm.contract.positions import SinCos
from maemm.model.build import build_model
from maemm.tasks.convert.run import convert
from maemm.train.optim import WeightDecay, parameter_groups
from maemm.train.schedules import decay_curve, learning_rate
from maemm_plugins.image.weights.ijepa import HEADS, IJEPA

GOLDEN = Path(__file__).parents[2] / "golden" / "ijepa"
CASES = ("ijepa_tiny", "ijepa_two_contexts")
NAMES = {  # published -> ours, of the gradients that the cases have
    "encoder.patch_embed.proj.bias": "modalities.image.embedding.bias",
    "encoder.blocks.0.attn.proj.weight": "encoder.blocks.0.attn.proj.weight",
    "encoder.norm.weight": "encoder.norm.weight",
    "predictor.mask_token": "decoder.mask_token",
    "predictor.predictor_embed.weight": "decoder.project.weight",
    "predictor.predictor_blocks.1.mlp.fc1.bias": "decoder.blocks.1.mlp.fc1.bias",
    "predictor.predictor_proj.bias": "decoder.heads.image.bias",
}


def golden(name):
    return load_file(GOLDEN / f"{name}.safetensors"), json.loads((GOLDEN / f"{name}.json").read_text())


def state_of(data):
    return {key.removeprefix("state/"): value for key, value in data.items() if key.startswith("state/")}


def plan_of(visible, predict):
    """(B, contexts, V) or (B, V), and (B, targets, M): every context predicts every target, and is encoded once."""
    visible = visible[:, None] if visible.ndim == 2 else visible
    (batch, contexts, _), targets = visible.shape, predict.shape[1]
    passes = torch.arange(batch * contexts)
    return Plan(
        visible.repeat_interleave(targets, 1).flatten(0, 1),
        predict.repeat(1, contexts, 1).flatten(0, 1),
        rows=torch.arange(batch).repeat_interleave(contexts * targets),
        passes=passes.repeat_interleave(targets),
        first=passes * targets,
    )


@pytest.mark.parametrize("name", CASES)
def test_forward_gradients_and_a_step(name):
    data, facts = golden(name)
    model = maemm.load(state_of(data), heads=3).train()
    assert model.kind == "ijepa" and not model.targets["image"].training
    plan, calls = plan_of(data["input/visible"], data["input/predict"]), []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    out = model({"image": data["input/image"]}, plans={"image": plan})
    assert len(calls) == 1
    answers = {
        "out/encoded": out.encoded["image"][plan.first],
        "out/pred": out.pred["image"],
        "out/target": out.target["image"],
        "out/loss_token": out.loss["image"],
        "out/loss": out.total,
    }
    for key, value in answers.items():
        torch.testing.assert_close(value.detach().reshape(data[key].shape), data[key], rtol=0, atol=1e-5)
    out.total.backward()
    for theirs, ours in NAMES.items():
        gradient = model.get_parameter(ours).grad
        torch.testing.assert_close(gradient, data[f"grad/{theirs}"], rtol=1e-4, atol=1e-5)

    used, target = facts["used"], model.targets["image"]
    target.momentum, target.momentum_end = facts["ema"]
    target.before_training(facts["ipe"] * facts["epochs"])
    step = facts["steps_before"]
    assert target.momentum_at(step) == pytest.approx(used["momentum"], abs=1e-12)
    optimizer = torch.optim.AdamW(parameter_groups(model, used["wd"]), used["lr"], (0.9, 0.999), 1e-8)
    optimizer.step()
    target.after_step(model, step, torch.tensor(False))
    after = IJEPA().write(model, {})
    wanted = [key for key in data if key.startswith("after/")]
    assert len(wanted) == 7
    for key in wanted:
        torch.testing.assert_close(after[key.removeprefix("after/")], data[key], rtol=0, atol=1e-4)


def test_the_mask_token_is_decayed_and_biases_are_not():
    model = maemm.load(state_of(golden("ijepa_tiny")[0]), heads=3)
    decayed, plain = sorted(parameter_groups(model, 0.04), key=lambda group: -group["weight_decay"])
    assert "decoder.mask_token" in decayed["names"] and all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in plain["params"])
    assert not any(name.startswith("targets.") for group in (decayed, plain) for name in group["names"])


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name, tmp_path):
    state = state_of(golden(name)[0])
    back = IJEPA().write(maemm.load(state, heads=3), {})
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    for part, width in (("encoder.pos_embed", 24), ("predictor.predictor_pos_embed", 12)):
        torch.testing.assert_close(
            SinCos(width).table((8, 8))[None], state[part], rtol=0, atol=1e-6
        )  # recipes compute them
    # As published: a file with an entry for each part, whose names data parallel training has prefixed, and others.
    parts = IJEPA().entries(state)
    published = tmp_path / "jepa.pth.tar"
    torch.save({**parts, "opt": {"state": {0: {"step": torch.ones(())}}}, "scaler": None, "epoch": 3}, published)
    convert(published, tmp_path / "ours.safetensors", heads=3)
    convert(tmp_path / "ours.safetensors", tmp_path / "theirs.pt", to="ijepa")
    written = torch.load(tmp_path / "theirs.pt", weights_only=True)
    assert {part: set(names) for part, names in written.items()} == {part: set(names) for part, names in parts.items()}
    assert all(torch.equal(written[part][key], value) for part, names in parts.items() for key, value in names.items())


def test_one_part_alone():
    data, _ = golden("ijepa_tiny")
    target = maemm.load(state_of(data), heads=3, part="target_encoder")
    assert target.decoder is None and not len(target.targets)
    tokens = target.embed({"image": data["input/image"]}, tokens=True)["image"]
    torch.testing.assert_close(tokens.detach(), data["out/target_encoder"], rtol=0, atol=1e-5)
    encoder = maemm.load(state_of(data), heads=3, part="encoder")
    assert not torch.equal(encoder.encoder.norm.weight, target.encoder.norm.weight)
    with pytest.raises(MaemmError, match="holds an encoder, a predictor and the target"):
        IJEPA().write(encoder, {})


def recipe_of(content, depth):
    dim, patch = content["encoder"]["patch_embed.proj.bias"][0], content["patch"]
    heads = next(heads for (width, _), heads in HEADS.items() if width == dim)
    return {
        "modalities": {"image": {"type": "image", "size": 224, "patch": patch, "target": {"type": "ema"}}},
        "encoder": {"type": "vit", "dim": dim, "depth": depth, "heads": heads, "prefix": 0},
        "decoder": {"type": "predictor", "depth": depth, "heads": heads},
    }


def test_key_list_of_the_published_file():
    content = json.loads((GOLDEN / "keys_vit_huge14.json").read_text())
    with torch.device("meta"):  # of which the list has one block each
        written = IJEPA().write(build_model(recipe_of(content, 1)), {})
    for part in ("encoder", "predictor"):
        shapes = {k.removeprefix(f"{part}."): list(v.shape) for k, v in written.items() if k.startswith(f"{part}.")}
        assert shapes == content[part]
    assert {k for k in written if k.startswith("target_encoder.")} == {f"target_{k}" for k in written if k[0] == "e"}
    assert content["name_prefix_in_checkpoints"] == "module."
    with torch.device("meta"):
        whole = IJEPA().write(
            build_model({**recipe_of(content, 32), "decoder": {"type": "predictor", "heads": 16}}), {}
        )
    for part in ("encoder", "predictor"):
        total = sum(v.numel() for k, v in whole.items() if k.startswith(f"{part}."))
        assert total == content[f"{part}_elements"]


@pytest.mark.parametrize(
    "changes", [{"encoder.prefix": 1}, {"decoder": {"type": "full"}}, {"encoder.block_norm": "post"}]
)
def test_other_models_are_refused(changes):
    recipe = {
        "modalities": {"image": {"type": "image", "size": 16, "patch": 8, "target": {"type": "ema"}}},
        "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2, "prefix": 0},
        "decoder": {"type": "predictor", "dim": 16, "depth": 1, "heads": 2},
    }
    model = build_model(maemm.config.load(recipe, {}))
    assert len(IJEPA().write(model, {})) > 40
    with pytest.raises(MaemmError, match="layout 'ijepa'"):
        IJEPA().write(build_model(maemm.config.load(recipe, changes)), {})


def test_published_schedules():
    facts = json.loads((GOLDEN / "ijepa_schedule.json").read_text())
    steps = facts["epochs"] * facts["steps_per_epoch"]
    train = {
        "lr": facts["lr"], "warmup_lr": facts["start_lr"], "min_lr": facts["final_lr"],
        "warmup_epochs": facts["warmup_epochs"], "final_weight_decay": facts["final_wd"], "lr_per": "next_step",
    }  # fmt: skip
    lr, decay = learning_rate(train, facts["steps_per_epoch"], steps), decay_curve(train, facts["wd"], steps)
    start, end = facts["ema"]
    (target,) = build_model(
        {
            "modalities": {
                "image": {"type": "image", "target": {"type": "ema", "momentum": start, "momentum_end": end}}
            },
            "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
        }
    ).targets.values()
    target.before_training(steps)
    assert len(facts["by_update_from_0"]) > 10
    for step, row in facts["by_update_from_0"].items():
        assert lr(int(step)) == pytest.approx(row["lr"], rel=1e-9)
        assert decay(int(step)) == pytest.approx(row["wd"], rel=1e-9)
        assert target.momentum_at(int(step)) == pytest.approx(row["momentum"], rel=1e-12)


def test_show_names_the_target_and_the_predictor(tmp_path):
    numpy.save(tmp_path / "picture.npy", numpy.zeros((64, 64, 3), numpy.uint8))
    shown = maemm.show(tmp_path, tmp_path / "show.html", recipe="image/ijepa_tiny_cpu", count=1)
    (note,) = [note for note in shown.parts["image"].notes if "predicts features" in note]
    assert "(ema: momentum 0.996, momentum_end 1.0" in note and "decoder predictor: dim 64, depth 2" in note


def test_weight_decay_moves_where_there_is_some():
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.04))
    WeightDecay(optimizer, {"final_weight_decay": 0.4}, 10).set(optimizer, 5)
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, pytest.approx(0.22)]
    with pytest.raises(MaemmError, match="train.final_weight_decay needs a weight decay to begin with"):
        WeightDecay(torch.optim.AdamW(parameter_groups(model, 0.0)), {"final_weight_decay": 0.4}, 10)
