"""Which checks run on which part of a plugin, in which order, with pytest or without.

Imports torch only once checks are listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from maemm import registry
from maemm.contract.errors import MaemmError, NotInstalled, advice
from maemm.registry import SINGULAR, DiscoveredPlugin, Plugin
from maemm.testing.outcome import ALL, CheckFailed, DoesNotApply, NotUsed, Result, Skipped

if TYPE_CHECKING:
    from maemm.testing.case import Rule

Options = Mapping[str, Mapping[str, Any]]
Key = tuple[str, str, str]  # role, part, check


@dataclass(frozen=True)
class Check:
    """One rule on one part; call it.

    Raises :class:`CheckFailed`, or :class:`DoesNotApply`, and of that :class:`Skipped` where a check that it depends on
    failed. Those run first, each once for all checks of one list.
    """

    name: str
    rule: Rule
    plugin: Plugin
    package: str
    role: str
    part: str
    options: Options
    needs: tuple[Check, ...] = ()  # what must hold for this check to say anything
    expected: Mapping[str, str] = field(default_factory=dict)  # checks, by name or id, whose failure stops no other
    failures: dict[Key, bool] = field(default_factory=dict, repr=False, compare=False)  # shared by all of one list

    @property
    def where(self) -> str:
        return "" if self.role == ALL else f"{SINGULAR[self.role]} {self.part!r}"

    @property
    def promise(self) -> str:
        """The rule in words: the check's docstring."""
        return " ".join((self.rule.run.__doc__ or "").split())

    @property
    def id(self) -> str:
        """The name that pytest shows: ``no_leak[sonar]``."""
        return f"{self.name}[{self.part}]"

    @property
    def key(self) -> Key:
        return (self.role, self.part, self.name)

    def depends_on(self, other: Check) -> bool:
        """Whether a failure of ``other`` skips this check."""
        return any(need.key == other.key or need.depends_on(other) for need in self.needs)

    def __call__(self) -> None:
        failure = self._failed_need()
        if failure is not None:
            raise Skipped(failure.id)
        self.failures[self.key] = False
        try:
            self._run()
        except CheckFailed:
            self.failures[self.key] = True
            raise

    def _failed_need(self) -> Check | None:
        """The first failure that this check depends on, directly or through others."""
        for need in self.needs:
            failure = need._failed_need() or (need if need._fails() else None)
            if failure is not None:
                return failure
        return None

    def _fails(self) -> bool:
        if self.id in self.expected or self.name in self.expected:
            return False
        if self.key not in self.failures:
            with suppress(CheckFailed, DoesNotApply):
                self()
        return self.failures[self.key]

    def _run(self) -> None:
        from maemm.testing.case import Case
        from maemm.testing.places import plugin_line

        with offered(self.plugin, self.package):
            try:
                self.rule.run(Case(self.plugin, self.package, self.role, self.part, self.options))
            except (CheckFailed, DoesNotApply):
                raise
            except NotInstalled as error:
                raise DoesNotApply(str(error)) from None
            except Exception as error:
                where = ", ".join(filter(None, (f"plugin {self.plugin.name!r}", self.where)))
                line = plugin_line(self.package, error)
                place = f" at {line}" if line else ""
                text = " ".join(str(error).split())
                raise CheckFailed(
                    f"{where}: {self.name}",
                    f"received {type(error).__name__}{place}: {text}, expected no error",
                    "fix the code that raised it, give options for the part, or declare the failure as expected",
                ) from error


def checks_of(plugin: Plugin, options: Options | None = None, package: str | None = None) -> list[Check]:
    """All checks that apply to a plugin, part by part, each behind those that it depends on.

    ``options``: constructor options by modality name, or by "role.name" for other parts, beside those of the manifest
    (``check_options``); ``package``: the import name of the manifest's package, for a plugin that ``maemm plugins``
    does not list. Raises :class:`MaemmError` for an unknown plugin and for options of a part that the plugin does not
    have.
    """
    return _checks(plugin, options, package, plugin.deviations)


def _checks(plugin: Plugin, options: Options | None, package: str | None, expected: Mapping[str, str]) -> list[Check]:
    from maemm.testing.checks import CHECKS

    package = package or _package_of(plugin)
    parts = [(role, name) for role, name, _ in plugin.parts()]
    names = [name if role == "modalities" else f"{role}.{name}" for role, name in parts]
    merged = {key: dict(values) for key, values in plugin.check_options.items()}
    for key, values in (options or {}).items():
        merged[key] = {**merged.get(key, {}), **values}
    for key in merged:
        if key not in names:
            raise MaemmError(f"plugin {plugin.name!r} has no part {key!r} to set options for; {advice(key, names)}")
    ordered = _ordered(CHECKS)
    whole = [name for name in ordered if ALL in CHECKS[name].roles]
    keys = [(ALL, plugin.name, name) for name in whole if not CHECKS[name].needs]
    keys += [(role, part, name) for role, part in parts for name in ordered if role in CHECKS[name].roles]
    keys += [(ALL, plugin.name, name) for name in whole if CHECKS[name].needs]  # they need checks of parts
    modality = next(iter(plugin.modalities), None)
    failures: dict[Key, bool] = {}
    made: dict[Key, Check] = {}

    def make(key: Key) -> Check:
        if key not in made:
            role, part, name = key
            needs = tuple(make(need) for need in _needs(CHECKS, key, keys, modality))
            made[key] = Check(name, CHECKS[name], plugin, package, role, part, merged, needs, expected, failures)
        return made[key]

    return [make(key) for key in keys]


