"""A tiny modality for tests of the core: 8 x 8 pictures of one channel, made up on the spot."""

from maemm.registry import Plugin

plugin = Plugin(
    name="toy",
    version="0.1.0",
    contract=2,
    summary="tiny made-up grids for tests",
    modalities={"toy": "parts:Toy"},
    sources={"toy": "parts:open_toys"},
    objectives={"coupled": "parts:Coupled"},
)
