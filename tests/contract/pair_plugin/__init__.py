"""A small plugin that tries the contract out: two modalities, an encoder with passes of its own, CAV-MAE's weights."""

from maemm.plugins import Plugin

plugin = Plugin(
    name="contract_pair",
    version="0.1.0",
    contract=1,
    summary="tries the contract on two modalities that see each other",
    modalities={"contract_spectrogram": "parts:Spectrogram", "contract_picture": "parts:GridModality"},
    weights={"contract_cavmae": "weights:CAVMAE"},
)
