"""Read and write weights: our own files, and published ones through the formats that plugins register."""

from maemm.weights.loading import load, rebuilt
from maemm.weights.own import BEST, EMA, MODEL, fill, find_checkpoint, recipe_of, save

__all__ = ["BEST", "EMA", "MODEL", "fill", "find_checkpoint", "load", "rebuilt", "recipe_of", "save"]
