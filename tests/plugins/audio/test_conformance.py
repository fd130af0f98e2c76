from maemm.testing import parametrize_with_checks
from maemm_plugins.audio import plugin

SMALL = {"audio": {"size": [24, 16], "patch": 4}, "decoders.window": {"bias_hidden": 16}}


@parametrize_with_checks(plugin, expected_failures={}, options=SMALL)
def test_conformance(check):
    check()
