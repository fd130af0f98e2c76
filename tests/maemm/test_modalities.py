"""What each modality is worth: all subsets in, all outputs out."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import maemm
from maemm import config
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.subset import Subset
from maemm.model.build import build_model
from maemm.tasks._shared.inputs import open_data
from maemm.tasks.modalities.results import Modalities
from maemm.tasks.modalities.run import modalities
from maemm.tasks.modalities.subsets import Losses, losses_of, planned, subsets_of

RECIPE = "multimae/tiny_cpu"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    smaller = {"encoder.dim": 32, "encoder.depth": 1, "encoder.heads": 2, "decoder.dim": 16, "data.workers": 0}
    return build_model(config.load(RECIPE, smaller)).eval()


@pytest.fixture(scope="module")
def result(model, tmp_path_factory) -> tuple[Modalities, dict]:
    folder = tmp_path_factory.mktemp("modalities")
    result = modalities(model, samples=30, batch=16, workers=0, pictures=3, out=folder, echo=lambda line: None)
    return result, json.loads((folder / "results.json").read_text())


def test_all_subsets_and_outputs(result):
    found, record = result
    assert len(found.subsets) == 7 and found.subsets[-1] == ("rgb", "depth", "semseg")
    assert found.losses.outputs == ["rgb", "depth", "semseg", "norm_rgb"]
    for subset in ("rgb", "depth + semseg"):
        for output in found.losses.outputs:
            assert math.isfinite(found.losses.mean[subset][output])
            assert 0.1 < found.losses.relative(subset, output) < 10
    assert len(record["subsets"]) == 7 and {*record["subsets"][0]["scores"]} == {"raw values", "untrained", "trained"}
    head = found.rows()[0]
    assert head[0] == "inputs" and head[-1] == "loss of norm_rgb" and "linear, untrained" in head
    assert "worth" in str(found) and "no better" in str(found)


def test_worth_adds_up(result):
    """Shapley's values share out what all inputs have above none."""
    found, _ = result
    for classifier in ("knn", "linear"):
        whole = found.score(classifier, tuple(found.inputs)) - found.majority
        assert sum(found.worth(classifier).values()) == pytest.approx(whole)


def test_the_page_has_the_table_and_the_pictures(result):
    found, _ = result
    assert found.page is not None
    text = found.page.read_text()
    assert "rgb + depth + semseg" in text and text.count("data:image/webp") >= 2
    assert {path.name for path in found.page.parent.iterdir()} >= {"subsets.png", "growing.webp", "results.json"}
    from PIL import Image

    with Image.open(found.page.with_name("growing.webp")) as picture:
        assert picture.n_frames == 8


def test_what_is_given_is_all_that_is_visible(model):
    batch = {name: modality.example(3, Rng((0, name))) for name, modality in model.modalities.items()}
    inputs = planned(model, batch, ("depth",), 0.25, Rng((0,), range(3), 3))
    assert {name: x.plan.visible.shape[1] for name, x in inputs.items()} == {"rgb": 0, "depth": 16, "semseg": 0}
    assert {name: x.plan.predict.shape[1] for name, x in inputs.items()} == {"rgb": 64, "depth": 48, "semseg": 64}


def test_losses_do_not_depend_on_the_batch(model):
    source = Subset(open_data(model.recipe), range(12))
    options = {"visible": 0.5, "seed": 0, "workers": 0}
    one, two = (losses_of(model, source, subsets_of(["rgb", "depth"]), batch=batch, **options) for batch in (12, 5))
    for subset in one.mean:
        for output, loss in one.mean[subset].items():
            assert two.mean[subset][output] == pytest.approx(loss, rel=1e-5)


def test_missing_modalities_and_verdicts():
    """A modality that adds nothing is said to add nothing."""
    from maemm.tasks._shared.comparison import Cell

    scores = {"a": 0.9, "b": 0.2, "a + b": 0.901}
    cells = {
        (kind, name, subset): Cell(kind, name, "all", [[value]])
        for kind in ("raw values", "untrained", "trained")
        for name in ("knn", "linear")
        for subset, value in scores.items()
    }
    losses = Losses({subset: {"a": 1.0} for subset in scores}, {subset: {"a": 2.0} for subset in scores})
    found = Modalities(["a", "b"], subsets_of(["a", "b"]), losses, 0.5, cells, 0.1, 400)
    first, second = found.verdicts()
    assert first.startswith("a: worth") and "within the noise" not in first
    assert "+0.001 beside a, within the noise of" in second
    assert np.isclose(found.worth()["a"], 0.5 * (0.9 - 0.1) + 0.5 * (0.901 - 0.2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": ["rgb", "heat"]}, "'heat' is no input of this model"),
        ({"visible": 0.0}, "visible is 0; give a fraction above 0"),
        ({"visible": 1.5}, "visible is 1.5"),
        ({"samples": 0}, "samples is 0"),
    ],
)
def test_wrong_options(model, options, message):
    with pytest.raises(MaemmError, match=message):
        modalities(model, workers=0, **options)


def test_a_model_of_one_modality_is_refused():
    with pytest.raises(MaemmError, match="the model has one input, image"):
        maemm.modalities(build_model(config.load("image/mae_tiny_cpu")), workers=0)


def test_the_command_line(tmp_path, capsys):
    from maemm.__main__ import main

    assert main(["modalities"]) == 2
    assert "RUN_OR_WEIGHTS" in capsys.readouterr().err
    assert main(["modalities", str(tmp_path / "nothing")]) == 2
    assert main(["modalities", "--help"]) == 0
    assert "--inputs" in capsys.readouterr().out
