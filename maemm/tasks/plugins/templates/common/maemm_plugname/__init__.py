"""The manifest: names and where their code is. It is read often, so import nothing heavy here."""

from maemm.registry import Plugin

plugin = Plugin(
    name="plugname",
    version="0.1.0",
    contract=1,
    summary="plugname signals",
    modalities={"plugname": "modality:PlugName"},
    sources={"plugname": "sources:open_plugname"},
    samples={"plugname": "samples:write"},
)
