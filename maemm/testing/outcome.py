"""Outcomes of a check."""

from __future__ import annotations

import unittest
from dataclasses import dataclass

ALL = "plugin"  # the pseudo role of checks that look at the manifest as a whole


class CheckFailed(AssertionError):
    """A rule is broken; the text says which, what was received and expected, and what to change (``change``)."""

    def __init__(self, problem: str, change: str):
        super().__init__(f"{problem}; {change}")
        self.change = change


class DoesNotApply(unittest.SkipTest):
    """The rule does not apply to this part; pytest shows the check as skipped."""


@dataclass(frozen=True)
class Result:
    """The outcome of one check on one part."""

    check: str
    plugin: str
    part: str  # "modality 'sonar'"; "" where the manifest as a whole is checked
    passed: bool
    message: str = ""  # why it failed, or why it does not apply
    applies: bool = True
    deviates: str = ""  # why the part breaks the rule by design, from the manifest; such a check counts as passed
    rule: str = ""  # the sentence of the contract that is checked
    change: str = ""  # what to change, if it failed
