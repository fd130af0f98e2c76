"""Read and write weights: our own files, and published ones in the checkpoint formats that plugins register."""

from maemm.weights.checkpoints import find_checkpoint
from maemm.weights.loading import load, rebuilt
from maemm.weights.own import BEST, EMA, MODEL, fill, read_header, save

__all__ = ["BEST", "EMA", "MODEL", "fill", "find_checkpoint", "load", "read_header", "rebuilt", "save"]
