import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import maemm
from maemm.contract.errors import MaemmError
from maemm.tasks._shared.features import Features
from maemm.tasks._shared.records import save_record
from maemm.tasks._shared.tables import Table, held_out, tables
from maemm.tasks.probe.linear import _fit, choose_l2_c, linear, logistic_scores
from maemm.tasks.probe.neighbours import knn_accuracy, knn_scores
from maemm.tasks.probe.run import probe
from maemm.tasks.probe.trained import (
    PUBLISHED,
    Attentive,
    PublishedLinear,
    attentive_scores,
    class_weights,
    published_choice,
    published_scores,
    take_probe_step,
)
from maemm.train.optim import make_optimizer
from maemm.train.schedules import learning_rate

GOLDEN = Path(__file__).parents[2] / "golden/mae"


def blobs(count, seed=0, classes=3, width=6, spread=0.6, names=None):
    """Classes around centres that do not depend on the seed."""
    centres = np.random.default_rng(99).standard_normal((classes, width))
    drawn = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    x = centres[labels] + spread * drawn.standard_normal((count, width))
    return Features(x.astype(np.float32), labels, [f"{seed}-{i}" for i in range(count)], classes=names)


def test_the_published_linear_probe_in_two_steps():
    data = load_file(GOLDEN / "mae_linprobe_lars2.safetensors")
    state = {key.removeprefix("state/"): value for key, value in data.items() if key.startswith("state/")}
    model = maemm.load(state, kind="mae", heads=4)
    probe = PublishedLinear(32, 10).train()
    probe.linear.load_state_dict({"weight": state["head.weight"], "bias": state["head.bias"]})
    optimizer = make_optimizer(probe, PUBLISHED)
    with torch.no_grad():
        features = [model.embed({"image": x}, pool="cls", norm="before")["image"] for x in data["x"]]
    for step in range(2):
        loss, logits = take_probe_step(probe, optimizer, features[step], data["y"][step], float(data["lr"][step]))
        torch.testing.assert_close(logits, data["train_logits"][step], atol=1e-5, rtol=0)
        torch.testing.assert_close(loss, data["loss"][step], atol=1e-5, rtol=0)
        torch.testing.assert_close(probe.linear.weight.data, data[f"after{step + 1}/head.weight"], atol=1e-5, rtol=0)
        torch.testing.assert_close(probe.linear.bias.data, data[f"after{step + 1}/head.bias"], atol=1e-5, rtol=0)
    torch.testing.assert_close(probe.norm.running_mean, data["bn/running_mean"], atol=1e-5, rtol=0)
    torch.testing.assert_close(probe.norm.running_var, data["bn/running_var"], atol=1e-5, rtol=0)
    with torch.no_grad():
        answers = probe.eval()(features[2])
    torch.testing.assert_close(answers, data["eval_logits"], atol=1e-5, rtol=0)


