"""Several views of each sample, few labels on a page, what test and training part share."""

import json

import numpy as np
import pytest
import torch

from maemm import __main__ as cli
from maemm.contract.errors import MaemmError
from maemm.data.tta import TtaModality, tta_views_of
from maemm.tasks._shared.embedding import features
from maemm.tasks.evaluate.run import evaluate, shared_with_training
from maemm.tasks.finetune.recipe import recipe_for
from maemm.tasks.finetune.run import finetune
from maemm.train.validation import validate

HEAD = {"decoder": None, "head": {"type": "linear", "classes": 4}, "objectives": {"classify": {}}}
QUICK = {
    "train.epochs": 2, "train.batch": 4, "train.warmup_epochs": 0, "train.schedule": "constant", "train.base_lr": None,
    "train.lr": 3e-3, "train.log_every": 1, "train.min_lr": 0.0, "train.layer_decay": None, "encoder.drop_path": 0.0,
}  # fmt: skip


def classifier(world, **modality):
    model = world.model(**HEAD, modalities={"marks": modality})
    torch.nn.init.normal_(model.head.linear.weight, std=0.5)
    return model


def by_hand(model, source, factors, average):
    """Logits of the samples times each factor, averaged."""
    rows = torch.stack([torch.from_numpy(source.read(i, None).raw["marks"]) for i in range(len(source))])
    with torch.no_grad():
        found = torch.stack([model.logits({"marks": rows * factor}) for factor in factors])
    return found.mean(0) if average == "logits" else found.softmax(-1).mean(0).log()


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("workers", [0, 1])
def test_views_of_a_modality_are_averaged(world, average, workers):
    model, data = classifier(world, votes=4), world.data(samples=10, bad=[3])
    found = evaluate(model, data, batch=6, workers=workers, average=average)
    source = world.source(samples=10)
    expected = by_hand(model, source, [1, 0.5, 0, -0.5], average)[[0, 1, 2, *range(4, 10)]]
    np.testing.assert_allclose(found.logits["logits"], expected.numpy(), atol=1e-5)
    assert found.tta_views == 4 and len(found.skipped) == 1 and "9 samples, 4 views of each, 1 skipped" in str(found)
    one = evaluate(model, data, tta_views=False)
    np.testing.assert_allclose(one.logits["logits"], by_hand(model, source, [1], "logits")[[0, 1, 2, *range(4, 10)]],
                               atol=1e-5)  # fmt: skip


def test_views_of_a_source_take_a_pass_each(world):
    model = classifier(world)
    found = evaluate(model, world.data(samples=8, tta_views=3, lost=[2]))
    source = world.source(samples=8)
    expected = by_hand(model, source, [1, 0, -1], "probabilities")[[0, *range(2, 8)]]
    np.testing.assert_allclose(found.logits["logits"], expected.numpy(), atol=1e-5)
    assert [one.reason for one in found.skipped] == ["ValueError: this view is gone"] and found.tta_views == 3


def test_validation_asks_all_views_where_told(world):
    model, source = classifier(world, votes=4), world.source(samples=12)
    data = {**model.recipe["data"], "classes": 4}
    recipe = {**model.recipe, "data": data}
    one = validate(model, source, recipe)
    recipe["train"] = {**recipe["train"], "validate_tta": True}
    found = validate(model, source, recipe)
    labels = torch.arange(12) % 4
    expected = by_hand(model, source, [1, 0.5, 0, -0.5], "probabilities")
    assert found["accuracy"] == pytest.approx(float((expected.argmax(1) == labels).float().mean()))
    assert one["loss"] != pytest.approx(found["loss"])


def test_numbers_of_views_must_agree():
    class One:
        def __init__(self, tta_views):
            self.tta_views = tta_views

    assert tta_views_of({"a": One(1), "b": One(3)}) == 3
    with pytest.raises(MaemmError, match=r"different numbers of views \(a 2, b 3\)"):
        tta_views_of({"a": One(2), "b": One(3)})
    single = TtaModality(type("M", (), {"load_tta_views": lambda self, raw: [raw], "collate": lambda self, s: s})(), 3)
    assert single.load("x", None) == ["x"] * 3 and single.collate([["a", "b"], ["c", "d"]]) == ["a", "b", "c", "d"]


def test_features_take_no_tta(world):
    model = classifier(world, votes=4)
    assert features(model, world.source(samples=5))["marks"].x.shape == (5, 16)


