"""Samples with any number of labels: probes, fine-tuning, evaluation."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from maemm import __main__ as cli
from maemm.contract import Plan, Preprocessed
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.model.build import build_model
from maemm.model.objectives.classify import Classify
from maemm.tasks._shared.features import Features
from maemm.tasks._shared.tables import tables
from maemm.tasks.evaluate.run import evaluate
from maemm.tasks.finetune.recipe import recipe_for
from maemm.tasks.finetune.run import finetune
from maemm.tasks.probe.linear import linear
from maemm.tasks.probe.neighbours import knn_accuracy
from maemm.tasks.probe.run import probe
from maemm.tasks.probe.trained import published_scores

QUICK = {
    "train.epochs": 6, "train.batch": 8, "train.warmup_epochs": 0, "train.schedule": "constant", "train.base_lr": None,
    "train.lr": 3e-3, "train.log_every": 1, "train.min_lr": 0.0, "train.layer_decay": None, "encoder.drop_path": 0.0,
}  # fmt: skip


def made(count=120, seed=0, classes=("a", "b", "c")):
    """Features of which each class switches one on."""
    drawn = np.random.default_rng(seed)
    labels = (drawn.random((count, len(classes))) < 0.4).astype(np.int8)
    x = np.concatenate([labels * 2.0, np.zeros((count, 3))], 1) + 0.3 * drawn.standard_normal((count, len(classes) + 3))
    return Features(x.astype(np.float32), labels, [str(i) for i in range(count)], classes=tuple(classes))


def test_every_classifier_finds_several_labels():
    train, test = made(), made(40, seed=1)
    chance = test.labels.mean()
    assert linear(train, test) > 0.95 and knn_accuracy(train, test) > 0.85 > 2 * chance - 0.05
    a, b = tables(train, test)
    assert b.metric(published_scores(a, b, base_lr=[1.0, 100.0], epochs=20)) > 0.9
    assert b.metric(np.zeros((40, 3))) == pytest.approx(test.labels.mean(0).mean())


def test_classes_are_matched_by_name_and_single_labels_fit_in():
    train = made()
    other = replace(made(40, seed=1), labels=made(40, seed=2, classes=("c", "a")).labels, classes=("c", "a"))
    table = tables(train, other)[1]
    assert table.y[:, [2, 0]].tolist() == other.labels.tolist() and not table.y[:, 1].any()
    single = Features(other.x, np.arange(40) % 2, other.ids, classes=("b", "c"))
    assert tables(train, single)[1].y[:3].tolist() == [[0, 1, 0], [0, 0, 1], [0, 1, 0]]
    with pytest.raises(MaemmError, match="1 classes that the training part does not know"):
        tables(train, replace(other, classes=("a", "x")))


@pytest.mark.parametrize(
    ("labels", "test", "text"),
    [
        (np.ones((8, 3), np.int8), None, "no class is on some of the 8 training samples and not on others"),
        (None, np.zeros((8, 3), np.int8), "no sample of the test part has any of the classes"),
        (np.full((8, 3), -1, np.int8), None, "the training part has no labels"),
    ],
)
def test_tasks_that_are_none(labels, test, text):
    train, asked = made(8), made(8)
    with pytest.raises(MaemmError, match=text):
        tables(
            train if labels is None else Features(train.x, labels, train.ids, classes=train.classes),
            asked if test is None else Features(asked.x, test, asked.ids, classes=asked.classes),
        )


def test_probe_tells_map_and_the_precision_of_every_class(world, capsys):
    run, data = world.run(), world.data(multilabel=True, samples=60, unlabelled=[2])
    found = probe(run, data, protocols=["linear", "knn"], seeds=1, folds=3, baselines=True)
    record = json.loads(json.dumps(found.record()))
    assert {"mAP", "per_class"} <= set(record["results"][0]) and "accuracy" not in record["results"][0]
    assert "features, mAP" in str(found) and "largest class" not in str(found)
    assert [one["class"] for one in record["results"][0]["per_class"]] == ["a", "b", "c", "d"]
    assert record["data"]["labelled"] == 59 and "average precision" in found.details()
    assert cli.main(["probe", run, data, "--seeds", "1", "--folds", "2", "--per-class", "--shots", "2,50%"]) == 0
    assert "average precision" in capsys.readouterr().out


def test_fine_tuning_and_evaluation(world):
    run, data = world.run(), world.data(multilabel=True, samples=40, noise=0.1)
    recipe = recipe_for(run, data, {}, balanced=True)
    assert recipe["objectives"]["classify"]["loss"] == "sigmoid"
    weights = recipe["objectives"]["classify"]["class_weights"]
    assert len(weights) == 4 and min(weights) > 0
    out = finetune(run, data, echo=lambda text: None, **{**QUICK, "objectives.classify.mixup": 0.2})
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    metrics = [row["validation"] for row in rows if "validation" in row]
    assert all(set(one) == {"mAP", "loss"} for one in metrics) and metrics[-1]["loss"] < metrics[0]["loss"]
    found = evaluate(out, world.data("test", multilabel=True, samples=24, seed=1, noise=0.1))
    assert found.labels.shape == (24, 4) and set(found.metrics("logits")) == {"mAP", "loss"}
    assert "mAP" in str(found) and "average precision" in found.details()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(found.logits["logits"]), torch.from_numpy(found.labels).float()
    )
    assert found.loss("logits") == pytest.approx(float(expected), abs=1e-6)
    plain = {**QUICK, "objectives.classify.loss": "softmax", "out": str(world.folder / "other")}
    with pytest.raises(MaemmError, match="samples have several labels .*loss=sigmoid"):
        finetune(run, data, echo=lambda text: None, **plain)


def test_labels_that_share_a_softmax(world):
    """Weak supervision: k tags of a sample have a probability of 1 / k each, and one without has no loss."""
    labels = torch.tensor([[0, 1], [2, -1], [-1, -1], [3, -1]])
    soft = changed(labels, loss="softmax_shared")
    assert soft.tolist() == [[0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    smooth = changed(labels, loss="softmax_shared", smoothing=0.2)
    torch.testing.assert_close(smooth.sum(1), torch.tensor([1.0, 1, 0, 1]))
    run, data = world.run(), world.data(multilabel=True, samples=40, noise=0.1)
    options = {**QUICK, "objectives.classify.loss": "softmax_shared", "out": str(world.folder / "weak")}
    out = finetune(run, data, echo=lambda text: None, **options)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    metrics = [row["validation"] for row in rows if "validation" in row]
    assert all(set(one) == {"mAP", "loss"} for one in metrics) and metrics[-1]["loss"] < metrics[0]["loss"]
    found = evaluate(out, world.data("test", multilabel=True, samples=24, seed=1, noise=0.1))
    scores, truth = torch.from_numpy(found.logits["logits"]), torch.from_numpy(found.labels).double()
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(24, dtype=torch.float64))
    expected = -(scores * truth / truth.sum(1, keepdim=True).clamp(min=1)).sum(1).mean()
    assert found.loss("logits") == pytest.approx(float(expected), abs=1e-9)


def test_embed_keeps_several_labels(world, tmp_path):
    from maemm.tasks.embed.run import embed

    out = tmp_path / "f.npz"
    embed(world.model(), world.data(multilabel=True, samples=9, unlabelled=[4]), out, batch=4)
    with np.load(out) as stored:
        labels = stored["labels"]
    assert labels.shape == (9, 4) and labels[0].tolist() == [1, 1, 0, 0] and (labels[4] == -1).all()


# ------------------------------------------------------------------------------------------------- the objective
class Net(torch.nn.Module):
    class head(torch.nn.Module):  # noqa: N801
        classes = 4


def changed(labels, preprocessed=None, **options):
    x = torch.arange(4.0)[:, None, None, None].expand(4, 1, 6, 6).contiguous()
    batch = preprocessed or {"m": Preprocessed(x)}
    return Classify("classify", **options).batch(batch, labels, Rng((0, 1), range(4), 4), Net())[1]


def test_labels_that_a_modality_mixed_are_mixed_too():
    info = {"mixed_with": torch.tensor([1, 0, 3, 2]), "mix_share": torch.tensor([0.75, 0.25, 1.0, 1.0])}
    one = {"m": Preprocessed(torch.zeros(4, 1, 6, 6), info=info)}
    soft = changed(torch.tensor([0, 1, 2, 3]), one)
    assert soft.tolist() == [[0.75, 0.25, 0, 0], [0.75, 0.25, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    multilabel = changed(torch.tensor([[0, 1], [2, -1], [-1, -1], [3, -1]]), one, loss="sigmoid")
    torch.testing.assert_close(multilabel[0], torch.tensor([0.75, 0.75, 0.25, 0.0]))


def test_several_labels_are_smoothed_and_mixed():
    labels = torch.tensor([[0, 1], [2, -1], [-1, -1], [3, -1]])
    smooth = changed(labels, loss="sigmoid", smoothing=0.2)
    torch.testing.assert_close(smooth[0], torch.tensor([0.85, 0.85, 0.05, 0.05]))
    mixed = changed(labels, loss="sigmoid", mixup=0.8)
    assert 0 < mixed[0, 3] < 1 and mixed[0, 0] + mixed[0, 3] == pytest.approx(1)
    torch.testing.assert_close(mixed[1], torch.tensor([0.0, 0, 1 - mixed[0, 3], 0]))


def test_tokens_are_hidden_in_training_alone(world):
    recipe = world.recipe(decoder=None, head={"type": "linear", "classes": 4}, objectives={"classify": {"hide": True}})
    model = build_model(recipe)
    batch, rng = {"marks": torch.randn(4, 1, 8, 8)}, Rng((0,), range(4), 4)
    hidden, whole = model.train().plan(batch, rng), model.eval().plan(batch, rng)
    assert hidden["marks"].plan.visible.shape == (4, 2) and whole["marks"].plan.visible.shape == (4, 4)
    model.train()
    seen = model(hidden, labels=torch.zeros(4, dtype=torch.long)).logits
    assert model.encode(hidden)[1].tokens["marks"].shape[1] == 2
    by_hand = {"marks": type(hidden["marks"])(whole["marks"].tokens, hidden["marks"].plan, whole["marks"].preprocessed)}
    torch.testing.assert_close(model.logits(by_hand), seen)
    assert isinstance(hidden["marks"].plan, Plan)
