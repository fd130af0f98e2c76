"""All checks by name, {name: (roles, rule)}; importing the modules below registers them."""

from maemm.testing import (
    checks_baseline,
    checks_gaps,
    checks_learners,
    checks_manifest,
    checks_model,
    checks_padding,
    checks_plans,
    checks_recipes,
    checks_rows,
    checks_shapes,
    checks_signal,
    checks_sources,
    checks_steps,
    checks_tokens,
    checks_training,
)
from maemm.testing.case import CHECKS

__all__ = [
    "CHECKS",
    "checks_baseline",
    "checks_gaps",
    "checks_learners",
    "checks_manifest",
    "checks_model",
    "checks_padding",
    "checks_plans",
    "checks_recipes",
    "checks_rows",
    "checks_shapes",
    "checks_signal",
    "checks_sources",
    "checks_steps",
    "checks_tokens",
    "checks_training",
]
