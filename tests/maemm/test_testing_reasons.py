"""Checks that do not apply say why, and what would make them apply."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from maemm import Plugin
from maemm.testing import checks_of
from maemm.testing.outcome import Result
from maemm.testing.suite import result_of

sys.path.append(str(Path(__file__).parent))  # the package of broken plugins is imported by name
from broken_plugins.baselines import ODD
from broken_plugins.parts import PACKAGE


def result(check: str, role: str, target: str) -> Result:
    name = target.partition(":")[2]
    plugin = Plugin(name=name, version="1", contract=2, summary=name, **{role: {name: target}})
    (only,) = (one for one in checks_of(plugin, package=PACKAGE) if one.name == check)
    return result_of(only)


@pytest.mark.parametrize("loss", ODD)
def test_losses_without_a_best_constant(loss):
    outcome = result("baseline_is_the_best_constant", "modalities", f"baselines:{loss}")
    assert outcome.outcome == "not applicable" and outcome.used and ODD[loss] in outcome.message, outcome.message


def test_numbers_without_bounds_are_told_how_to_get_some():
    outcome = result("bounds_hold", "maskings", "parts:Undocumented")
    assert not outcome.applies and "\n" not in outcome.message
    assert "`ratio: Fraction`" in outcome.message and "`ratio: Annotated[float, Ge(0), Le(1)]`" in outcome.message
