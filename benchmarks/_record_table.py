"""Two records of checkouts side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Table:
    """Rows of a comparison; ``failed`` where something differs that must not."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, str]] = []
        self.details: list[str] = []
        self.failed = False

    def head(self, title: str) -> None:
        self.rows.append((title, "", "", ""))

    def same(self, title: str, before: Any, after: Any, sizes: tuple[str, str], details: list[str]) -> None:
        """A row of what must be equal."""
        equal = before == after
        self.failed |= not equal
        self.rows.append((f"  {title}", *sizes, "equal" if equal else "DIFFERS"))
        self.details += [] if equal else [f"{title}: {text}" for text in details]

    def show(self, title: str, before: Any, after: Any) -> None:
        """A row of what may change."""
        change = ""
        if isinstance(before, int | float) and isinstance(after, int | float):
            change = "equal" if before == after else f"{after - before:+g}"
        self.rows.append((f"  {title}", _shown(before), _shown(after), change))

    def __str__(self) -> str:
        rows = [("", "before", "after", ""), *self.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        table = [
            f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip() for row in rows
        ]
        return "\n".join([*table, *(["", "What differs:"] if self.details else []), *self.details])


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """The same with names replaced where they are a word of a key or a whole text."""
    if isinstance(value, Mapping):
        return {
            " ".join(names.get(word, word) for word in key.split(" ")): renamed(inner, names)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [renamed(inner, names) for inner in value]
    return names.get(value, value) if isinstance(value, str) else value


def compare(before: Mapping[str, Any], after: Mapping[str, Any], names: Mapping[str, str]) -> Table:
    """Everything side by side."""
    table = Table()
    _compare_runs(table, before.get("runs"), after.get("runs"))
    _compare_keys(table, before["random keys"], after["random keys"])
    table.head("lists")
    _compare_lists(table, *(renamed(_lists(state), names) for state in (before, after)))
    table.head("texts")
    changed = [
        name
        for name, verb in before["verbs"].items()
        if name in after["verbs"] and verb["help"] != after["verbs"][name]["help"]
    ]
    table.show("help texts that changed", None, f"{len(changed)} of {len(before['verbs'])}")
    for section in ("imports", "sizes"):
        table.head(section)
        old, new = dict(_counts(before[section])), dict(_counts(after[section]))
        titles = dict.fromkeys((*old, *new))
        quiet = [title for title in titles if "/" in title and old.get(title) == new.get(title)]
        for title in titles:
            if title not in quiet:
                table.show(title, old.get(title), new.get(title))
        if quiet:
            table.rows.append((f"  {len(quiet)} more of single folders", "", "", "equal"))
    table.show("CPU seconds of the tests", *(state.get("CPU seconds of the tests") for state in (before, after)))
    for key in ("machine", "python", "torch"):
        if before["about"][key] != after["about"][key]:
            table.details.append(f"made with another {key}: {before['about'][key]}, {after['about'][key]}")
    return table


def _compare_runs(table: Table, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> None:
    table.head("runs")
    if before is None or after is None:
        table.rows.append(("  not recorded in both", "", "", ""))
        return
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name, {"error": "no such run"}), after.get(name, {"error": "no such run"})
        last = tuple(f"{run['series']['loss'][-1]:.9g}" if "series" in run else "failed" for run in (old, new))
        table.same(name, old, new, (last[0], last[1]), list(_run_details(old, new)))
        if "error" in old:
            table.failed = True


def _run_details(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    if "error" in old or "error" in new:
        yield f"{old.get('error', 'went well')} / {new.get('error', 'went well')}"
        return
    for key in dict.fromkeys((*old["series"], *new["series"])):
        first, second = old["series"].get(key, []), new["series"].get(key, [])
        if len(first) != len(second):
            yield f"{key} has {len(first)} and {len(second)} values"
        elif first != second:
            pairs = [(a, b) for a, b in zip(first, second, strict=True) if None not in (a, b)]
            worst = max((abs(a - b) / max(abs(a), abs(b), 1e-300) for a, b in pairs), default=float("nan"))
            place = next(row for row, pair in enumerate(zip(first, second, strict=True), 1) if pair[0] != pair[1])
            yield f"{key} differs from row {place} on, by {worst:.1e} of its size at most"
    for key in ("tensors", "tensor_names", "tensor_values"):
        if old[key] != new[key]:
            yield f"{key}: {old[key]} / {new[key]}"


def _compare_keys(table: Table, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """The texts must be the same; how often each is written may change where code is joined."""
    table.head("texts in random keys")
    for kind in dict.fromkeys((*before, *after)):
        old, new = before.get(kind, {}), after.get(kind, {})
        details = _difference(old, new)
        table.same(kind, set(old), set(new), (f"{len(old)}", f"{len(new)}"), details)
        table.show("  written how often", sum(old.values()), sum(new.values()))


def in_full(recipes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What :func:`shortened` was given."""
    return {name: {**recipes["usual"], **own} for name, own in recipes["own"].items()}


def _lists(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{title: {entry: what belongs to it}}."""
    plugins = record["parts"]
    roles = sorted({role for brings in plugins.values() for role in brings})
    entries = {
        role: {
            f"{plugin} {name}": options
            for plugin, brings in plugins.items()
            for name, options in brings.get(role, {}).items()
        }
        for role in roles
    }
    return {
        "public names": dict.fromkeys(record["public names"]),
        "verbs and flags": {name: [verb["words"], *verb["flags"]] for name, verb in record["verbs"].items()},
        "recipes": in_full(record["recipes"]),
        "plugins": dict.fromkeys(plugins),
        "roles": dict.fromkeys(roles),
        "weights kinds": dict.fromkeys(record["weights kinds"]),
        **entries,
    }


def _compare_lists(table: Table, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for title in dict.fromkeys((*before, *after)):
        old, new = before.get(title, {}), after.get(title, {})
        table.same(title, old, new, (f"{len(old)}", f"{len(new)}"), _difference(old, new))


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    rows = [f"gone: {name}" for name in old if name not in new] + [f"new: {name}" for name in new if name not in old]
    for name in old:
        if name in new and old[name] != new[name]:
            rows.append(f"{name}: {_changes(old[name], new[name])}")
    return rows


def _changes(old: Any, new: Any) -> str:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [key for key in dict.fromkeys((*old, *new)) if old.get(key, "none") != new.get(key, "none")]
        return "; ".join(f"{key} {old.get(key, 'none')!r} -> {new.get(key, 'none')!r}" for key in keys)[:400]
    if isinstance(old, list) and isinstance(new, list):
        return f"gone {[v for v in old if v not in new]}, new {[v for v in new if v not in old]}"
    return f"{old!r} -> {new!r}"[:400]


def _counts(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _counts(value, f"{above}{key}: ")
        elif isinstance(value, int | float):
            yield f"{above}{key}", value