# -------------------------------------------------------------------------------------------------- few labels
def test_few_labels_beside_from_scratch_on_a_page(world, capsys):
    run, data = world.run(), world.data(samples=40)
    test = world.data("test", samples=16, seed=1, prefix="t")
    words = [f"{key}={'null' if value is None else value}" for key, value in QUICK.items()]
    command = ["finetune", run, data, *words, "--test", test, "--shots", "1,50%", "--seeds", "2", "--json"]
    assert cli.main(command) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    cells = {(one["features"], one["shots"]): one for one in told["results"]}
    assert set(cells) == {(a, b) for a in ("fine-tuned", "from scratch") for b in ("1", "50%")}
    assert np.array(cells["fine-tuned", "1"]["values"]).shape == (2, 1)
    page = (world.folder / "run-labels/report.html").read_text()
    assert "Few labels" in page and "fine-tuned" in page and "finetune, 50% of labels" in page
    assert page.count('class="chart broad"') == 1 and "data:image" not in page
    runs = sorted(one.name for one in (world.folder / "run-labels/runs").iterdir())
    assert len(runs) == 8 and runs[0] == "fine-tuned-1-seed-0"
    recipe = (world.folder / "run-labels/runs/fine-tuned-1-seed-0/recipe.yaml").read_text()
    assert "shots: '1'" in recipe and "validation: null" in recipe
    assert cli.main(command) == 0  # nothing is trained again
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["results"] == told["results"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--shots", "1"], "--shots needs --test DATA"),
        (["--shots", "x", "--test", "{test}"], "'x' is not valid"),
        (["--shots", "1000", "--test", "{test}"], "has 10 samples, --shots needs 1000"),
    ],
)
def test_few_labels_that_mean_nothing(world, capsys, words, text):
    run, data, test = world.run(), world.data(samples=40), world.data("test", samples=8)
    assert cli.main(["finetune", run, data, *(one.replace("{test}", test) for one in words)]) == 2
    assert text in capsys.readouterr().err


def test_figures_of_probes_stand_on_the_page_of_the_run(world):
    from maemm.tasks._shared.run_page import write_page
    from maemm.tasks.probe.run import probe

    run = world.run()
    write_page(run)
    assert "Probes of frozen features" not in (world.folder / "run/report.html").read_text()
    probe(run, world.data(samples=40), shots=["1", "5"], seeds=1, folds=2, baselines=True)
    page = (world.folder / "run/report.html").read_text()
    assert "Probes of frozen features" in page and "untrained" in page and "labels of each class" in page
    (world.folder / "run/evaluate/zz.json").write_text('{"verb": "knn", "results": [{"odd": 1}]}')
    write_page(run)
    assert "Not shown: zz.json" in (world.folder / "run/report.html").read_text()


# ------------------------------------------------------------------------------------------------ hostile answers
def test_a_recipe_without_weights_to_begin_with(world, tmp_path):
    from maemm.config import dump

    recipe = recipe_for(world.run(), world.data(samples=16), QUICK)
    recipe.pop("init")
    (tmp_path / "bare.yaml").write_text(dump(recipe))
    with pytest.raises(MaemmError, match="starts from no weights.*set init=RUN_OR_WEIGHTS, or add --scratch"):
        finetune(tmp_path / "bare.yaml", echo=lambda text: None)
    out = finetune(tmp_path / "bare.yaml", scratch=True, echo=lambda text: None, **{"train.epochs": 1})
    assert out.name.endswith("-scratch")


def test_a_test_part_that_was_learned_from_is_told_with_its_count(world, capsys):
    run, data = world.run(), world.data(samples=40)
    words = [f"{key}={'null' if value is None else value}" for key, value in QUICK.items()]
    test = world.data("test", samples=12, prefix="t")  # the same waves under other names
    assert cli.main(["finetune", run, data, *words, "train.epochs=1", "data.validation=null", "--test", test]) == 0
    assert (
        "12 of 12 test samples have the content of a training sample (0 of them its id too)" in capsys.readouterr().err
    )
    apart = shared_with_training(f"{run}-finetune", world.data("apart", samples=12, seed=1))
    assert apart.content == 0 and apart.trained.same_name == 12 and apart.chosen is None


def tuned(world, data, **more):
    options = {**QUICK, "train.epochs": 1, "data.validation": None, **more}
    return str(finetune(world.run(), data, echo=lambda text: None, **options))


def warned(capsys, *words):
    assert cli.main(["evaluate", *words]) == 0
    return capsys.readouterr().err.splitlines()


def test_a_test_part_that_chose_the_weights_is_told_apart(world, capsys):
    test = world.data("test", samples=12, seed=1)
    run = tuned(world, world.data(samples=40), **{"data.validation": test})
    said = "maemm: warning: 12 of 12 test samples are validation samples, by which the weights were chosen"
    assert warned(capsys, run, test) == [said]
    assert str(shared_with_training(run, test)) == said.removeprefix("maemm: warning: ")
    (record,) = (world.folder / "run-finetune/evaluate").glob("evaluate-*.json")
    assert json.loads(record.read_text())["warnings"] == [said.removeprefix("maemm: warning: ")]


