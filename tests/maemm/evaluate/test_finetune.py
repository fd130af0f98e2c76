import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import maemm
from maemm import __main__ as cli
from maemm.contract import Preprocessed
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.model.build import build_model
from maemm.model.objectives.classify import Classify
from maemm.tasks.evaluate.run import evaluate
from maemm.tasks.finetune.recipe import TRAIN, recipe_for
from maemm.tasks.finetune.run import finetune
from maemm.train import checkpoint
from maemm.train.distributed import DistContext
from maemm.train.initialize import initialize_from
from maemm.train.optim import freeze, layer_scales, make_optimizer
from maemm.train.setup import make_train_state

GOLDEN = Path(__file__).parents[2] / "golden/mae"
QUICK = {
    "train.epochs": 3, "train.batch": 8, "train.warmup_epochs": 0, "train.schedule": "constant", "train.base_lr": None,
    "train.lr": 3e-3, "train.log_every": 1, "train.min_lr": 0.0, "train.layer_decay": None, "encoder.drop_path": 0.0,
}  # fmt: skip


# --------------------------------------------------------------------------------------------- published numbers
@pytest.mark.parametrize("use", ["global_pool", "cls"])
def test_loss_and_gradients_of_published_fine_tuning(use):
    data = load_file(GOLDEN / "mae_finetune.safetensors")
    state = {key.removeprefix("state/"): value for key, value in data.items() if key.startswith("state/")}
    model = maemm.load(state, kind="mae", heads=4, pool={"global_pool": "mean", "cls": "cls"}[use]).train()
    model.objectives = torch.nn.ModuleDict({"classify": Classify("classify", smoothing=0.1)})
    out = model(model.plan({"image": data["x"]}, Rng((0,))), labels=data["y"])
    torch.testing.assert_close(out.total, data[f"{use}/loss_smooth0.1"], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.logits, data[f"{use}/logits"], atol=1e-5, rtol=0)
    out.total.backward()
    named = dict(model.named_parameters())
    for theirs, ours in (
        ("blocks.1.attn.qkv.weight", "encoder.blocks.1.attn.qkv.weight"),
        ("cls_token", "encoder.prefix"),
        ("head.weight", "head.linear.weight"),
    ):
        torch.testing.assert_close(named[ours].grad, data[f"{use}/grad/{theirs}"], atol=1e-5, rtol=0, msg=theirs)
    rows = torch.cat([named["encoder.prefix_position"].grad, named["modalities.image.positions.values"].grad], 1)
    torch.testing.assert_close(rows, data[f"{use}/grad/pos_embed"], atol=1e-5, rtol=0)


def published_model(depth=12, dim=768, heads=12):
    with torch.device("meta"):
        return build_model(
            {
                "modalities": {"image": {"size": 224, "patch": 16, "position": "learned"}},
                "encoder": {"type": "vit", "dim": dim, "depth": depth, "heads": heads, "final_norm": False,
                            "prefix_position": "learned"},
                "objectives": {"classify": {}},
                "head": {"type": "linear", "classes": 1000},
            }
        )  # fmt: skip


def test_the_layer_decay_groups_of_vit_base():
    from maemm_plugins._layouts.mae import names_of

    table = json.loads((GOLDEN / "layer_decay_vit_base.json").read_text())
    model = published_model()
    optimizer = make_optimizer(model, {**TRAIN, "layer_decay": 0.65})
    found = {}
    for group in optimizer.param_groups:
        for name in group["names"]:
            names = names_of("image").items()
            short = next((new + name[len(old) :] for old, new in names if name.startswith(old)), "pos_embed")
            if name == "encoder.prefix_position":  # the class token's row of the published table
                short = "pos_embed"
            value = (group["lr_scale"], group["weight_decay"])
            assert found.setdefault(short, value) == value
    expected = {name: (scale, decay) for name, (_, scale, decay) in table["vit_base_layer_decay_0.65"].items()}
    assert found.keys() == expected.keys()
    for name, (scale, decay) in expected.items():
        assert found[name] == (pytest.approx(scale, rel=1e-12), decay), name
    assert len(optimizer.param_groups) == table["num_param_groups"]["vit_base"]


@pytest.mark.parametrize(("size", "depth"), [("vit_large", 24), ("vit_huge", 32)])
def test_layer_decay_of_deeper_models(size, depth):
    table = json.loads((GOLDEN / "layer_decay_vit_base.json").read_text())
    scale = layer_scales(published_model(depth, 16, 2), table["layer_decay"][size])
    names = ["encoder.prefix", *(f"encoder.blocks.{i}.attn.qkv.weight" for i in range(depth)), "head.linear.weight"]
    assert [scale(name) for name in names] == pytest.approx(table["lr_scale_by_layer_id"][size], rel=1e-12)
    assert layer_scales(published_model(depth, 16, 2), 1.0, head=10.0)("head.norm.weight") == 10.0


