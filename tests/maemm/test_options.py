"""Options are read from constructors and checked by type hints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from maemm.config.options import check, describe, options_of
from maemm.config.values import plain
from maemm.contract.errors import MaemmError


class Base:
    """A base.

    Options
        size: sides of it, one number
            or one per axis
        eps: small

    This is no option: it stands after the section.
    """

    def __init__(self, dim, *, size: int | tuple[int, int] = 8, eps: float = 1e-6, kind: Literal["a", "b"] = "a"):
        self.options = (size, eps, kind)


class Part(Base):
    """A part.

    Options
    -------
    depth: how deep
    """

    def __init__(
        self, dim, *, depth: int, flag: bool = False, names: list[str] | None = None, eps: float = 0.5, **rest: Any
    ):
        super().__init__(dim, eps=eps, **rest)


class Silent(Base):
    """Inherits the constructor."""


class Odd:
    def __init__(self, *, copy: int = 1, json: str = "", ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5):
        pass


def function(root: str | None, *, resize: int = 4, weights: dict[str, float] | None = None):
    """A function is a part too."""


def wrong(part, **options):
    with pytest.raises(MaemmError) as caught:
        check(part, options, "here")
    return str(caught.value).splitlines()


def test_rest_hands_on_to_the_base():
    assert list(options_of(Part)) == ["depth", "flag", "names", "eps", "size", "kind"]
    assert list(options_of(Silent)) == ["size", "eps", "kind"]
    assert list(options_of(function)) == ["resize", "weights"]


def test_describe_gives_type_default_and_text():
    shown = {one.name: (one.type, one.shown_default, one.doc) for one in describe(Part)}
    assert shown["depth"] == ("int", "required", "how deep")
    assert shown["size"] == ("int | [int, int]", "8", "sides of it, one number or one per axis")
    assert shown["names"] == ("[str, ...] | null", "null", "")
    assert shown["eps"] == ("float", "0.5", "small")
    assert shown["kind"] == ("'a' | 'b'", "a", "")
    assert {one.name: one.type for one in describe(function)}["weights"] == "{str: float} | null"


def test_good_values_come_back_in_the_hinted_types():
    found = check(Part, {"depth": 2, "size": [3, 4], "eps": 1, "flag": True, "names": ["x"]}, "here")
    assert found == {"depth": 2, "size": (3, 4), "eps": 1.0, "flag": True, "names": ["x"]}
    assert isinstance(found["eps"], float) and isinstance(found["size"], tuple)
    assert Part(1, **found).options == ((3, 4), 1.0, "a")
    assert check(Part, {"depth": 2, "size": (3, 4)}, "here")["size"] == (3, 4)
    assert check(Odd, {"copy": 3, "json": "x"}, "here") == {"copy": 3, "json": "x"}  # names that pydantic uses itself


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"depth": True}, "here.depth must be int, got true"),
        ({"depth": "3"}, "here.depth must be int, got '3'"),
        ({"depth": 3.0}, "here.depth must be int, got 3.0"),
        ({"depth": None}, "here.depth must be int, got null"),
        ({}, "here.depth is missing; add here.depth, int"),
        ({"depth": 1, "eps": "1e-4"}, "here.eps must be float, got '1e-4'; the default is 0.5"),
        ({"depth": 1, "eps": True}, "here.eps must be float, got true; the default is 0.5"),
        ({"depth": 1, "eps": float("nan")}, "here.eps is nan; give a finite number"),
        ({"depth": 1, "flag": 1}, "here.flag must be bool, got 1; the default is false"),
        ({"depth": 1, "flag": "no"}, "here.flag must be bool, got 'no'; the default is false"),
        ({"depth": 1, "size": [1, 2, 3]}, "here.size must be int | [int, int], got [1, 2, 3]; the default is 8"),
        ({"depth": 1, "size": [1, "x"]}, "here.size must be int | [int, int], got [1, 'x']; the default is 8"),
        ({"depth": 1, "kind": "c"}, "here.kind must be 'a' or 'b', got 'c'; the default is 'a'"),
        ({"depth": 1, "names": "x"}, "here.names must be [str, ...] | null, got 'x'; the default is null"),
        ({"depth": 1, "dept": 1}, "unknown key 'here.dept'; did you mean 'here.depth'?"),
        ({"depth": 1, "zzz": 1}, "unknown key 'here.zzz'; known: depth, eps, flag, kind, names, size"),
        ({"depth": 1, "names": [object()]}, "here.names is a object; recipes hold"),
        ({"depth": 1, "names": {1: 2}}, "here.names has the key 1; keys are texts, put it in quotes"),
    ],
)
def test_each_mistake_is_one_line(options, line):
    lines = wrong(Part, **options)
    assert len(lines) == 1 and lines[0].startswith(line)


def test_all_mistakes_are_told_at_once():
    assert len(wrong(Part, flag=1, siz=2, eps="x")) == 4


def test_constraints_and_long_values():
    assert wrong(Odd, ratio=1.0) == ["here.ratio must be 0 <= float < 1, got 1.0; the default is 0.5"]
    assert len(wrong(Odd, copy="x" * 10_000)[0]) < 150
    assert len(wrong(Odd, copy=[[0] * 300] * 300)[0]) < 150


def test_a_part_with_unreadable_hints_is_the_plugins_mistake():
    class Bad:
        def __init__(self, *, size: Nowhere = 1):  # noqa: F821
            pass

    with pytest.raises(MaemmError, match=r"type hint of .*Bad cannot be resolved .*; fix the plugin"):
        check(Bad, {}, "here")


def test_hints_that_are_no_options_may_be_for_type_checkers_alone():
    def opener(root: Nowhere, *, size: int = 1) -> Nowhere:  # noqa: F821
        pass

    assert check(opener, {"size": 2}, "here") == {"size": 2}


def test_plain_values():
    assert plain({"a": (1, Path("x") / "y"), "b": None}, "w") == {"a": [1, str(Path("x", "y"))], "b": None}
    with pytest.raises(MaemmError, match=re.escape("w.a.b is inf")):
        plain({"a": {"b": float("inf")}}, "w")


def test_mistakes_in_a_list_of_mappings_name_the_key():
    from maemm.model.masking.multi_block import MultiBlock

    def message(*generators):
        with pytest.raises(MaemmError) as caught:
            check(MultiBlock, {"generators": list(generators)}, "masking")
        return str(caught.value)

    assert message({}, {"blocks": 0}).startswith("masking.generators.1.blocks must be 1 <= int <= 100, got 0")
    assert message({"scale": [0.5, 0.2]}).startswith("masking.generators.0.scale must be [0 < float")
    assert message({"bloks": 3}).endswith("did you mean 'masking.generators.0.blocks'?")
    assert message(3).startswith("masking.generators must be [{blocks, ")
    two = message({"keep": 0}, {"max_keep": 0}).splitlines()
    assert [line.split()[0] for line in two] == ["masking.generators.0.keep", "masking.generators.1.max_keep"]
    assert "generators.inv_block" in [option.name for option in describe(MultiBlock)]
