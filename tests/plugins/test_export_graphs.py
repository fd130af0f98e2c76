"""Every tiny recipe as a graph, its answers those of the model on whole and on padded samples. Slow: 3 to 40 s each."""

import pytest

from maemm import config
from maemm.contract.rng import seeded
from maemm.model.build import build_model
from maemm.tasks.export.run import export

#: {recipe: its modalities whose samples may be padded}
RECIPES = {
    "image/mae_tiny_cpu": [],
    "video/videomae_tiny_cpu": [],
    "audio/audiomae_tiny_cpu": ["audio"],
    "pointcloud/point_mae_tiny_cpu": ["pointcloud"],
    "signal/tiny_cpu": ["signal"],
    "cav/cav_mae_tiny_cpu": ["audio"],
}


@pytest.mark.slow
@pytest.mark.parametrize("to, file", [("onnx", "model.onnx"), ("torch", "model.pt2")])
@pytest.mark.parametrize("recipe", RECIPES)
def test_graphs_answer_alike(tmp_path, recipe, to, file):
    if to == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    with seeded(0, recipe):
        model = build_model(config.load(recipe)).eval()
    made = export(model, tmp_path / file, to=to)
    assert set(made.inputs) == {*model.modalities, *(f"{name}_valid" for name in RECIPES[recipe])}
    padded = [title for title in made.differences if " valid" in title]
    assert len(padded) >= 3 if RECIPES[recipe] else not padded
    assert max(made.differences.values()) < 1e-4
