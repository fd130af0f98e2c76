"""Every tiny recipe as ONNX, its answers those of the model. Slow: a graph takes 10 to 40 s."""

import pytest

from maemm import config
from maemm.contract.rng import seeded
from maemm.model.build import build_model
from maemm.tasks.export.run import export

RECIPES = [
    "image/mae_tiny_cpu",
    "video/videomae_tiny_cpu",
    "audio/audiomae_tiny_cpu",
    "pointcloud/point_mae_tiny_cpu",
    "signal/tiny_cpu",
    "cav/cav_mae_tiny_cpu",
]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_onnx_answers_alike(tmp_path, recipe):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with seeded(0, recipe):
        model = build_model(config.load(recipe)).eval()
    made = export(model, tmp_path / "model.onnx", to="onnx")
    assert set(made.inputs) == set(model.modalities) and max(made.differences.values()) < 1e-4
