from maemm.testing import parametrize_with_checks
from maemm_plugins.multimae import plugin


@parametrize_with_checks(plugin, expected_failures={})
def test_conformance(check):
    check()
