import pytest
import torch
import yaml

from maemm.train.loop import Run
from maemm.train.signals import Interrupted

pytestmark = pytest.mark.gpu


def test_bf16_is_the_default_and_follows_fp32(toys):
    cases = {"fp32": "fp32", "bf16": "auto"}
    runs = {name: toys.train(toys.recipe(toys.out / name, train__precision=one)) for name, one in cases.items()}
    assert "1 GPU, bf16" in toys.lines[0]
    for row, other in zip(toys.metrics(runs["fp32"]), toys.metrics(runs["bf16"]), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=0.03)


def test_a_bad_step_is_skipped_without_asking_the_device(toys, monkeypatch):
    """It is reported one step late, and changes nothing all the same."""
    nan = list(range(64))
    toys.train(train__steps=4, train__epochs=None, train__warmup_epochs=0)
    before = toys.weights()
    monkeypatch.setattr("maemm.train.saves.Saves.write_after_error", lambda self, step: None)
    stored = yaml.safe_load((toys.out / "recipe.yaml").read_text())
    stored["data"]["source"]["nan"] = nan  # of the source alone: the modality is called toy too
    (toys.out / "recipe.yaml").write_text(yaml.safe_dump(stored))
    toys.train(train__steps=7, train__epochs=None, train__warmup_epochs=0, data__source__nan=nan)
    assert sum("skipped: loss not finite" in line for line in toys.lines) == 3
    assert all(torch.equal(value, before[key]) for key, value in toys.weights().items())


def test_an_interrupted_run_goes_on(toys, monkeypatch):
    whole = toys.train(toys.recipe(toys.out / "whole", train__precision="fp32"))
    broken = toys.recipe(toys.out / "broken", train__precision="fp32")
    original = Run._next_micro_batches

    def stop_at_nine(self, batches, interrupts):
        if self.step == 9:
            interrupts.signum = 15
        return original(self, batches, interrupts)

    monkeypatch.setattr(Run, "_next_micro_batches", stop_at_nine)
    with pytest.raises(Interrupted):
        toys.train(broken)
    monkeypatch.setattr(Run, "_next_micro_batches", original)
    toys.train(broken)
    for row, other in zip(toys.metrics(whole), toys.metrics(toys.out / "broken"), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)


@pytest.mark.gpu(real=True)
def test_compiled_equals_eager(toys):
    eager = toys.train(toys.recipe(toys.out / "eager", train__precision="fp32"))
    compiled = toys.train(toys.recipe(toys.out / "compiled", train__precision="fp32", train__compile=True))
    for row, other in zip(toys.metrics(eager), toys.metrics(compiled), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
