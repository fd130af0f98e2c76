"""Images with sound: weights, lists and classifier of CAV-MAE, whose model is built of parts of the core."""

from maemm.registry import Plugin

plugin = Plugin(
    name="cav",
    version="0.1.0",
    contract=2,
    summary="images with sound: CAV-MAE",
    sources={"frames": "sources:open_frames", "clips": "sources:open_clips", "movies": "movies:open_movies"},
    heads={"cav": "heads:StreamHead"},
    weights={"cavmae": "weights:CAVMAE"},
    demo="cav/cav_mae_tiny_cpu",
    deviations={"head_answers[cav]": "it needs encoder streams, each of which answers"},
)
