"""Signals of several channels over time: ECG, EEG, motion sensors, machine vibration."""

from maemm.registry import Plugin

plugin = Plugin(
    name="signal",
    version="0.1.0",
    contract=2,
    summary="signals of several channels: ECG, EEG, motion, vibration",
    modalities={"signal": "modality:Signal"},
    sources={"signal": "sources:open_signals", "signal_samples": "samples:open_samples"},
    maskings={
        "time_block": "maskings:TimeBlock",
        "channel": "maskings:Channel",
        "channel_time": "maskings:ChannelTime",
        "per_channel": "maskings:PerChannel",
    },
    samples={"signal": "samples:write"},
    demo="signal/tiny_cpu",
    check_options={"signal": {"size": 32, "patch": 4, "channels": ["x", "y", "z"]}, "maskings.time_block": {"span": 2}},
)
