from maemm.testing import parametrize_with_checks
from maemm_plugins.video import plugin

OPTIONS = {"video": {"size": [4, 16, 16], "patch": [2, 8, 8], "stride": 1}}


@parametrize_with_checks(plugin, expected_failures={}, options=OPTIONS)
def test_conformance(check):
    check()