# ------------------------------------------------------------------------------------------------ what is trained
def test_what_is_frozen():
    def trained(part):
        model = published_model(4, 16, 2)
        freeze(model, part)
        return {name for name, one in model.named_parameters() if one.requires_grad}

    head = {"head.norm.weight", "head.norm.bias", "head.linear.weight", "head.linear.bias"}
    assert trained("head") == head
    assert len(trained("all")) == len(dict(published_model(4, 16, 2).named_parameters()))
    last = {name for name in trained("last_1_block") - head}
    assert last and all(name.startswith("encoder.blocks.3.") for name in last)
    assert {name.split(".")[2] for name in trained("last_2_blocks") - head} == {"2", "3"}
    half = trained("half_block") - head
    assert half == {name for name in last if ".mlp." in name or ".norm2." in name} and len(half) == 6
    with pytest.raises(MaemmError, match="last_5_blocks, the encoder has 4 blocks; use all"):
        trained("last_5_blocks")


def test_beginning_with_other_weights(world):
    old = world.model(seed=1)
    new = build_model(world.recipe(decoder=None, head={"type": "linear", "classes": 4}, encoder__final_norm=False))
    fresh = {key: value.clone() for key, value in new.state_dict().items() if key.startswith("head.")}
    initialize_from(new, old)
    given = old.state_dict()
    taken = [key for key in new.state_dict() if not key.startswith("head.")]
    assert len(taken) == 27 and all(torch.equal(new.state_dict()[key], given[key]) for key in taken)
    assert all(torch.equal(new.state_dict()[key], value) for key, value in fresh.items())
    # A table that is trained from now on starts as the one that was computed, and fits another size.
    for size in (8, 16):
        model = build_model(world.recipe(modalities__marks__position="learned", modalities__marks__size=size))
        initialize_from(model, old)
        table = model.modalities["marks"].positions
        expected = old.modalities["marks"].positions.table((size // 4, size // 4))
        assert torch.equal(table.values, expected.reshape(table.values.shape)) and table.values.requires_grad


def test_weights_of_another_network_are_refused(world):
    with pytest.raises(MaemmError, match=r"the weights of init \(a model\) do not fit: .* of another shape"):
        initialize_from(world.model(encoder__dim=32, encoder__heads=2), world.model())
    with pytest.raises(MaemmError, match=r"do not fit: 12 missing \(encoder.blocks.2"):
        initialize_from(world.model(encoder__depth=3), world.model())
    with pytest.raises(MaemmError, match=r"do not fit: 12 unexpected \(encoder.blocks.1"):
        initialize_from(world.model(encoder__depth=1), world.model())


def test_a_resumed_run_needs_no_init(world):
    recipe = world.recipe(init="gone")
    make_train_state(recipe, 4, 1, DistContext(), fresh=False)
    with pytest.raises(MaemmError, match="no such weights: gone"):
        make_train_state(recipe, 4, 1, DistContext())


# ------------------------------------------------------------------------------------------------------ the loop
def rows_of(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def test_fine_tuning_learns_keeps_the_best_and_answers(world, capsys, monkeypatch):
    monkeypatch.chdir(world.folder)
    run, data, test = world.run(), world.data(samples=120), world.data("test", samples=40, seed=1, bad=[3])
    words = [f"{key}={'null' if value is None else value}" for key, value in QUICK.items()]
    assert cli.main(["finetune", run, data, *words, "train.epochs=12", "--test", test, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["run"] == f"{run}-finetune" and told["test"]["skipped"] == 1
    assert told["test"]["results"]["logits"]["accuracy"] > 0.6
    rows = rows_of(told["run"])
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"] and rows[0]["terms"].keys() == {"classify"}
    measured = [row["validation"]["accuracy"] for row in rows if "validation" in row]
    best = json.loads((Path(told["run"]) / "best/meta.json").read_text())
    assert len(measured) == 12 and best["validation"]["accuracy"] == max(measured)
    loaded, kept = maemm.load(told["run"]), load_file(Path(told["run"]) / "best/model.safetensors")
    assert loaded.recipe["data"]["classes"] == ["a", "b", "c", "d"]
    assert all(torch.equal(value, kept[key]) for key, value in loaded.state_dict().items())
    capsys.readouterr()
    assert cli.main(["evaluate", told["run"], test, "--per-class"]) == 0
    said = capsys.readouterr().out
    assert "39 samples, 1 skipped (first: 003: ValueError: broken on purpose)" in said and "truth \\ answer" in said
    assert len(list((Path(told["run"]) / "evaluate").glob("evaluate-*.json"))) >= 1


def test_it_goes_on_where_it_stopped(world):
    """Mixing, erasing, an average of the weights and validation: the same bits after a stop."""
    mixing = {"mixup": 0.8, "cutmix": 1.0, "erase": 0.5, "smoothing": 0.1}
    options = {**QUICK, "objectives.classify": mixing, "train.ema": 0.9, "train.seed": 3, "encoder.drop_path": 0.2}
    run, data = world.run(), world.data(samples=40)
    outs = [str(world.folder / name) for name in ("whole", "twice")]
    finetune(run, data, echo=lambda text: None, **{**options, "train.epochs": 4, "out": outs[0]})
    for epochs in (2, 4):
        finetune(run, data, echo=lambda text: None, **{**options, "train.epochs": epochs, "out": outs[1]})
    whole, twice = (
        [{key: row[key] for key in ("step", "loss", "grad_norm", "validation") if key in row} for row in rows_of(out)]
        for out in outs
    )
    assert whole == twice and len(whole) == 16
    for name in ("model.safetensors", "ema.safetensors"):
        a, b = (load_file(sorted(Path(out).glob("checkpoints/step-*"))[-1] / name) for out in outs)
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_without_validation_the_average_answers(world):
    run, data = world.run(), world.data(samples=40)
    options = {**QUICK, "data.validation": None, "train.ema": 0.9999}
    out = finetune(run, data, echo=lambda text: None, **options)
    raw, mean = (load_file(out / f"checkpoints/step-000015/{name}.safetensors") for name in ("model", "ema"))
    loaded = maemm.load(out).state_dict()
    assert all(torch.equal(loaded[key], mean[key]) for key in loaded)
    assert not torch.equal(loaded["head.linear.weight"], raw["head.linear.weight"])


def test_the_last_step_is_found_by_its_number(world):
    run = Path(world.run())
    for step, seed in ((999_999, 1), (1_000_000, 2)):
        checkpoint.write(run / "checkpoints", step, world.model(seed), {}, {})
    key = "encoder.blocks.0.mlp.fc1.weight"
    assert torch.equal(maemm.load(run).state_dict()[key], world.model(2).state_dict()[key])


def test_a_fine_tuned_run_goes_on_by_its_name(world):
    run, data, said = world.run(), world.data(samples=40), []
    out = finetune(run, data, echo=said.append, **QUICK)
    finetune(out, echo=said.append)
    assert "is finished (12 steps)" in said[-1]
    finetune(out, echo=said.append, **{"train.epochs": 4})
    assert rows_of(out)[-1]["step"] == 16


def test_a_run_that_gets_no_better_ends(world):
    said = []
    options = {**QUICK, "train.epochs": 30, "train.lr": 1e-12, "train.patience": 3}
    out = finetune(world.run(), world.data(samples=40), echo=said.append, **options)
    assert len([row for row in rows_of(out) if "validation" in row]) == 4
    assert said[-1].startswith("Finished 16 steps") and "best validation accuracy" in said[-1]


def test_only_the_head_moves(world):
    run = world.run()
    out = finetune(run, world.data(samples=40), echo=lambda text: None, **{**QUICK, "train.trainable": "head"})
    before, after = maemm.load(run).state_dict(), maemm.load(out).state_dict()
    kept = [key for key in after if not key.startswith("head.")]
    assert kept and all(torch.equal(after[key], before[key]) for key in kept)
    assert after["head.linear.weight"].abs().max() > 1e-3


def test_from_scratch_the_encoder_is_new(world):
    run, data = world.run(), world.data(samples=40)
    out = finetune(run, data, scratch=True, echo=lambda text: None, **{**QUICK, "train.lr": 1e-12})
    assert str(out) == f"{run}-finetune-scratch"
    key = "encoder.blocks.0.attn.qkv.weight"
    assert not torch.allclose(maemm.load(out).state_dict()[key], maemm.load(run).state_dict()[key], atol=1e-3)


# ---------------------------------------------------------------------------------------------- odd data, mistakes
def test_samples_without_a_known_label_are_bad_samples(world):
    recipe = {**QUICK, "data.classes": ["a", "b", "c"], "head.classes": 3, "data.validation": None}
    with pytest.raises(MaemmError, match="10 of 40 samples are unreadable|unreadable .* allowed 5 %"):
        finetune(world.run(), world.data(samples=40), echo=lambda text: None, **recipe)
    text = (world.folder / "run-finetune/bad_samples.jsonl").read_text()
    assert "its class 'd' is none of the 3 in data.classes" in text
    recipe = {**QUICK, "data.validation": None, "out": str(world.folder / "other")}
    with pytest.raises(MaemmError, match="unreadable"):
        finetune(world.folder / "run", world.data(samples=40, unlabelled=[1, 2, 5, 9]), echo=print, **recipe)
    assert "it has no label" in (world.folder / "other/bad_samples.jsonl").read_text()


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({}, {"named": False}, "the labels are numbers without names.*data.classes=N"),
        ({}, {"named": False, "unlabelled": list(range(40))}, "the data have no labels"),
        ({}, {"classes": ["a"]}, "1 class is too few"),
        ({"train.patience": 2, "data.validation": None}, {}, "train.patience needs samples to validate with"),
        ({"data.validation": 0.001}, {}, "data.validation 0.001 holds out 0 of 40 samples"),
        ({"train.trainable": "some"}, {}, "train.trainable"),
        ({"objectives.classify.mixup": 0.5, "train.batch": 7}, {}, "mixing needs an even number"),
        ({"objectives.classify.mixup": -1.0}, {}, "mixup must be float >= 0"),
        ({"head.classes": 2}, {}, "a label is 3, the head has 2 outputs"),
        ({"head": None}, {}, "has no head"),
        ({"train.batch": 64}, {}, "train.batch 64 is larger than the 36 samples"),
    ],
)
def test_mistakes_take_one_line(world, options, data, message):
    with pytest.raises(MaemmError, match=message) as error:
        finetune(world.run(), world.data(samples=40, **data), echo=lambda text: None, **{**QUICK, **options})
    assert "\n" not in str(error.value)


def test_a_recipe_of_pretraining_is_not_fine_tuned(world, tmp_path):
    from maemm.config import dump

    (tmp_path / "my.yaml").write_text(dump(world.recipe()))
    with pytest.raises(MaemmError, match="is a recipe of pre-training; give a run or weights to fine-tune"):
        recipe_for(tmp_path / "my.yaml", None, {})
    made = recipe_for(world.run("again"), world.data(), {"train.epochs": 3})
    assert made["head"] == {"type": "linear", "classes": 4} and made["train"]["epochs"] == 3
    assert made["encoder"]["final_norm"] is False and made["encoder"]["drop_path"] == 0.1 and made["decoder"] is None
    assert made["train"]["batch"] == 8 and made["data"]["validation"] == 0.1
    (tmp_path / "fine.yaml").write_text(dump(made))
    assert recipe_for(tmp_path / "fine.yaml", None, {})["objectives"] == made["objectives"]


def test_evaluate_matches_classes_by_name(world):
    model = world.model(decoder=None, head={"type": "linear", "classes": 4}, objectives={"classify": {}})
    model.recipe["data"]["classes"] = ["d", "c", "b", "a"]
    found = evaluate(model, world.data(samples=12, classes=["a", "b", "x"]))
    assert len(found.labels) == 8 and len(found.skipped) == 4 and "'x' is none of the 4" in found.skipped[0].reason
    assert set(found.labels) == {2, 3} and found.classes == ("d", "c", "b", "a")
    model.recipe["data"]["classes"] = None
    with pytest.raises(MaemmError, match="the data have 3 classes, the model answers with 4 and does not know their"):
        evaluate(model, world.data(samples=12, classes=["a", "b", "x"]))
    assert len(evaluate(model, world.data(samples=12, named=False)).labels) == 12
    with pytest.raises(MaemmError, match="has no classifier to evaluate; fine-tune it"):
        evaluate(world.run(), world.data())


def test_figures_of_answers(world):
    import numpy as np

    from maemm.tasks.evaluate.run import Answers

    logits = np.array([[5.0, 0, 0], [0, 3, 0], [0, 2, 1], [9, 0, 0]])
    found = Answers({"logits": logits}, np.array([0, 1, 2, 1]), ("a", "b", "c"), [])
    assert found.top("logits", 1) == 0.5 and found.top("logits", 2) == 1.0
    equal = Answers({"logits": np.zeros((4, 3))}, np.array([0, 1, 2, 1]), ("a", "b", "c"), [])
    assert equal.top("logits", 1) == 0.25  # one that says the same to everything is no good one
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.tensor([0, 1, 2, 1]))
    assert found.loss("logits") == pytest.approx(float(expected))
    assert found.confusion("logits").tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert found.metrics("logits")["mean_recall"] == pytest.approx(0.5)


# ------------------------------------------------------------------------------------------------------- mixing
class Head(torch.nn.Module):
    classes = 5


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = Head()


def mixed(x, rng=None, valid=None, **options):
    rng = rng or Rng((0, 1), range(len(x)), len(x))
    labels = torch.arange(len(x)) % 5
    batch, soft = Classify("classify", **options).batch({"m": Preprocessed(x, valid)}, labels, rng, Net())
    return batch["m"].x, soft


def test_mixing():
    x = torch.arange(4.0)[:, None, None, None].expand(4, 1, 6, 6).contiguous()
    out, soft = mixed(x, mixup=0.8)
    fraction = out[0].flatten()[0] / 3  # sample 0 with sample 3
    torch.testing.assert_close(out[0], torch.full_like(out[0], float(3 * fraction)))
    torch.testing.assert_close(soft[0], torch.tensor([1 - fraction, 0, 0, fraction, 0]))
    boxed, cut = mixed(x.expand(4, 2, 6, 6), cutmix=1.0)
    assert set(boxed[0].unique().tolist()) <= {0.0, 3.0}
    torch.testing.assert_close(cut[0][3], (boxed[0] == 3).float().mean())
    video, _ = mixed(x[:, :, None].expand(4, 1, 3, 6, 6).contiguous(), cutmix=1.0)
    assert video.shape == (4, 1, 3, 6, 6) and torch.equal(video[:, :, 0], video[:, :, 2])  # one box for all frames
    assert torch.equal(mixed(x, mixup=0.8)[0], out)  # counted, not streamed
    assert not torch.equal(mixed(x, mixup=0.8, rng=Rng((0, 2), range(4), 4))[0], out)
    assert torch.equal(x[3], torch.full_like(x[3], 3.0))  # the batch that was given is as it was


def test_erasing_looks_at_each_sample_alone():
    x = torch.zeros(6, 1, 8, 8)
    whole, labels = mixed(x, erase=1.0)
    part, _ = mixed(x[2:4], erase=1.0, rng=Rng((0, 1), [2, 3], 6))
    assert (whole != 0).flatten(1).any(1).all() and torch.equal(whole[2:4], part) and labels.ndim == 1


def test_what_cannot_be_mixed():
    valid = torch.ones(4, 6, 6, dtype=torch.bool)
    valid[0, 3:] = False
    with pytest.raises(MaemmError, match="differ in size, so they cannot be mixed"):
        mixed(torch.zeros(4, 1, 6, 6), mixup=0.5, valid=valid)
    with pytest.raises(MaemmError, match="are not images to cut boxes from"):
        mixed(torch.zeros(4, 1, 6), cutmix=0.5)
    assert mixed(torch.zeros(4, 1, 6), mixup=0.5)[0].shape == (4, 1, 6)


@pytest.mark.slow
def test_two_processes_are_one(world):
    """The same losses, weights and validations within rounding: labels reach every process."""
    import os
    import subprocess
    import sys

    run, data, found = world.run(), world.data(samples=40), {}
    words = [f"{key}={'null' if value is None else value}" for key, value in QUICK.items()]
    for processes in (1, 2):
        out = str(world.folder / f"of{processes}")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *launcher, "-m", "maemm", "finetune", run, data, *words, f"out={out}"]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        found[processes] = rows_of(out), maemm.load(out).state_dict()
    for row, other in zip(found[1][0], found[2][0], strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert row.get("validation", {}) == pytest.approx(other.get("validation", {}), abs=1e-5)
    for key, value in found[1][1].items():
        if not key.endswith("qkv.bias"):  # the gradient of the keys' bias is 0: Adam amplifies its rounding
            torch.testing.assert_close(value, found[2][1][key], atol=1e-4, rtol=0, msg=key)


def test_pretraining_validates_too(world):
    """Masks are the same each time, so that the figure moves with the weights alone."""
    from maemm.tasks.pretrain.run import train_recipe
    from maemm.train.validation import validate

    recipe = world.recipe(training=True, data__validation=0.25, train__lr=3e-3)
    out = train_recipe(recipe, echo=lambda text: None)
    found = [row["validation"]["loss"] for row in rows_of(out) if "validation" in row]
    assert len(found) == 4 and found[-1] < found[0]
    model = world.model().train()
    one, other = (validate(model, world.source(samples=12), model.recipe) for _ in range(2))
    assert one == other and set(one) == {"loss"} and model.training
