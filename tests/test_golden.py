"""Every published forward case, through the public API; CASES.json is the list."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import maemm

HERE = Path(__file__).parent / "golden"
CASES = json.loads((HERE / "CASES.json").read_text())


def tensors_of(case, key="file"):
    """Of the file here, of its parts where it is large, or of the shared file."""
    name = Path(case.get(key, case["file"]))
    parts = sorted((HERE / name.parent).glob(f"{name.stem}.part*.safetensors"))
    files = parts or [path for path in (HERE / name, SHARED / name) if path.is_file()][:1]
    if not files:
        pytest.skip(f"{name} is not here")
    return {key: value for file in files for key, value in load_file(file).items()}


def state_of(case):
    loaded = tensors_of(case, "state_file")
    state = {k.removeprefix("state/"): v for k, v in loaded.items() if k.startswith("state/")}
    return {k: v for k, v in state.items() if not k.startswith(tuple(case.get("drop_state", ())) or ("\0",))}


def as_list(value):
    return value if isinstance(value, list) else [value]


def run(case):
    data = tensors_of(case, "data_file")
    pick = (lambda t: t[case["step"]]) if "step" in case else (lambda t: t)
    model = maemm.load(state_of(case), kind=case["kind"], **case["load_args"])
    model.train(case["mode"] == "train")
    keys = as_list(case["batch_key"])
    batch = {
        k: prepared(model, case, k, pick(data[name])) for k, name in zip(keys, as_list(case["input"]), strict=True)
    }
    with torch.no_grad():
        found = answers(model, case, batch, data, pick)
    return found, {name: pick(data[name]) for name in case["compare"]}


def prepared(model, case, key, x):
    """What the model takes: numbers of classes are floats with an axis of channels, raw depth is standardised."""
    if not x.is_floating_point():
        x = x[:, None].float()
    return model.modalities[key].preprocess({"x": x}, None).x if key in case.get("preprocess", ()) else x


def plan_of(case, visible, predict):
    """A plan; lists that are padded with -1 are padded with their last index."""
    if "budget" not in case:
        return maemm.Plan(visible, predict)
    last = [torch.where(index >= 0, index, index.amax(1, keepdim=True).clamp(min=0)) for index in (visible, predict)]
    return maemm.Plan(*last, visible_valid=visible >= 0, predict_valid=predict >= 0, budget=case["budget"])


def answers(model, case, batch, data, pick):
    if case["forward"] == "pretrain":
        plans = {m: plan_of(case, pick(data[v]), pick(data[p])) for m, (v, p) in case["plan"].items()}
        out = model(batch, plans=plans)
        return {name: member(out, path) for name, path in case["map"].items()}
    return {name: feature(model, batch, path, case) for name, path in case["map"].items()}


def member(out, path):
    first, _, rest = path.partition(".")
    value = getattr(out, first)
    return value[rest] if rest else value  # names of terms have dots


def feature(model, batch, path, case):
    key = as_list(case["batch_key"])[0]
    what, _, modality = path.partition(".")
    if what == "logits":
        answer = model.logits(batch)
        return answer[modality] if modality else answer
    if what == "features":
        return model.embed(batch)[key]
    if what == "tokens":
        return model.embed(batch, tokens=True)[modality or key]
    if what == "latents":
        return model.embed(batch, latents=True)[key]
    if what == "reconstruction":
        return model.decode(model.embed(batch, latents=True))[key]
    if what == "cls_tokens":
        return model.encode(batch)[1].prefix[key]
    return model.embed(batch, pool={"mean_pool": "mean", "cls_pool": "cls"}[what])[key]


@pytest.mark.parametrize("case", CASES, ids=[c["id"] for c in CASES])
def test_case(case):
    found, expected = run(case)
    for name, value in expected.items():
        got = found[name].reshape(value.shape)
        assert torch.isfinite(got).all(), name
        worst = (got - value).abs().max().item()
        assert worst <= case["tol"], f"{name}: off by {worst:.2e}"


def test_a_mutation_is_caught():
    """Swapped encoder blocks must not pass: the comparison above can fail."""
    case = dict(CASES[0])
    state = state_of(case)
    other = {"0": "1", "1": "0"}
    swapped = {re.sub(r"^blocks\.([01])\.", lambda m: f"blocks.{other[m[1]]}.", k): v for k, v in state.items()}
    data = tensors_of(case)
    model = maemm.load(swapped, kind="mae", **case["load_args"])
    out = model({"image": data["x"]}, plans={"image": maemm.Plan(data["visible"], data["predict"])})
    assert (out.pred["image"] - data["pred"]).abs().max() > 1e-2


GRADIENTS = ["mae_tiny_norm", "mae_tiny_raw", "pixio_tiny", "hf_vitmae"]


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name):
    case = next(c for c in CASES if c["id"].endswith("/" + name))
    data = tensors_of(case)
    model = maemm.load(state_of(case), kind=case["kind"], **case["load_args"])
    model({"image": data["x"]}, plans={"image": maemm.Plan(data["visible"], data["predict"])}).total.backward()
    for parameter in model.parameters():
        parameter.data = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
    written = maemm.registry.find("weights", case["kind"])().write(model, {})
    checked = 0
    for key, value in data.items():
        if key.startswith("grad/"):
            worst = (written[key.removeprefix("grad/")] - value).abs().max().item()
            assert worst <= 1e-5, f"{key}: off by {worst:.2e}"
            checked += 1
    assert checked >= 3


SHARED = Path(os.environ.get("MAEMM_SHARED", Path(__file__).parents[2] / "shared")) / "golden"


def test_every_case_that_a_landed_plugin_serves_is_listed_here():
    """The shared list may grow: no case of a registered kind may be left out."""
    if not (SHARED / "CASES.json").is_file():
        pytest.skip("the shared golden folder is not here")
    kinds = set(maemm.registry.names("weights"))
    wanted = {c["id"] for c in json.loads((SHARED / "CASES.json").read_text()) if c["kind"] in kinds}
    assert wanted <= {c["id"] for c in CASES}
