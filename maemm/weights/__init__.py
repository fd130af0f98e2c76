"""Read and write weights: our own files, and published ones in the checkpoint formats that plugins register."""

from maemm.weights.building import fill
from maemm.weights.checkpoints import find_checkpoint
from maemm.weights.foreign import setting_names
from maemm.weights.loading import load, load_encoder, rebuilt
from maemm.weights.own import BEST, EMA, MODEL, read_header, save

__all__ = [
    "BEST", "EMA", "MODEL", "fill", "find_checkpoint", "load", "load_encoder", "read_header", "rebuilt", "save",
    "setting_names",
]  # fmt: skip
