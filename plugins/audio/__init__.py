"""Sound: files and lists of any rate and length, log-mel spectrograms on the device, AudioMAE and its weights."""

from maemm.registry import Plugin

plugin = Plugin(
    name="audio",
    version="0.1.0",
    contract=2,
    summary="sound: AudioMAE",
    modalities={"audio": "modality:Audio"},
    sources={"audio": "sources:open_audio", "audio_samples": "samples:open_samples"},
    maskings={
        "time": "maskings:Time",
        "frequency": "maskings:Frequency",
        "time_frequency": "maskings:TimeFrequency",
    },
    decoders={"window": "window:Window"},
    weights={"audiomae": "weights:AudioMAE"},
    samples={"audio": "samples:write"},
    demo="audio/audiomae_tiny_cpu",
    files={
        "audio/audiomae_base": ".wav .wave .flac .ogg .oga .opus .mp3 .aiff .aif .aifc .au .snd .caf .w64 .rf64 .m4a "
        ".aac .wma .mka"
    },
)
