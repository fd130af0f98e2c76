"""Verbs run the network in bf16 on a GPU, unless it was trained in fp32, and all else in float32."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from maemm.contract.errors import MaemmError
from maemm.model import probes
from maemm.model.decoders.full import Full
from maemm.model.encoders.streams import Streams
from maemm.model.encoders.vit import ViT
from maemm.model.model import Model
from maemm.tasks._shared.inputs import open_encoder
from maemm.tasks.embed.run import embed

from .device import gpu
from .verbs import VERBS, model_of, numbers, source_of

IMAGE, CAV, CLASSIFIER = "image/mae_tiny_cpu", "cav/cav_mae_tiny_cpu", "image/finetune/mae_tiny_cpu"
OF_NETWORK = [
    (IMAGE, "embed"), (IMAGE, "embed tokens"), (IMAGE, "knn"), (IMAGE, "probe"), (IMAGE, "score"),
    (IMAGE, "diagnose"), (CLASSIFIER, "evaluate"), (CAV, "retrieve"),
]  # fmt: skip


@pytest.fixture
def autocast(monkeypatch) -> dict[str, set[bool]]:
    """{part: whether autocast was on in it}."""
    noted: dict[str, set[bool]] = {}

    def watch(owner: Any, name: str, part: str, device: str) -> None:
        function = getattr(owner, name)

        def watched(*args, **kwargs):
            noted.setdefault(part, set()).add(torch.is_autocast_enabled(device) or torch.is_autocast_enabled("cpu"))
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    for encoder in (ViT, Streams):
        watch(encoder, "forward", "encoder", "cuda")
    watch(Full, "forward", "decoder", "cuda")
    watch(Model, "preprocess", "preprocess", "cuda")
    watch(probes, "_unit", "similarity", "cuda")
    return noted


def run(name: str, verb: str, samples, folder, precision: str, device: str = "cuda") -> list[np.ndarray]:
    model = model_of(name, {"train.precision": precision}).to(device)
    assert not model.bf16
    results = VERBS[verb](model, source_of(model, samples, 16), folder, 8)
    assert not model.bf16  # the caller's model stays as it is
    return numbers(results)


@pytest.mark.parametrize(("name", "verb"), OF_NETWORK)
def test_a_verb(name, verb, samples, tmp_path, monkeypatch, autocast):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cpu").mkdir()
    expected = run(name, verb, samples, tmp_path / "cpu", "auto", "cpu")
    assert autocast["encoder"] == {False}
    autocast.clear()
    with gpu():
        results = run(name, verb, samples, tmp_path, "auto")
    assert True in autocast["encoder"] and autocast.get("decoder", {True}) == {True}
    assert (False in autocast["encoder"]) == (verb == "diagnose")  # attention is looked at in float32
    assert autocast["preprocess"] == {False} and autocast.get("similarity", {False}) == {False}
    differ = False
    for result, same in zip(results, expected, strict=True):
        assert result.dtype == same.dtype
        if verb.startswith(("embed", "score", "evaluate")) and result.dtype.kind == "f":
            np.testing.assert_allclose(result, same, rtol=0.05, atol=0.05)
            differ = differ or not np.array_equal(result, same)
    assert differ or not verb.startswith(("embed", "score"))


@pytest.mark.parametrize("verb", ["embed", "score"])
def test_a_model_that_was_trained_in_float32(verb, samples, tmp_path, autocast):
    with gpu():
        run(IMAGE, verb, samples, tmp_path, "fp32")
    assert autocast["encoder"] == {False}


def test_export_is_in_float32(samples, tmp_path, autocast):
    with gpu():
        run(IMAGE, "export", samples, tmp_path, "auto")
    assert autocast["encoder"] == {False}


def test_precision_is_an_option(samples, tmp_path, autocast):
    model = model_of(IMAGE)
    source = source_of(model, samples, 4)
    written = {}
    for precision in ("auto", "fp32", "bf16"):
        embed(model, source, tmp_path / f"{precision}.npz", precision=precision)
        with np.load(tmp_path / f"{precision}.npz") as stored:
            written[precision] = stored["image"] if "image" in stored.files else stored[stored.files[0]]
    assert autocast["encoder"] == {False, True} and not model.bf16
    assert np.array_equal(written["auto"], written["fp32"]) and written["bf16"].dtype == np.float32
    assert not np.array_equal(written["bf16"], written["fp32"])
    with pytest.raises(MaemmError, match="precision is 'fp16'; choose auto, fp32 or bf16"):
        open_encoder(model, precision="fp16")


def test_features_of_another_precision_are_computed_anew(samples, tmp_path, monkeypatch, autocast):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    from maemm.tasks.knn.run import knn

    model = model_of(IMAGE)
    source = source_of(model, samples, 16)
    for times, precision in enumerate(("fp32", "bf16", "fp32", "bf16")):
        autocast.clear()
        knn(model, source, folds=2, seeds=1, out=tmp_path / "knn.json", precision=precision)
        assert ("encoder" in autocast) == (times < 2)
        record = json.loads((tmp_path / "knn.json").read_text())
        assert record.get("precision", "fp32") == precision
