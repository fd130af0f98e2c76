"""The public conformance suite: the rules of the contract, checked for each part of a plugin on a tiny CPU model.

With pytest::

    from maemm.testing import parametrize_with_checks
    from maemm_sonar import plugin

    @parametrize_with_checks(plugin, expected_failures={})
    def test_conformance(check):
        check()

Without pytest: ``run_checks(plugin)``. Importing this module imports neither torch nor pytest.
"""

from maemm.testing.outcome import CheckFailed, DoesNotApply, Result
from maemm.testing.suite import Check, checks_of, parametrize_with_checks, run_checks

__all__ = ["Check", "CheckFailed", "DoesNotApply", "Result", "checks_of", "parametrize_with_checks", "run_checks"]
