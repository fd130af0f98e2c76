"""The contract carries what is no picture: groups of points, and two modalities with passes of their own.

Published numbers, reached by two throw-away plugins through the comparison of ``tests/test_golden.py``.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import maemm
import maemm_plugins
from maemm import plugins

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("golden_comparison", HERE.parent / "test_golden.py")
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)
golden.HERE = golden.SHARED  # this copy of the module reads the larger files

POINTS = [f"pointmae/pointmae_tiny_{which}" for which in ("train#cdl2", "train#cdl1", "eval#cdl2", "eval#cdl1")]
PAIR = ["cavmae/cavmae_tiny", "cavmae/cavmae_joint2_tiny"]
EMBED = ["pointmae/pointmae_tiny_eval#embed", "cavmae/cavmae_tiny#embed", "cavmae/cavmae_joint2_tiny#embed"]


@pytest.fixture(autouse=True)
def throw_away_plugins(monkeypatch):
    """Found by folder, and forgotten again: other tests must not meet them."""
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.setattr(maemm_plugins, "__path__", list(maemm_plugins.__path__))
    for name in ("points_plugin", "pair_plugin"):
        plugins.add_path(HERE / name)
    plugins.forget()
    yield
    plugins.forget()


@pytest.fixture
def case(request):
    listed = golden.SHARED / "CASES.json"
    if not listed.is_file():
        pytest.skip("the shared golden folder is not here")
    found = next(one for one in json.loads(listed.read_text()) if one["id"] == f"public/{request.param}")
    return {**found, "kind": f"contract_{found['kind']}"}  # a real plugin may claim the plain name


def loaded(case):
    """(model in the case's mode, its data, its state, batch, plans)"""
    data, state = golden.tensors_of(case), golden.state_of(case)
    model = maemm.load(state, kind=case["kind"], **case["load_args"]).train(case["mode"] == "train")
    names = zip(golden.as_list(case["batch_key"]), golden.as_list(case["input"]), strict=True)
    batch = {key: data[name] for key, name in names}
    plans = {key: maemm.Plan(data[v], data[p]) for key, (v, p) in case["plan"].items()}
    return model, data, state, batch, plans


def written(model, case):
    return plugins.find("weights", case["kind"])().write(model, model.extras)


@pytest.mark.parametrize("case", POINTS + PAIR + EMBED, indirect=True)
def test_published_numbers(case):
    golden.test_case(case)


@pytest.mark.parametrize("case", POINTS + PAIR, indirect=True)
def test_published_gradients(case):
    model, data, _, batch, plans = loaded(case)
    model(batch, plans=plans).total.backward()
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    found = written(model, case)
    prefix = f"grad_{case['part']}/" if "part" in case else "grad/"
    wanted = {key.removeprefix(prefix): value for key, value in data.items() if key.startswith(prefix)}
    assert len(wanted) >= 7
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=case["tol"])


@pytest.mark.parametrize("case", POINTS[:1], indirect=True)
def test_batch_statistics_move_as_published(case):
    """Hidden groups count in them, and one forward moves them once."""
    model, data, state, batch, plans = loaded(case)
    model(batch, plans=plans)
    found = written(model, case)
    wanted = {key.removeprefix("after/"): value for key, value in data.items() if key.startswith("after/")}
    assert len(wanted) == 6
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=case["tol"])
        assert not torch.equal(value, state[key])


@pytest.mark.parametrize("case", [POINTS[0], *PAIR], indirect=True)
def test_weights_go_back_exactly(case):
    model, _, state, *_ = loaded(case)
    found = written(model, case)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize("case", [POINTS[2], PAIR[0]], indirect=True)
def test_a_drawn_plan_counts_before_the_forward(case, tmp_path):
    """The model also runs from its recipe: masking, counts from plans alone, our own file."""
    model, data, _, batch, _ = loaded(case)
    rows = len(next(iter(batch.values())))
    inputs = model.plan(batch, maemm.Draw((0, 0), range(rows), rows))
    for name, (visible, predict) in case["plan"].items():
        assert inputs[name].plan.visible.shape == data[visible].shape
        assert inputs[name].plan.predict.shape == data[predict].shape
    out = model(inputs)
    counts = model.counts(inputs)
    assert {name: term.count.item() for name, term in out.parts.items()} == {n: c.item() for n, c in counts.items()}
    maemm.save(model, tmp_path / "model.safetensors")
    assert torch.equal(maemm.load(tmp_path / "model.safetensors")(inputs).total, out.total)


@pytest.mark.parametrize("case", [POINTS[0], PAIR[0]], indirect=True)
def test_a_mutation_is_caught(case, monkeypatch):
    """Swapped encoder blocks must not pass: the comparison above can fail."""
    first = {"contract_pointmae": "MAE_encoder.blocks.blocks.", "contract_cavmae": "blocks_a."}[case["kind"]]
    swap = {f"{first}{i}.": f"{first}{1 - i}." for i in (0, 1)}
    state = golden.state_of(case)
    swapped = {
        next((b + key.removeprefix(a) for a, b in swap.items() if key.startswith(a)), key): value
        for key, value in state.items()
    }
    monkeypatch.setattr(golden, "state_of", lambda _: swapped)
    with pytest.raises(AssertionError, match="off by"):
        golden.test_case(case)
