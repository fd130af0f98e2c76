"""``maemm parity``: a change that only changes the speed, and faults that it must notice."""

import json

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import maemm
from maemm.contract.errors import MaemmError
from maemm.contract.positions import SinCos
from maemm.tasks.parity.comparison import Comparison, Gradient

RECIPE = "image/mae_tiny_cpu"
SMALL = {"train.batch": 8, "data.workers": 0, "encoder.depth": 2}
QUICK = {"steps": 10, "seeds": 2, **SMALL}


@pytest.fixture
def traced(monkeypatch):
    """Blocks are traced and differentiated, but not compiled to machine code, which takes a minute."""
    torch._dynamo.reset()
    compile_ = torch.compile
    backend = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, **options, backend=backend))
    yield backend
    torch._dynamo.reset()


def drop_positions(monkeypatch):
    """A compiler that loses the position tables."""

    def compile_(forward, **_):
        def without_positions(*args, **options):
            own = SinCos.forward
            SinCos.forward = lambda *args: torch.zeros_like(own(*args))
            try:
                return forward(*args, **options)
            finally:
                SinCos.forward = own

        return without_positions

    monkeypatch.setattr(torch, "compile", compile_)


def test_compiled_blocks_learn_alike(traced):
    comparison = maemm.parity(RECIPE, **QUICK)
    assert comparison.alike and traced.frame_count == 2
    assert comparison.plain == comparison.changed and len(comparison.plain) == 10
    assert comparison.noise > 0 and comparison.seeds[0] != comparison.plain
    assert "alike, as far as this can see" in str(comparison)


def test_a_dropped_position_table_is_noticed(monkeypatch):
    drop_positions(monkeypatch)
    comparison = maemm.parity(RECIPE, {"train.compile": True}, **QUICK)
    assert not comparison.gradients_alike and not comparison.alike and "NOT alike" in str(comparison)


def test_half_precision_is_measured_from_fp32():
    comparison = maemm.parity(RECIPE, {"train.activation_checkpointing": True}, **QUICK, **{"train.precision": "bf16"})
    assert comparison.alike and comparison.precision == "bf16" and comparison.worst.plain > 1e-4


def test_the_command(capsys, tmp_path, monkeypatch):
    from maemm.__main__ import main

    monkeypatch.chdir(tmp_path)
    words = [f"{key}={value}" for key, value in SMALL.items()]
    common = ["parity", RECIPE, *words, "--steps", "10", "--seeds", "2"]
    assert main([*common, "--change", "train.activation_checkpointing=true", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["alike"] and record["loss"]["plain"] == record["loss"]["changed"]
    assert main([*common, "--change", "encoder.eps=0.1"]) == 1
    assert "DIFFER" in capsys.readouterr().out
    assert [*tmp_path.iterdir()] in ([], [tmp_path / "runs"])  # the sample set, as for every verb
    assert {path.name for path in tmp_path.glob("runs/*")} <= {"samples"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"steps": 9}, "9 steps and 3 seeds tell nothing"),
        ({"seeds": 1}, "1 seeds tell nothing"),
        ({"change": {}}, "nothing is changed"),
        ({"change": {"train.compiled": True}}, "compiled"),
        ({"change": {"train.batch": 8}}, "given the same batches.*train.batch"),
        ({"change": {"modalities.image.flip": False}}, "given the same batches.*flip"),
    ],
)
def test_mistakes(options, text):
    with pytest.raises(MaemmError, match=text):
        maemm.parity(RECIPE, **options)


def comparison(plain, changed, seeds, gradients=((0.0, 0.0),)):
    rows = [Gradient(f"p{number}", *errors) for number, errors in enumerate(gradients)]
    return Comparison("x", {}, "fp32", rows, plain, changed, seeds)


def test_what_counts_as_alike():
    plain, seeds = [1.0] * 9, [[1.01] * 9, [0.99] * 9]  # std 0.01
    assert comparison(plain, [1.015] * 9, seeds).alike
    assert not comparison(plain, [1.03] * 9, seeds).losses_alike
    assert not comparison(plain, [torch.nan] * 9, seeds).alike
    assert comparison(plain, plain, seeds, [(0.01, 0.019), (0.0, 9e-5)]).alike
    assert comparison(plain, plain, seeds, [(0.01, 0.019), (0.0, 2e-4)]).worst.parameter == "p1"
    assert not comparison(plain, plain, seeds, [(0.0, torch.nan), (0.0, 0.0)]).gradients_alike


@pytest.mark.slow  # a real compiler, and 300 steps
def test_300_steps_compiled_on_a_cpu():
    comparison = maemm.parity(RECIPE, **SMALL)
    assert comparison.alike and comparison.worst.changed < 1e-4


@pytest.mark.slow
def test_300_steps_without_positions(monkeypatch):
    drop_positions(monkeypatch)
    comparison = maemm.parity(RECIPE, {"train.compile": True}, **SMALL)
    assert not comparison.gradients_alike and not comparison.losses_alike
