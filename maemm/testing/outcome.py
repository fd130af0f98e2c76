"""What can become of a check."""

from __future__ import annotations

import unittest
from dataclasses import dataclass

ALL = "plugin"  # the pseudo role of checks that look at the manifest as a whole


class CheckFailed(AssertionError):
    """A rule is not kept; the text says which, what came, what was expected and, behind ``change``, what to change."""

    def __init__(self, found: str, change: str):
        super().__init__(f"{found}; {change}")
        self.found, self.change = found, change


class DoesNotApply(unittest.SkipTest):
    """The rule says nothing about this part; pytest shows it as skipped."""


@dataclass(frozen=True)
class Result:
    """What became of one check on one part."""

    check: str
    plugin: str
    part: str  # "modality 'sonar'"; "" where the manifest as a whole is checked
    passed: bool
    message: str = ""  # why it failed, or why it does not apply
    applies: bool = True
    deviates: str = ""  # why the rule is not kept by design, as the manifest says; such a check counts as passed
    rule: str = ""  # the sentence of the contract that is checked
    change: str = ""  # what to change where it failed
