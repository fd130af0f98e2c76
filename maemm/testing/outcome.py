"""Outcomes of a check."""

from __future__ import annotations

import unittest
from dataclasses import dataclass

ALL = "plugin"  # the pseudo role of checks that look at the plugin as a whole


class CheckFailed(AssertionError):
    """A rule is broken; the text says which, what was received and expected, and what to change (``change``).

    ``found`` is the text without the names of the part and without the change.
    """

    def __init__(self, where: str, found: str, change: str):
        super().__init__(f"{where}: {found}; {change}")
        self.found, self.change = found, change


class DoesNotApply(unittest.SkipTest):
    """The rule does not apply to this part; pytest shows the check as skipped."""


class NotUsed(DoesNotApply):
    """The part uses nothing of what the rule is about, such as phases; there is nothing to do."""


class Skipped(DoesNotApply):
    """A check that this one depends on failed, ``failure``: its id."""

    def __init__(self, failure: str):
        super().__init__(f"it depends on {failure}, which failed")
        self.failure = failure


@dataclass(frozen=True)
class Result:
    """The outcome of one check on one part."""

    check: str
    plugin: str
    part: str  # "modality 'sonar'"; "" where the plugin as a whole is checked
    passed: bool
    message: str = ""  # why it failed, was skipped or does not apply
    applies: bool = True
    used: bool = True  # False: the part uses nothing of what the rule is about, so that it does not apply
    skipped_for: str = ""  # the id of the failed check that this one depends on: it did not run, and has not passed
    deviates: str = ""  # why the part breaks the rule by design, from the manifest; such a check counts as passed
    rule: str = ""  # the sentence of the contract that is checked
    found: str = ""  # what is wrong, if it failed: ``message`` without names and without ``change``
    change: str = ""  # what to change, if it failed

    @property
    def outcome(self) -> str:
        """passed, failed, skipped, not applicable, or by design."""
        if self.skipped_for:
            return "skipped"
        if not self.applies:
            return "not applicable"
        if self.deviates:
            return "by design"
        return "passed" if self.passed else "failed"