def test_a_held_out_share_and_the_rest_are_both_told(world, capsys):
    data = world.data(samples=40)
    said = warned(capsys, tuned(world, data, **{"data.validation": 0.1}), data)
    assert len(said) == 2 and "36 of 40 test samples have the content of a training sample" in said[0]
    assert "4 of 40 test samples are validation samples" in said[1]


def test_evaluate_tells_of_the_runs_own_data(world, capsys):
    data = world.data(samples=20)
    run = tuned(world, data)
    assert ["no data are named" in line for line in warned(capsys, run)] == [True]
    for _ in range(2):  # the second time from what was kept
        assert "20 of 20 test samples have the content of a training" in warned(capsys, run, data)[0]
    assert "20 of 20" in warned(capsys, run, data, "modalities.marks.votes=2")[0]
    apart = world.data("apart", samples=8, seed=1)
    assert warned(capsys, run, apart) == []
    (world.folder / "data.json").unlink()
    assert "not compared with the test samples: " in warned(capsys, run, apart)[0]


def test_names_in_another_order_are_refused(world):
    data = world.data(samples=20)
    run = tuned(world, data)
    for classes in (["b", "a", "c", "d"], ["a", "b"], 4):
        with pytest.raises(MaemmError, match=r"are not those of the model, \['a', 'b', 'c', 'd'\]; leave"):
            evaluate(run, data, classes=classes)
    assert evaluate(run, data, classes=["a", "b", "c", "d"]).classes == ("a", "b", "c", "d")


# ------------------------------------------------------------------------------------------- other ways to read
def test_views_that_the_weights_do_not_tell(world, capsys):
    model, data = classifier(world), world.data(samples=10)
    found = evaluate(model, data, overrides={"modalities.marks.votes": 4})
    assert found.tta_views == 4 and model.modalities["marks"].tta_views == 1  # the model that was given stays as it was
    expected = evaluate(classifier(world, votes=4), data)
    np.testing.assert_array_equal(found.logits["logits"], expected.logits["logits"])
    run = tuned(world, data)
    assert cli.main(["evaluate", run, data, "modalities.marks.votes=3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tta_views"] == 3


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("modalities.marks.vote=4", "unknown key 'modalities.marks.vote' (override); did you mean"),
        ("modalities.marks.votes=many", "modalities.marks.votes must be int, got 'many'"),
        ("modalities.marks.patch=2", "the weights, with other modalities.marks.patch, do not fit: "),
        ("modalities.other.votes=4", "is no option of this model's modalities; only those can be set here: modalities"),
        ("modalities=4", "'modalities' means nothing here"),
        ("encoder.depth=4", "'encoder.depth' means nothing here"),
        ("views=[5,3]", "'views' means nothing here (override views=[5,3]); known: data.list, data.source"),
        ("show=3", "'show' means nothing here"),
        ("data=x", "'data' means nothing here"),
        ("batch=8", "batch is a flag (override batch=8); write --batch 8"),
        ("no_tta=true", "no_tta is a flag (override no_tta=true); write --no-tta\n"),
    ],
)
def test_words_that_mean_nothing(world, capsys, word, text):
    model = classifier(world)
    from maemm.weights import save

    save(model, world.folder / "model.safetensors")
    assert cli.main(["evaluate", str(world.folder / "model.safetensors"), world.data(), word]) == 2
    said = capsys.readouterr().err
    assert text in said and said.count("\n") == 1, said


def test_weights_averaged_over_epochs(world):
    from maemm.weights import load

    run, data = world.run(), world.data(samples=16)
    options = {**QUICK, "data.validation": None, "train.keep": 9, "train.save_every": 4, "train.epochs": 3}
    out = finetune(run, data, echo=lambda text: None, **options, **{"train.average": 2})
    from safetensors.torch import load_file

    steps = {name: out / f"checkpoints/step-00000{name}" for name in (4, 8)}
    last = out / "checkpoints/step-000012"
    means = next(path for path in last.glob("*.safetensors") if path.name != "model.safetensors")
    key = "encoder.blocks.0.mlp.fc1.weight"
    ends = [load_file(path / "model.safetensors")[key] for path in (steps[8], last)]
    torch.testing.assert_close(load_file(means)[key], sum(ends) / 2)
    torch.testing.assert_close(load(out).state_dict()[key], sum(ends) / 2)
    assert torch.equal(load(steps[8]).state_dict()[key], ends[0])  # the mean of one
    assert torch.equal(load(last / "model.safetensors").state_dict()[key], ends[1])
    both = {"train.average": 2, "train.ema": 0.9, "out": str(world.folder / "both")}
    with pytest.raises(MaemmError, match="are both averages"):
        finetune(run, data, echo=lambda text: None, **QUICK, **both)
