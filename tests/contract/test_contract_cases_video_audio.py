"""The contract carries clips and spectrograms: two throw-away plugins reproduce published outputs.

No bundled plugin is in sight of these tests, and these plugins are in sight of no other test.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch

import maemm
import maemm_plugins
from maemm import plugins

HERE = Path(__file__).parent
CASES = {c["id"].rpartition("/")[2]: c for c in json.loads((HERE / "cases_video_audio.json").read_text())}


def load_module(path):
    spec = importlib.util.spec_from_file_location(f"contract_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = load_module(HERE.parent / "test_golden.py")


@pytest.fixture(autouse=True)
def only_these_plugins(monkeypatch, tmp_path):
    monkeypatch.setattr(maemm_plugins, "__path__", [str(tmp_path)])
    monkeypatch.setenv(
        "MAEMM_PLUGIN_PATH", os.pathsep.join(str(HERE / f"{name}_plugin") for name in ("video", "audio"))
    )
    plugins.forget()
    yield
    plugins.forget()


def case_of(name):
    """The case with the true place of its file: the larger ones are not kept here."""
    case = CASES[name]
    for folder in (golden.HERE, golden.SHARED):
        if (folder / case["file"]).is_file():
            return {**case, "file": str(folder / case["file"])}
    pytest.skip(f"{case['file']} is not here")


def loaded(name):
    """(model, batch, plans, stored tensors) of a case."""
    case = case_of(name)
    data, key = golden.tensors_of(case), case["batch_key"]
    model = maemm.load(golden.state_of(case), kind=case["kind"], **case["load_args"])
    return model, {key: data["x"]}, {key: maemm.Plan(data["visible"], data["predict"])}, data


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    golden.test_case(case_of(name))


@pytest.mark.parametrize("name", CASES)
def test_gradients(name):
    model, batch, plans, data = loaded(name)
    model(batch, plans=plans).total.backward()
    for parameter in model.parameters():
        parameter.data = parameter.grad
    written = plugins.find("weights", model.kind)().write(model, model.extras)
    # tau is stored as a logarithm here, so that its gradient is not a renamed one.
    wanted = {k.removeprefix("grad/"): v for k, v in data.items() if k.startswith("grad/") and not k.endswith("tau")}
    assert len(wanted) >= 3
    for key, value in wanted.items():
        torch.testing.assert_close(
            written[key], value, atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("name", CASES)
def test_the_way_back(name):
    state = golden.state_of(case_of(name))
    model = loaded(name)[0]
    written = plugins.find("weights", model.kind)().write(model, model.extras)
    assert written.keys() == state.keys()
    for key, value in state.items():
        assert torch.allclose(written[key], value, rtol=1e-6 if key.endswith("tau") else 0, atol=0), key


def test_which_tokens_are_decoded_is_part_of_the_model():
    """VideoMAE v2's weights without its decoder mask: all hidden tokens are predicted, from the same visible ones."""
    model, batch, plans, data = loaded("videomae_v2_tiny")
    hidden = data["mask"].nonzero()[:, 1].reshape(len(data["mask"]), -1)
    out = model(batch, plans={"video": maemm.Plan(plans["video"].visible, hidden)})
    assert (out.pred["video"] - data["pred_without_decode_mask"]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_two_plans_of_one_sample(name):
    """Plan rows that share a sample give what each gives alone: positions, targets and lattices follow the rows."""
    model, batch, plans, data = loaded(name)
    ((key, plan),) = plans.items()
    rows = torch.tensor([1, 0, 1])
    several = maemm.Plan(plan.visible[rows], plan.predict[rows], rows=rows)
    with torch.no_grad():
        out = model(batch, plans={key: several})
    for found, expected in ((out.pred, "pred"), (out.target, "target")):
        assert (found[key] - data[expected][rows]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_restored_targets_are_the_signal(name):
    """``restore`` undoes ``target``, and ``untokenize`` puts it where it was; unpredicted frames are not compared."""
    model, batch, plans, _ = loaded(name)
    ((key, plan),) = plans.items()
    modality = model.modalities[key]
    tokens = modality.tokenize(maemm.contract.Prepared(batch[key]))
    values = modality.restore(modality.target(tokens, plan.predict), tokens, plan.predict)
    assert values.shape == tokens.take(plan.predict).shape
    signal = modality.untokenize(values, tokens, plan.predict)
    known = ~signal.isnan()
    assert known.float().mean() == plan.predict.shape[1] / tokens.count
    if name != "mae_st_tiny":
        assert (signal - batch[key])[known].abs().max() <= 1e-4
