"""Weather maps with gaps, and one part of every other kind, outside maemm's repository."""

from maemm.registry import Plugin

plugin = Plugin(
    name="weather",
    version="0.1.0",
    contract=2,
    summary="hourly maps of several sensors, with gaps",
    modalities={"weather": "maps:Weather", "radar": "radar:Radar"},
    sources={"weather": "maps:open_weather", "radar": "radar:open_radar"},
    samples={"weather": "maps:write", "radar": "maps:write_radar"},
    maskings={"places": "parts:Places"},
    encoders={"deepsets": "parts:DeepSets"},
    decoders={"pointwise": "parts:Pointwise"},
    objectives={"evenness": "parts:Evenness"},
    weights={"weather_old": "parts:Old"},
)
