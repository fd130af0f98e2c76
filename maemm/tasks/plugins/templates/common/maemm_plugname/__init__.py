"""The manifest: names of parts, and where their code is. Every command imports it, so keep imports light."""

from maemm.registry import Plugin

plugin = Plugin(
    name="plugname",
    version="0.1.0",
    contract=2,
    summary="plugname signals",
    modalities={"plugname": "modality:PlugName"},
    sources={"plugname": "sources:open_plugname"},
    samples={"plugname": "samples:write"},
    # More kinds of parts: maskings, encoders, decoders, targets, objectives, heads, weights; see README.md.
)
