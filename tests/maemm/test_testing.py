"""The conformance suite: good plugins pass, and every check catches the plugin that breaks its rule."""

import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from maemm import MaemmError, Plugin, registry
from maemm.testing import CheckFailed, DoesNotApply, checks_of, parametrize_with_checks, run_checks
from maemm.testing.checks import CHECKS
from maemm.testing.suite import result_of
from maemm.testing.toy import SIGNAL, TOY

sys.path.append(str(Path(__file__).parent))  # checks import a plugin's package by name, in new processes too
from broken_plugins.faults import FAULTS as MORE
from broken_plugins.faults import KEPT
from broken_plugins.modalities import MODALITIES
from broken_plugins.parts import BROKEN, PACKAGE
from broken_plugins.sources import SOURCES

HOME = "maemm.testing"  # of the toy plugin

SLOW = ("manifest_is_light", "one_batch_is_learned", "pictures_are_written")  # seconds each
ALONE = ("baseline_is_the_best_constant", "a_short_row_is_the_row_alone")  # nothing else catches their faults
RAISES = {  # their rule: nothing raises
    "float64_works",
    "pictures_are_written",
    "samples_fit_their_modality",
    "model_is_built: Unbuilt",
    "forward_fits: LatentPerSample",
    "nothing_visible_is_legal: NeedsVisible",
}


def test_a_good_plugin_passes_all():
    results = run_checks(TOY, package=HOME)
    assert [one.message for one in results if not one.passed] == []
    assert [one.check for one in results if not one.applies] == ["recipes_are_sound"]  # it brings none
    assert {one.plugin for one in results} == {"conformance"}


def test_the_core_passes_its_own_rules():
    results = run_checks(registry.CORE)
    assert [one.message for one in results if not one.passed] == []
    assert all(one.rule and not one.change for one in results)
    assert {one.part for one in results} >= {"encoder 'vit'", "decoder 'full'", "masking 'random'", "head 'linear'"}


FAULTS = {name: (name, *plugin) for name, plugin in BROKEN.items()}
FAULTS |= {name: (*fault, PACKAGE) for name, fault in MORE.items()}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_check_catches_its_broken_plugin(fault):
    name, plugin, package = FAULTS[fault]
    checks = [one for one in checks_of(plugin, package=package) if one.name == name]
    check = next((one for one in checks if one.part == plugin.name), checks[0])
    try:
        with pytest.raises(CheckFailed) as caught:
            check()
    except DoesNotApply as reason:
        pytest.fail(str(reason))
    text = str(caught.value)
    assert "\n" not in text and plugin.name in text and "expected" in text and "eceived" in text
    assert (fault in RAISES) == (caught.value.__cause__ is not None), text


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_few_checks_and_skips_what_depends_on_it(fault):
    name, plugin, package = FAULTS[fault]
    results = [result_of(check) for check in checks_of(plugin, package=package)]
    failed = [one.check for one in results if one.outcome == "failed"]
    assert name in failed and len(failed) <= (1 if name in ALONE else 3), failed


@pytest.mark.slow
@pytest.mark.parametrize("part", KEPT)
def test_sound_parts_that_are_unlike_the_suites_own_keep_all_rules(part):
    checks = [one for one in checks_of(KEPT[part], package=PACKAGE) if one.role != "plugin"]
    assert [one.message for one in map(result_of, checks) if not one.passed] == []


@pytest.mark.parametrize("part", KEPT)
def test_sound_parts_keep_the_rules_that_look_at_losses_and_gaps(part):
    names = (
        "one_batch_is_learned",
        "missing_values_change_nothing",
        "denormalize_target_is_the_inverse",
        "baseline_is_a_loss",
        "baseline_is_the_best_constant",
        "a_short_row_is_the_row_alone",
        "a_bad_step_moves_nothing",
    )
    checks = [one for one in checks_of(KEPT[part], package=PACKAGE) if one.name in names]
    assert checks and [one.message for one in map(result_of, checks) if not one.passed] == []


def test_a_broken_modality_breaks_little_else():
    """A check that fails for everything would be as idle as one that fails for nothing."""
    for name in ("denormalize_target_is_the_inverse", "plot_works_without_a_screen", "every_parameter_learns"):
        plugin, package = BROKEN[name]
        checks = [one for one in checks_of(plugin, package=package) if one.name not in SLOW]
        assert [one.check for one in map(result_of, checks) if not one.passed] == [name]