def test_the_published_schedule():
    table = json.loads((GOLDEN / "lr_table.json").read_text())["linprobe_base"]
    assert (PUBLISHED["base_lr"], PUBLISHED["batch"], PUBLISHED["epochs"]) == tuple(
        table[key] for key in ("blr", "batch", "epochs")
    )
    rate = learning_rate(PUBLISHED, 78, 90 * 78)  # 78 steps of 16384 in an epoch of ImageNet
    for epoch, expected in table["rows"]:
        assert rate(int(epoch * 78)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_knn_equals_the_slow_way():
    train, test = blobs(50), blobs(17, seed=1)
    a, b = tables(train, test)
    expected = []
    for row in b.x:
        near = a.x @ row / np.linalg.norm(a.x, axis=1) / np.linalg.norm(row)
        best = np.argsort(-near)[:5]
        votes = np.bincount(a.y[best], np.exp(near[best] / 0.07), minlength=3)
        expected.append(votes / votes.sum())
    np.testing.assert_allclose(knn_scores(a, b, k=5), expected, atol=1e-4)
    assert knn_accuracy(train, test, k=5) == np.mean(np.argmax(expected, 1) == test.labels)
    assert knn_accuracy(train, test, k=5000) == knn_accuracy(train, test, k=50)  # no more than there are
    far = Features(np.vstack([train.x, -train.x]), np.tile(train.labels, 2), train.ids * 2)
    assert np.isfinite(knn_scores(*tables(far, test), k=100, temperature=0.001)).all()


def test_linear_finds_what_is_linear():
    assert linear(blobs(300), blobs(300, seed=1)) > 0.9
    noise = blobs(300)
    shuffled = Features(noise.x, np.random.default_rng(0).permutation(noise.labels), noise.ids)
    assert linear(shuffled, blobs(300, seed=1)) < 0.6


def test_more_features_than_samples_take_a_short_way_to_the_same_answer():
    a, b = tables(blobs(24, width=200), blobs(30, seed=1, width=200))
    long = _fit(a.x, a.y, 0.1, False).predict_proba(b.x)
    np.testing.assert_allclose(logistic_scores(a, b, l2_c=0.1), long, atol=2e-3)


def test_the_penalty_is_chosen_inside_the_training_part():
    a, _ = tables(blobs(600, spread=3.0), blobs(10))
    assert choose_l2_c(a) in (1e-4, 1e-3, 1e-2, 1e-1)  # noisy: a strong penalty
    one_each, _ = tables(blobs(3), blobs(10))
    assert choose_l2_c(one_each) == 1e-2  # nothing can be held out


def test_held_out_parts_keep_every_class():
    table = Table(np.zeros((30, 1), np.float32), np.array([0] * 20 + [1] * 9 + [2]), 3)
    held = held_out(table, seed=0)
    assert held.sum() == 3 and set(table.y[held]) == {0, 1} and 2 in table.y[~held]


def test_published_and_attentive_probes_learn():
    train, test = blobs(200), blobs(200, seed=1)
    scores = published_scores(*tables(train, test, scale=False), base_lr=30.0)  # small data need large steps
    assert (scores.argmax(1) == test.labels).mean() > 0.85
    rng = np.random.default_rng(0)

    def marked(count, valid):
        """The class stands in one of the tokens alone; a token that is not valid names another one loudly."""
        labels, x = np.arange(count) % 3, rng.standard_normal((count, 5, 8)).astype(np.float32)
        place = rng.integers(0, 4, count)
        x[np.arange(count), place] += 4 * np.eye(8, dtype=np.float32)[labels]
        x[:, 4] = 40 * np.eye(8, dtype=np.float32)[rng.integers(0, 3, count)]
        real = np.ones((count, 5), bool)
        real[:, 4] = valid
        return Features(x, labels, [str(i) for i in range(count)], valid=real)

    options = {"epochs": 40, "warmup_epochs": 4, "batch": 32, "base_lr": 1e-2}
    hidden = attentive_scores(*tables(marked(192, False), marked(96, False), scale=False), **options)
    assert (hidden.argmax(1) == np.arange(96) % 3).mean() > 0.75
    with pytest.raises(MaemmError, match="needs the features of tokens"):
        attentive_scores(*tables(train, test))


def test_an_attentive_probe_does_not_see_padding():
    torch.manual_seed(0)
    probe, x, valid = Attentive(8, 3).eval(), torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    valid[0, 3:] = False
    before = probe(x, valid)
    x[0, 3:] = 100.0
    assert torch.equal(probe(x, valid), before) and not torch.allclose(probe(x)[0], before[0])
    torch.testing.assert_close(probe(x[:1, :3]), before[:1])


def test_a_sweep_takes_the_best_on_a_held_out_part():
    a, b = tables(blobs(200), blobs(200, seed=1), scale=False)
    swept, best = (published_scores(a, b, base_lr=one, epochs=20, warmup_epochs=2) for one in ([1e-9, 3.0], 3.0))
    assert np.array_equal(swept, best)
    assert published_choice(a, base_lr=[1e-9, 3.0], epochs=20, warmup_epochs=2) == ("base_lr", 3.0, "")
    assert not np.array_equal(best, published_scores(a, b, base_lr=1e-9, epochs=20, warmup_epochs=2))


def test_a_sweep_with_nothing_to_hold_out_takes_the_first_and_says_so(world, capsys):
    options = {"test": world.data("test", samples=16, seed=1), "seeds": 1, "protocols": ["published"], "epochs": 2}
    found = probe(world.model(), world.data(samples=40), shots=[1], base_lr=[0.1, 1.0], **options)
    assert found.notes == [
        "trained, published, 1 per class: no class has two samples to choose a learning rate with, so the first one is "
        "used (0.1)"
    ]
    assert found.record()["results"][0]["chosen"] == {"base_lr": [[0.1]]}


def test_what_was_chosen_is_told_and_kept(world):
    found = probe(
        world.model(), world.data(samples=60), folds=2, seeds=2, epochs=20, base_lr=[1e-9, 30.0],
        protocols=["linear", "published", "knn"],
    )  # fmt: skip
    linear, published, nearest = found.record()["results"]
    rates = published["chosen"]["base_lr"]
    assert np.shape(rates) == (2, 2) and set(np.ravel(rates)) <= {1e-9, 30.0} and "chosen" not in nearest
    assert np.shape(linear["chosen"]["l2_c"]) == (2, 2)
    said = str(found).splitlines()
    assert any(one.startswith("  trained, published: base learning rate ") for one in said)
    assert any(one.startswith("  trained, linear: C ") for one in said)
    one = probe(world.model(), world.data(samples=60), folds=2, seeds=1, epochs=1, protocols=["published"])
    assert "chosen" not in one.record()["results"][0]  # nothing was


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0, "protocols": ["published"]}, "0 epochs train nothing .--epochs.; give 1 or more"),
        ({"epochs": -4, "protocols": ["attentive"]}, "-4 epochs train nothing"),
        ({"epochs": 3}, "--epochs means nothing to linear; add --protocol published or attentive"),
        ({"epochs": 3, "base_lr": [1.0]}, "--epochs and --base-lr mean nothing to linear"),
        ({"base_lr": float("nan"), "protocols": ["published"]}, "base_lr is nan"),
        ({"base_lr": [], "protocols": ["published"]}, r"base_lr is \[\]"),
    ],
)
def test_options_that_would_change_nothing(world, options, message):
    with pytest.raises(MaemmError, match=message):
        probe(world.model(), world.data(), **options)


