"""A small plugin that keeps every rule; parts of other roles are checked on its modality. Imports no torch."""

from maemm.registry import Plugin

SIGNAL = "conformance_signal"
TOY = Plugin(
    name="conformance",
    version="1",
    contract=2,
    summary="a small map with two channels, for checks of other parts",
    modalities={SIGNAL: "toy_signal:Signal"},
    sources={SIGNAL: "toy_signal:open_signals"},
    samples={SIGNAL: "toy_signal:write"},
)
