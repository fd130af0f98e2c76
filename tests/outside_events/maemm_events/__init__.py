"""Collision events outside maemm's repository: ragged sets of particles with numbers and classes."""

from maemm.registry import Plugin

plugin = Plugin(
    name="events",
    version="0.1.0",
    contract=2,
    summary="collision events: sets of particles",
    modalities={"events": "events:Events"},
    sources={"events": "sources:open_events"},
    samples={"events": "sources:write"},
    maskings={"jets": "parts:Jets"},
    encoders={"induced": "parts:InducedSets"},
)
