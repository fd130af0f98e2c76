from maemm.testing import parametrize_with_checks
from maemm_plugins.image import plugin


@parametrize_with_checks(plugin, expected_failures={}, options={"image": {"size": 16, "patch": 4}})
def test_conformance(check):
    check()
