"""Which checks run on which part of a plugin, with pytest or without. Imports torch only once checks are listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from maemm import registry
from maemm.contract.errors import MaemmError, advice
from maemm.registry import SINGULAR, DiscoveredPlugin, Plugin
from maemm.testing.outcome import ALL, CheckFailed, DoesNotApply, Result

Options = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Check:
    """One rule on one part; call it. Raises :class:`CheckFailed`, or :class:`DoesNotApply`."""

    name: str
    rule: Callable[[Any], None]
    plugin: Plugin
    package: str
    role: str
    part: str
    options: Options

    @property
    def where(self) -> str:
        return "" if self.role == ALL else f"{SINGULAR[self.role]} {self.part!r}"

    @property
    def promise(self) -> str:
        """The rule in words: the check's docstring."""
        return " ".join((self.rule.__doc__ or "").split())

    @property
    def id(self) -> str:
        """The name that pytest shows: ``no_leak[sonar]``."""
        return f"{self.name}[{self.part}]"

    def __call__(self) -> None:
        from maemm.testing.case import Case

        with offered(self.plugin, self.package):
            try:
                self.rule(Case(self.plugin, self.package, self.role, self.part, self.options))
            except (CheckFailed, DoesNotApply):
                raise
            except Exception as error:
                text = " ".join(str(error).split())
                where = ", ".join(filter(None, (f"plugin {self.plugin.name!r}", self.where)))
                raise CheckFailed(
                    f"{where}: {self.name}: {self.promise} Received {type(error).__name__}: {text}; expected no error",
                    "fix the code that raised it, give options for the part, or declare the failure as expected",
                ) from error


def checks_of(plugin: Plugin, options: Options | None = None, package: str | None = None) -> list[Check]:
    """All checks that apply to a plugin, part by part.

    ``options``: constructor options by modality name, or by "role.name" for other parts; ``package``: the import
    name of the manifest's package, for a plugin that ``maemm plugins`` does not list.
    Raises :class:`MaemmError` for an unknown plugin and for options of a part that the plugin does not have.
    """
    from maemm.testing.checks import CHECKS

    package = package or _package_of(plugin)
    parts = [(ALL, plugin.name), *((role, name) for role, name, _ in plugin.parts())]
    names = [name if role == "modalities" else f"{role}.{name}" for role, name in parts[1:]]
    for key in options or {}:
        if key not in names:
            raise MaemmError(f"plugin {plugin.name!r} has no part {key!r} to set options for; {advice(key, names)}")
    return [
        Check(name, rule, plugin, package, role, part, options or {})
        for role, part in parts
        for name, (roles, rule) in CHECKS.items()
        if role in roles
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
    except DoesNotApply as reason:
        return replace(passed, applies=False, message=f"does not apply: {reason}")
    except CheckFailed as failure:
        if deviation is not None:
            return replace(passed, deviates=deviation)
        return replace(passed, passed=False, message=str(failure), change=failure.change)
    if deviation is not None:
        message, change = "declared as a deviation, but the rule is kept", "delete it from the manifest's deviations"
        return replace(passed, passed=False, message=message, change=change)
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

    checks, expected = checks_of(plugin, options, package), {**plugin.deviations, **(expected_failures or {})}
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