def test_nothing_is_left_registered():
    before = registry.names("modalities")
    for check in checks_of(TOY, package=HOME)[:4]:
        check()
    assert registry.names("modalities") == before and SIGNAL not in before


def test_results_name_what_does_not_apply():
    plugin, package = BROKEN["head_answers"]  # no modality: rules of signals are not among its checks
    assert not any(one.role == "modalities" for one in checks_of(plugin, package=package))
    one_way = Plugin(name="one_way", version="1", contract=2, summary="s", modalities={"one_way": "parts:OneWay"})
    silent = ("untokenize_is_the_inverse", "denormalize_target_is_the_inverse", "plot_works_without_a_screen")
    checks = {one.name: one for one in checks_of(one_way, package=PACKAGE)}
    for name in (*silent, "pictures_are_written"):
        result = result_of(checks[name])
        assert result.passed and not result.applies
        assert result.message.startswith("does not apply: untokenize() returns None")
    assert result_of(checks["tokens_agree"]).applies
    with pytest.raises(DoesNotApply):
        checks["untokenize_is_the_inverse"]()


def test_options_reach_the_part():
    def results(size: int):
        checks = checks_of(TOY, {SIGNAL: {"size": size}}, package=HOME)
        return [result_of(one) for one in checks if one.name in ("example_is_repeatable", "names_are_free")]

    assert all(one.passed for one in results(4))
    first, last = results(3)
    assert first.outcome == "failed" and "not a multiple" in first.message and first.change
    assert last.outcome == "skipped" and last.skipped_for == f"example_is_repeatable[{SIGNAL}]"


def test_mistakes_of_the_author_are_named():
    with pytest.raises(MaemmError, match="unknown check 'hidden_tokens_do_not_leek'.*hidden_tokens_do_not_leak"):
        parametrize_with_checks(TOY, {"hidden_tokens_do_not_leek": "?"}, package=HOME)
    with pytest.raises(MaemmError, match="package="):
        run_checks(TOY)
    with pytest.raises(MaemmError, match="has no part"):
        run_checks(TOY, {"sonar": {}}, package=HOME)


def test_expected_failures_are_strict():
    plugin, package = BROKEN["plot_works_without_a_screen"]
    expected = {
        "plot_works_without_a_screen": "known",
        f"tokens_agree[{plugin.name}]": "by part",
    }
    params = parametrize_with_checks(plugin, expected, package=package).args[1]
    marked = {one.values[0].name: one.marks[0] for one in params if one.marks}
    assert set(marked) == {"plot_works_without_a_screen", "tokens_agree"}
    for mark in marked.values():
        assert mark.name == "xfail" and mark.kwargs["strict"] and mark.kwargs["raises"] is CheckFailed
    assert len({one.id for one in params}) == len(params)


def test_deviations_of_the_manifest_are_shown_and_strict():
    plugin, package = BROKEN["plot_works_without_a_screen"]
    broken = f"plot_works_without_a_screen[{plugin.name}]"
    declared = replace(plugin, deviations={broken: "it has no pictures", f"tokens_agree[{plugin.name}]": "never"})
    checks = [one for one in checks_of(declared, package=package) if one.id in declared.deviations]
    found = {one.id: result_of(one) for one in checks}
    assert found[broken].passed and found[broken].deviates == "it has no pictures"
    kept = found[f"tokens_agree[{plugin.name}]"]
    assert not kept.passed and "declared as a deviation, but the rule is kept" in kept.message
    with pytest.raises(MaemmError, match="deviations must be"):
        replace(plugin, deviations={broken: ""})
    with pytest.raises(MaemmError, match="unknown check"):
        parametrize_with_checks(replace(plugin, deviations={"tokens_agre[x]": "typo"}), package=package)


def test_importing_the_suite_is_cheap():
    code = "import sys, maemm.testing; print([m for m in ('torch', 'pytest', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_checks_and_broken_plugins_are_small():
    assert {name for name, *_ in FAULTS.values()} == set(CHECKS) and set(MODALITIES) | set(SOURCES) < set(BROKEN)
    for name, (_, run, needs) in CHECKS.items():
        assert len(inspect.getsource(run).splitlines()) < 42 and run.__doc__ and set(needs) < set(CHECKS), name
    suite, broken = Path(inspect.getfile(parametrize_with_checks)).parent, Path(__file__).parent / "broken_plugins"
    for file in (*suite.glob("*.py"), *broken.glob("*.py")):
        assert len(file.read_text().splitlines()) < 300, file