def _ordered(rules: Mapping[str, Rule]) -> list[str]:
    """The names of all rules, each behind those that it needs."""
    ordered: dict[str, None] = {}

    def add(name: str) -> None:
        for need in rules[name].needs:
            if need in rules:
                add(need)
        ordered.setdefault(name)

    for name in rules:
        add(name)
    return list(ordered)


def _needs(rules: Mapping[str, Rule], key: Key, keys: Sequence[Key], modality: str | None) -> list[Key]:
    """The checks that one depends on: those of its rule's ``needs`` on the same part, on the modality on which parts of
    other roles are checked, and, for a check of the whole plugin, on all its parts."""
    role, part, name = key
    needs = rules[name].needs
    if role == ALL:
        return [other for other in keys if other[2] in needs]
    return [
        other
        for need in needs
        for other in ((role, part, need), ("modalities", modality or "", need))
        if other in keys and other != key
    ]


def _package_of(plugin: Plugin) -> str:
    for discovered in registry.all_plugins():
        if discovered.plugin == plugin:
            return discovered.package
    raise MaemmError(
        f"plugin {plugin.name!r} is not installed; install it, add its folder with --plugin, "
        "or pass package=, the import name of its manifest's package"
    )


def run_checks(plugin: Plugin, options: Options | None = None, package: str | None = None) -> list[Result]:
    """Run all checks without pytest; a broken rule is a result, never an exception."""
    return [result_of(check) for check in checks_of(plugin, options, package)]


def result_of(check: Check) -> Result:
    """Run one check. A deviation that the manifest declares must be real: where the rule is kept, the check fails."""
    deviation = check.plugin.deviations.get(check.id)
    passed = Result(check.name, check.plugin.name, check.where, passed=True, rule=check.promise)
    try:
        check()
    except Skipped as reason:
        return replace(passed, passed=False, skipped_for=reason.failure, message=f"skipped: {reason}")
    except DoesNotApply as reason:
        used = not isinstance(reason, NotUsed)
        return replace(passed, applies=False, used=used, message=f"does not apply: {reason}")
    except CheckFailed as failure:
        if deviation is not None:
            return replace(passed, deviates=deviation)
        return replace(passed, passed=False, message=str(failure), found=failure.found, change=failure.change)
    if deviation is not None:
        message, change = "declared as a deviation, but the rule is kept", "delete it from the manifest's deviations"
        return replace(passed, passed=False, message=message, found=message, change=change)
    return passed


def parametrize_with_checks(
    plugin: Plugin,
    expected_failures: Mapping[str, str] | None = None,
    options: Options | None = None,
    package: str | None = None,
) -> Callable[[Any], Any]:
    """A pytest decorator: one test per check and part.

    ``expected_failures``: {"check" or "check[part]": reason}, in addition to the manifest's deviations; a check that is
    named there and passes is an error. Raises :class:`MaemmError` for an unknown name. See :func:`checks_of` for the
    rest.
    """
    import pytest

    expected = {**plugin.deviations, **(expected_failures or {})}
    checks = _checks(plugin, options, package, expected)
    names = sorted({check.name for check in checks} | {check.id for check in checks})
    for name in expected:
        if name not in names:
            raise MaemmError(f"expected_failures names an unknown check {name!r}; {advice(name, names)}")

    def param(check: Check) -> Any:
        reason = expected.get(check.id, expected.get(check.name))
        marks = () if reason is None else (pytest.mark.xfail(reason=reason, strict=True, raises=CheckFailed),)
        label = check.id if check.role in (ALL, "modalities") else f"{check.name}[{check.role}.{check.part}]"
        return pytest.param(check, marks=marks, id=label)

    return pytest.mark.parametrize("check", [param(check) for check in checks])


@contextmanager
def offered(plugin: Plugin, package: str) -> Iterator[None]:
    """Within the block, the plugin and the suite's own toy are found by name, even if they are not installed."""
    from maemm.testing.toy import TOY

    with registry.with_plugins(
        DiscoveredPlugin(plugin.name, package, f"checked: {package}", plugin),
        DiscoveredPlugin(TOY.name, "maemm.testing", "checked: maemm.testing", TOY),
    ):
        yield
