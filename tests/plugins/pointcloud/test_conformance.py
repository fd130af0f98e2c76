import pytest

from maemm.testing import parametrize_with_checks, run_checks
from maemm_plugins.pointcloud import plugin

TINY = {"groups": 16, "group_size": 8, "points": 48, "width": 64}
HEAD = {"heads.point_parts": {"classes": 3, "categories": 0, "layers": [0]}}
EXPECTED = {
    "one_batch_is_learned[pcp]": "centres must be learned before shapes, which takes more steps; see test_encoder.py",
}


@parametrize_with_checks(plugin, expected_failures=EXPECTED, options={"pointcloud": TINY, **HEAD})
def test_conformance(check):
    check()


OTHERS = {
    "sincos": {"position": "sincos"},
    "features": {"features": 3, "normals": True, "loss": "cdl1", "stats": "visible", "skip_origin": True},
}
PCP = {("one_batch_is_learned", "encoder 'pcp'")}
FAILURES = {
    # Sin-cos codes of centres are near to each other: 50 steps are few to tell them apart.
    "sincos": PCP | {("one_batch_is_learned", "modality 'pointcloud'")},
    # Features are seen but not predicted, and so not restored.
    "features": PCP | {("denormalize_target_is_the_inverse", "modality 'pointcloud'")},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_conformance_of_other_options(name):
    results = run_checks(plugin, {"pointcloud": {**TINY, **OTHERS[name]}, **HEAD})
    failed = {(one.check, one.part): one.message for one in results if not one.passed}
    assert failed.keys() == FAILURES[name], failed
