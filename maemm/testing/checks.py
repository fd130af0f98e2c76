"""All checks by name, gathered from the files that hold them: {name: (roles, rule)}."""

from maemm.testing import (
    checks_manifest,
    checks_model,
    checks_recipes,
    checks_rows,
    checks_signal,
    checks_sources,
    checks_steps,
    checks_tokens,
    checks_training,
)
from maemm.testing.case import CHECKS

__all__ = [
    "CHECKS",
    "checks_manifest",
    "checks_model",
    "checks_recipes",
    "checks_rows",
    "checks_signal",
    "checks_sources",
    "checks_steps",
    "checks_tokens",
    "checks_training",
]
