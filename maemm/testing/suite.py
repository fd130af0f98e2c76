"""Which checks run on which part of a plugin, with pytest or without. Imports no torch until checks are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
        """The sentence of the contract that is checked."""
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
                place = ", ".join(filter(None, (f"plugin {self.plugin.name!r}", self.where)))
                raise CheckFailed(
                    f"{place}: {self.name}: {self.promise} Received {type(error).__name__}: {text}; expected no error",
                    "change the code that raised it, or give the options of the part, or declare the check expected",
                ) from error


def checks_of(plugin: Plugin, options: Options | None = None, package: str | None = None) -> list[Check]:
    """All checks that concern a plugin, part by part.

    ``options``: constructor options by modality name, or by "role.name" for other parts; ``package``: the import
    name of the manifest's package, where the plugin is not one that ``maemm plugins`` finds.
    Raises :class:`MaemmError` for a plugin that is not found and for options of a part that it does not bring.
    """
    from maemm.testing.checks import CHECKS

    package = package or _package_of(plugin)
    parts = [(ALL, plugin.name), *((role, name) for role, name, _ in plugin.parts())]
    known = [name if role == "modalities" else f"{role}.{name}" for role, name in parts[1:]]
    for key in options or {}:
        if key not in known:
            raise MaemmError(
                f"options are given for {key!r}, which {plugin.name!r} does not bring; {advice(key, known)}"
            )
    return [
        Check(name, rule, plugin, package, role, part, options or {})
        for role, part in parts
        for name, (roles, rule) in CHECKS.items()
        if role in roles
    ]


def _package_of(plugin: Plugin) -> str:
    for one in registry.all():
        if one.plugin == plugin:
            return one.package
    raise MaemmError(
        f"plugin {plugin.name!r} is not among those found; install it, add its folder with --plugin, "
        "or give package= the import name of its manifest's package"
    )


def run_checks(plugin: Plugin, options: Options | None = None, package: str | None = None) -> list[Result]:
    """Run all checks without pytest; never raises for what a plugin does wrong."""
    return [result_of(check) for check in checks_of(plugin, options, package)]


def result_of(check: Check) -> Result:
    """Run one check. A deviation that the manifest declares must be one: where the rule is kept, the check fails."""
    reason = check.plugin.deviations.get(check.id)
    about = {"check": check.name, "plugin": check.plugin.name, "part": check.where, "rule": check.promise}
    try:
        check()
    except DoesNotApply as reason:
        return Result(**about, passed=True, applies=False, message=f"does not apply: {reason}")
    except CheckFailed as failure:
        if reason is not None:
            return Result(**about, passed=True, deviates=reason)
        return Result(**about, passed=False, message=str(failure), change=failure.change)
    if reason is not None:
        return Result(**about, passed=False, message="declared as a deviation, but kept", change="delete it there")
    return Result(**about, passed=True)


def parametrize_with_checks(
    plugin: Plugin,
    expected_failures: Mapping[str, str] | None = None,
    options: Options | None = None,
    package: str | None = None,
) -> Callable[[Any], Any]:
    """A pytest decorator: one test per check and part.

    ``expected_failures``: {"check" or "check[part]": reason}; such a check must fail, one that passes is an error.
    The deviations of the manifest are among them.
    Raises :class:`MaemmError` for an unknown name there. See :func:`checks_of` for the rest.
    """
    import pytest

    checks, expected = checks_of(plugin, options, package), {**plugin.deviations, **(expected_failures or {})}
    known = sorted({one.name for one in checks} | {one.id for one in checks})
    for name in expected:
        if name not in known:
            raise MaemmError(f"expected_failures names an unknown check {name!r}; {advice(name, known)}")

    def param(check: Check) -> Any:
        reason = expected.get(check.id, expected.get(check.name))
        marks = () if reason is None else (pytest.mark.xfail(reason=reason, strict=True, raises=CheckFailed),)
        label = check.id if check.role in (ALL, "modalities") else f"{check.name}[{check.role}.{check.part}]"
        return pytest.param(check, marks=marks, id=label)

    return pytest.mark.parametrize("check", [param(one) for one in checks])


@contextmanager
def offered(plugin: Plugin, package: str) -> Iterator[None]:
    """While inside, the plugin and the suite's own toy are found by name, also where they are not installed."""
    from maemm.testing.toy import TOY

    named = ((plugin, package), (TOY, "maemm.testing"))
    with registry.with_plugins(*(DiscoveredPlugin(one.name, home, f"checked: {home}", one) for one, home in named)):
        yield
