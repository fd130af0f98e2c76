"""What the conformance suite says beyond passed and failed, and how it treats what is unlike its own modality."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maemm import Plugin, registry
from maemm.contract import Plan, Preprocessed, Sample, Source
from maemm.testing import CheckFailed, checks_of, parametrize_with_checks
from maemm.testing.case import take_plan, take_rows
from maemm.testing.outcome import Skipped
from maemm.testing.places import plugin_line
from maemm.testing.suite import result_of

sys.path.append(str(Path(__file__).parent))  # checks import a plugin's package by name
from broken_plugins import learners, modalities
from broken_plugins.faults import FAULTS
from broken_plugins.parts import BROKEN, PACKAGE


def failure(plugin: Plugin, name: str) -> CheckFailed:
    (check, *_) = (check for check in checks_of(plugin, package=PACKAGE) if check.name == name)
    with pytest.raises(CheckFailed) as caught:
        check()
    return caught.value


def line_of(function, text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if text in line)


# ------------------------------------------------------------------------------------------------------- places
@pytest.mark.parametrize(
    ("plugin", "function", "text", "operation"),
    [
        (BROKEN["forward_waits_for_nothing"][0], modalities.Asking.embed, "float(", "item(), float(), bool() or if"),
        (FAULTS["forward_waits_for_nothing: Chosen"][1], modalities.Chosen.embed, "x[mask]", "a boolean index"),
        (FAULTS["forward_waits_for_nothing: Reading"][1], learners.Reading.after_step, "if not bad", "bool() or if"),
    ],
    ids=["a number", "a boolean index", "after_step"],
)
def test_waiting_for_the_device_names_the_line(plugin, function, text, operation):
    file = Path(inspect.getsourcefile(function)).name
    error = failure(plugin, "forward_waits_for_nothing")
    assert f"{operation} at {PACKAGE}/{file}:{line_of(function, text)}, expected no wait" in error.found


def test_an_exception_names_the_line_that_raised_it():
    error = failure(FAULTS["model_is_built: Unbuilt"][1], "model_is_built")
    assert f"received ValueError at {PACKAGE}/gaps.py:" in error.found and "nothing fits" in error.found


def test_a_line_is_one_of_the_package():
    assert plugin_line(PACKAGE) is None and plugin_line("no_such_package") is None
    assert plugin_line("json") is None


# -------------------------------------------------------------------------------------------------------- hints
def test_identical_mask_tokens_are_explained():
    error = failure(FAULTS["one_batch_is_learned: NoPosition"][1], "one_batch_is_learned")
    assert error.change.startswith("tell hidden tokens apart: their mask tokens and so their predictions are identical")
    assert "position() gives all of them the same" in error.change and '"decoder")' in error.change
    error = failure(FAULTS["one_batch_is_learned: Placeless"][1], "one_batch_is_learned")
    assert "the decoder does not use position()" in error.change
    assert "position" not in failure(BROKEN["one_batch_is_learned"][0], "one_batch_is_learned").change


# ------------------------------------------------------------------------------------------------- dependencies
def test_a_failure_that_is_expected_skips_nothing():
    plugin = FAULTS["embed_fits_the_encoder: NarrowEmbedding"][1]
    for expected in ("embed_fits_the_encoder", f"embed_fits_the_encoder[{plugin.name}]"):
        params = parametrize_with_checks(plugin, {expected: "by design"}, package=PACKAGE).args[1]
        (check,) = (param.values[0] for param in params if param.values[0].name == "forward_fits")
        with pytest.raises(CheckFailed):
            check()
    declared = replace(plugin, deviations={f"embed_fits_the_encoder[{plugin.name}]": "by design"})
    outcomes = {
        check.name: result_of(check).outcome
        for check in checks_of(declared, package=PACKAGE)
        if check.name in ("embed_fits_the_encoder", "forward_fits")
    }
    assert outcomes == {"embed_fits_the_encoder": "by design", "forward_fits": "failed"}


def test_a_skipped_check_names_the_first_failure_and_runs_each_once():
    plugin = FAULTS["embed_fits_the_encoder: NarrowEmbedding"][1]
    checks = checks_of(plugin, package=PACKAGE)
    last = next(check for check in checks if check.name == "names_are_free")
    with pytest.raises(Skipped) as caught:
        last()
    assert caught.value.failure == f"embed_fits_the_encoder[{plugin.name}]"
    assert checks.index(last) > next(i for i, check in enumerate(checks) if check.name == "embed_fits_the_encoder")
    assert last.failures[("modalities", plugin.name, "embed_fits_the_encoder")]


# ------------------------------------------------------------------------------------------------ rows and labels
def test_rows_are_taken_from_all_that_is_by_sample():
    x = torch.arange(3.0)[:, None]
    batch = Preprocessed(x, x > 0, {"side": x * 2, "text": "same"}, torch.tensor([True, False, True]))
    part = take_rows(batch, [2, 1])
    assert part.x.tolist() == [[2.0], [1.0]] and part.present.tolist() == [True, False]
    assert part.info["side"].tolist() == [[4.0], [2.0]] and part.info["text"] == "same"
    index = torch.arange(3)[:, None]
    plan = Plan(index, index[:, :0], passes=index[:, 0], first=index[:, 0], budget=1)
    alone = take_plan(plan, [1])
    assert alone.visible.tolist() == [[1]] and alone.passes is None and alone.budget == 1


class Labels(Source):
    def __init__(self, labels, classes=None, multilabel=False):
        self.labels, self.classes, self.multilabel = labels, classes, multilabel

    def __repr__(self):  # in the names of tests, which are the same in every process
        return f"labels {self.labels}"

    def __len__(self):
        return len(self.labels)

    def read(self, index, rng):
        return Sample({"x": index}, str(index), self.labels[index])


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (Labels([0, None, 2]), None),
        (Labels([0, 1], ["a", "b"]), None),
        (Labels([(0, 1), (), None], ["a", "b"], multilabel=True), None),
        (Labels([(0, 1)]), "received (0, 1), expected None, or an int from 0"),
        (Labels([0], multilabel=True), "received 0, expected None, or a tuple of different ints from 0"),
        (Labels([(0, 0)], multilabel=True), "received (0, 0), expected None, or a tuple"),
        (Labels([(0, -1)], multilabel=True), "received (0, -1)"),
        (Labels([True]), "received True"),
        (Labels([-1]), "received -1"),
        (Labels([2], ["a", "b"]), "received 2, expected less than 2"),
        (Labels([(0, 2)], ["a", "b"], multilabel=True), "received (0, 2), expected less than 2"),
    ],
    ids=str,
)
def test_labels_are_numbers_or_tuples_of_them(source, problem, monkeypatch):
    from maemm.testing import checks_sources

    monkeypatch.setattr(checks_sources, "open_source", lambda case: source)
    check = next(check for check in checks_of(registry.CORE) if check.name == "samples_are_whole")
    if problem is None:
        check()
        return
    with pytest.raises(CheckFailed) as caught:
        check()
    assert problem in caught.value.found
