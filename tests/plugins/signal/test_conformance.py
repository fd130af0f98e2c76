import pytest

from maemm.testing import DoesNotApply, checks_of, parametrize_with_checks
from maemm_plugins.signal import plugin

SIZES = {"size": 32, "patch": 4, "channels": ["x", "y", "z"]}


@parametrize_with_checks(plugin)
def test_conformance(check):
    check()


@pytest.mark.parametrize("more", [{"tokens": "time"}, {"position": "learned", "normalize": "none"}], ids=str)
def test_conformance_of_other_options(more):
    done = 0
    for check in checks_of(plugin, {"signal": SIZES | more}):
        if check.role == "modalities":
            try:
                check()
                done += 1
            except DoesNotApply:
                continue
    assert done > 20
