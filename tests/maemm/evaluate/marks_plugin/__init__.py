"""A tiny labelled modality for tests of evaluation: waves whose direction is their class."""

from maemm.registry import Plugin

plugin = Plugin(
    name="marks",
    version="0.1.0",
    contract=2,
    summary="tiny labelled waves for tests",
    modalities={"marks": "parts:Marks"},
    sources={"marks": "parts:open_marks"},
)
