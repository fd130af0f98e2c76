"""The toys of what latent targets, budgets, sets of plans, side inputs and phases need keep the rules for them."""

from __future__ import annotations

import pytest

from maemm import registry
from maemm.testing import checks_of
from maemm.testing.suite import result_of

USED = {  # {check: the toys that it is about}; for the others there is nothing to check
    "plan_is_legal": {"toy", "four", "sizes", "budget", "guided"},
    "plan_is_repeatable": {"toy", "four", "sizes", "budget", "guided"},
    "shapes_are_as_many_as_said": {"four", "sizes", "budget", "guided"},
    "budget_is_kept": {"budget"},
    "a_bad_step_moves_nothing": {"average", "levels", "adversary"},
    "teacher_runs_once": {"average", "levels"},
    "phases_are_apart": {"adversary"},
    "side_inputs_are_made": {"columns"},
    "missing_values_change_nothing": {"toy"},
}


def results(*names: str):
    found = registry.get("toy")
    checks = [check for check in checks_of(found.plugin, package=found.package) if check.role != "plugin"]
    return [(check, result_of(check)) for check in checks if not names or check.name in names]


def test_toys_keep_the_rules_that_are_about_them(toys):
    applied: dict[str, set[str]] = {name: set() for name in USED}
    for check, result in results(*USED):
        assert result.passed, result.message
        if result.applies:
            applied[check.name].add(check.part)
    assert applied == USED


@pytest.mark.slow
def test_toys_keep_all_rules(toys):
    assert [result.message for _, result in results() if not result.passed] == []
