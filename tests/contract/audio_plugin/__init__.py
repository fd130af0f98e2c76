"""Throw-away plugin that proves the contract: spectrograms, and a decoder of its own that needs the token lattice."""

from maemm import Plugin

plugin = Plugin(
    name="contract_audio",
    version="0.0.0",
    contract=1,
    summary="proof of the contract: AudioMAE with shifted windows in the decoder",
    modalities={"contract_spectrogram": "modality:Spectrogram"},
    decoders={"contract_window": "window:Window"},
    weights={"audiomae": "weights:AudioMAE"},
)
