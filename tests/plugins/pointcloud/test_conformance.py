import pytest

from maemm.testing import checks_of, parametrize_with_checks, run_checks
from maemm.testing.suite import result_of
from maemm_plugins.pointcloud import plugin

TINY = {"groups": 16, "group_size": 8, "points": 48, "width": 64}
HEAD = {"heads.point_parts": {"classes": 3, "categories": 0, "layers": [0]}}


@parametrize_with_checks(plugin, options={"pointcloud": TINY, **HEAD})
def test_conformance(check):
    check()


OTHERS = {
    "sincos": {"position": "sincos"},
    "features": {"features": 3, "normals": True, "loss": "cdl1", "stats": "visible", "skip_origin": True},
}
PCP = {("one_batch_is_learned", "encoder 'pcp'")}
MAY_FAIL = {  # 50 steps are few for these; whether they are enough depends on the first parameters
    "sincos": PCP | {("one_batch_is_learned", "modality 'pointcloud'")},  # codes of near centres are near to each other
    "features": PCP,
}
# With sin-cos codes only classifiers have this layout, whose weights do not record the number of groups.
GROUPS = {"weights.pointmae": {"groups": 64}}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_conformance_of_other_options(name):
    results = run_checks(plugin, {"pointcloud": {**TINY, **OTHERS[name]}, **HEAD, **GROUPS})
    failed = {(one.check, one.part): one.message for one in results if not one.passed}
    assert failed.keys() <= MAY_FAIL[name], failed


def test_losses_and_pictures_with_features_that_are_not_predicted():
    names = ("baseline_is_a_loss", "denormalize_target_is_the_inverse", "pictures_are_written")
    checks = [one for one in checks_of(plugin, {"pointcloud": {**TINY, **OTHERS["features"]}}) if one.name in names]
    assert [one.message for one in map(result_of, checks) if not one.passed] == []
    assert {one.name for one in checks} == set(names)