def test_the_first_skipped_sample_is_named(world):
    found = probe(world.model(), world.data(samples=40, bad=[3], nan=[5]), folds=2, seeds=1, protocols=["knn"])
    assert str(found).endswith("; 2 skipped (first: 003: ValueError: broken on purpose)")
    told = found.record()["bad_samples"]
    assert told[0] == {"index": 3, "id": "003", "reason": "ValueError: broken on purpose"} and told[1]["id"] == "005"


def test_records_of_one_second_are_both_kept(world, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: "20260101-000000")
    run = world.run()
    paths = [save_record({"results": i}, "knn", run, None) for i in range(3)]
    assert paths == sorted(set(paths)) and [json.loads(one.read_text())["results"] for one in paths] == [0, 1, 2]


def test_class_weights():
    table = Table(np.zeros((8, 1), np.float32), np.array([0] * 6 + [2] * 2), 4)
    assert class_weights(table).tolist() == pytest.approx([8 / 12, 0, 2, 0])


# ------------------------------------------------------------------------------------------ what is no task
def test_labels_are_matched_by_their_names():
    train = blobs(90, names=("a", "b", "c"))
    test = blobs(60, seed=1)
    # The test part knows the classes in another order, and one more that it does not use.
    renamed = Features(test.x, np.array([3, 1, 0])[test.labels], test.ids, classes=("c", "b", "unused", "a"))
    same = Features(test.x, test.labels, test.ids, classes=("a", "b", "c"))
    assert knn_accuracy(train, renamed) == knn_accuracy(train, same) > 0.8
    assert linear(train, renamed) == linear(train, same)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (a, replaced(b, classes=("a", "b", "x"))), r"1 classes that the training part does not know \(x"),
        (lambda a, b: (a, replaced(b, labels=b.labels + 1, classes=None)), r"does not know \(3\)"),
        (
            lambda a, b: (a, replaced(b, classes=None)),
            "of the training part have names, the labels of the test part are",
        ),
        (
            lambda a, b: (replaced(a, classes=None), b),
            "of the test part have names, the labels of the training part are",
        ),
        (lambda a, b: (replaced(a, labels=a.labels * 0), b), "training labels are 'a'; a classifier needs two"),
        (lambda a, b: (replaced(a, labels=a.labels * 0 - 1), b), "the training part has no labels"),
        (lambda a, b: (a, replaced(b, labels=b.labels * 0 - 1)), "the test part has no labels"),
        (
            lambda a, b: (a, replaced(b, x=np.where(b.x > 1.5, np.nan, b.x))),
            r"of the test part have features that are n",
        ),
        (lambda a, b: (a, replaced(b, x=b.x[:, :3])), "training features are 6 wide, test features 3"),
    ],
)
def test_what_is_no_task_is_said_in_one_line(change, message):
    a, b = blobs(30, names=("a", "b", "c")), blobs(30, seed=1, names=("a", "b", "c"))
    a, b = change(replaced(a, classes=None) if "(3" in message else a, b)
    for fit in (knn_accuracy, linear):
        with pytest.raises(MaemmError, match=message) as error:
            fit(a, b)
        assert "\n" not in str(error.value)


def replaced(one, **values):
    from dataclasses import replace

    return replace(one, **values)
