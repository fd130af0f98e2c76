"""Pictures with sound: CAV-MAE's weights, its classifier, its recipes. What they are made of are parts of the core."""

from maemm.plugins import Plugin

plugin = Plugin(
    name="cav",
    version="0.1.0",
    contract=1,
    summary="images with sound: CAV-MAE",
    heads={"cav": "heads:StreamHead"},
    weights={"cavmae": "weights:CAVMAE"},
)
