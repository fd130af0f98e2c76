"""Training on several data sets, and on samples that lack modalities: resume, processes, pictures, validation."""

import pytest
import torch

from maemm.contract.errors import MaemmError

STREAMS = {"type": "streams", "dim": 16, "depth": 1, "joint_depth": 1, "heads": 2, "streams": ["toy", "other"]}
MIX = {
    "modalities": {"toy": {"type": "toy"}, "other": {"type": "toy"}},
    "data__source": None,
    "data__mix": {
        "one": {"modalities": ["toy"], "source": {"type": "toy", "samples": 32}},
        "two": {"modalities": ["other"], "source": {"type": "toy", "samples": 32, "salt": 1, "bad": [3]}},
        "both": {"source": {"type": "toy", "samples": 32, "salt": 2}},
    },
    "train__epochs": 3,
    "train__optimizer": "sgd",  # its steps are the gradients; Adam magnifies rounding
    "train__lr": 0.02,
}
PAIRS = {
    "encoder": STREAMS,
    "decoder__prefix": "none",
    "objectives": {"reconstruct": {}, "contrastive": {"pair": ["toy", "other"], "weight": 0.5, "both": True}},
}
LACKS = {
    **PAIRS,
    "modalities": MIX["modalities"],
    "data__missing": "allow",
    "data__source": {"type": "toy", "samples": 32, "lacks": {"other": [*range(0, 32, 3)], "toy": [1, 2]}},
    "train__epochs": 3,
    "train__optimizer": "sgd",
    "train__lr": 0.02,
}


def same(one, other, tolerance=2e-5):
    assert len(one) == len(other) > 0
    for row, second in zip(one, other, strict=True):
        assert row["loss"] == pytest.approx(second["loss"], abs=tolerance)
        assert row["grad_norm"] == pytest.approx(second["grad_norm"], abs=10 * tolerance)
        assert row["terms"].keys() == second["terms"].keys()
        for name, value in row["terms"].items():
            assert value == pytest.approx(second["terms"][name], abs=tolerance), name


@pytest.mark.parametrize("encoder", ["vit", "streams"])
def test_two_processes_take_turns_as_one(toys, encoder):
    options = {**MIX, **(PAIRS if encoder == "streams" else {})}
    one = toys.train(toys.recipe(toys.out / "one", **options))
    pair = toys.start(toys.recipe(toys.out / "two", **options), 2)
    assert [process.wait() for process in pair] == [0, 0], pair[0].said()
    rows = toys.metrics(one)
    same(rows, toys.metrics(toys.out / "two"))
    weights, others = toys.weights(one), toys.weights(toys.out / "two")
    assert all(torch.allclose(value, others[key], atol=1e-5) for key, value in weights.items())
    kinds = {tuple(sorted(name for name in row["terms"] if name.startswith("reconstruct"))) for row in rows}
    assert kinds == {("reconstruct.toy",), ("reconstruct.other",), ("reconstruct.other", "reconstruct.toy")}
    if encoder == "streams":
        assert all(("contrastive" in row["terms"]) == (len(row["terms"]) > 1) for row in rows)


def test_a_killed_run_goes_on_bit_for_bit(toys):
    whole = toys.train(toys.recipe(toys.out / "whole", **MIX))
    broken = toys.recipe(toys.out / "cut", **MIX, train__save_every=5)
    from maemm.train import loop

    class Enough(Exception):
        pass

    made = loop.Run._train_step

    def step(run, work):
        if work.step == 8:
            raise Enough
        made(run, work)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Run, "_train_step", step)
        with pytest.raises(Enough):
            toys.train(broken)
    toys.train(broken)
    assert any("resuming from step 5" in line for line in toys.lines)
    assert toys.metrics(toys.out / "cut") == toys.metrics(whole)
    cut = toys.weights(toys.out / "cut")
    assert all(torch.equal(value, cut[name]) for name, value in toys.weights(whole).items())


def test_bad_samples_of_a_set_are_named_and_counted(toys):
    folder = toys.train(**MIX)
    assert [line for line in (folder / "bad_samples.jsonl").read_text().splitlines() if "two/toy-3" in line]
    with pytest.raises(MaemmError, match="1 of 96 samples are unreadable"):
        toys.train(toys.recipe(toys.out / "strict", **MIX, data__max_bad_fraction=0.0))


def test_a_mixture_is_validated_set_by_set(toys):
    folder = toys.train(**MIX, data__validation=0.25)
    assert (folder / "best" / "model.safetensors").exists()
    assert "best validation loss" in toys.lines[-2] and "unreadable (list: " in toys.lines[-1]


def test_two_processes_with_absent_modalities_train_as_one(toys):
    one = toys.train(toys.recipe(toys.out / "one", **LACKS))
    pair = toys.start(toys.recipe(toys.out / "two", **LACKS), 2)
    assert [process.wait() for process in pair] == [0, 0], pair[0].said()
    same(toys.metrics(one), toys.metrics(toys.out / "two"))


def test_a_modality_that_nobody_has_hangs_nobody(toys):
    """Not even the other process, which has nothing to do for it either."""
    source = {"type": "toy", "samples": 32, "lacks": {"other": [*range(32)]}}
    options = {**LACKS, "data__source": source, "train__epochs": 2}
    one = toys.train(toys.recipe(toys.out / "one", **options))
    pair = toys.start(toys.recipe(toys.out / "two", **options), 2)
    assert [process.wait() for process in pair] == [0, 0], pair[0].said()
    rows = toys.metrics(one)
    same(rows, toys.metrics(toys.out / "two"))
    assert all(row["terms"]["reconstruct.other"] == row["terms"]["contrastive"] == 0 for row in rows)


def test_without_leave_such_samples_stop_the_run(toys):
    with pytest.raises(MaemmError, match="samples are unreadable.*max_bad_fraction"):
        toys.train(**{**LACKS, "data__missing": "skip"})


def test_pictures_of_a_mixture_show_every_modality(toys, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "maemm.tasks.pretrain.report.save_pictures", lambda model, batches, path, **rest: seen.append(batches) or path
    )
    toys.train(**{**MIX, "train__epochs": 2})
    assert [[*one] for one in seen[0]] == [["toy"], ["other"], ["toy", "other"]]
    assert not any(line.startswith("no pictures") for line in toys.lines)
