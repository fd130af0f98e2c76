"""Spectrograms back to sound, to listen to reconstructions."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape

import numpy as np
import torch
from torch import Tensor

from maemm.contract.rng import seeded
from maemm.data.encodable import encodable

from .frontend import FLOOR, PREEMPHASIS, FilterBank

ITERATIONS = 32  # of Griffin-Lim
LOUDEST = 30.0  # log-mel; full scale reaches about 25, and exp() of more is soon infinite
MOST_SAMPLES, MOST_SECONDS = 3, 10.0  # on a page


def to_wave(logmel: Tensor, bank: FilterBank) -> Tensor:
    """Log-mel (R, T, F) -> (R, samples) whose spectrogram is near it, all finite; NaN is silence.

    The mel triangles are inverted by least squares, without negative power, pre-emphasis is undone, and phases are
    estimated by Griffin and Lim (1984; torchaudio). The filter bank keeps neither phases nor the fine detail of the
    spectrum, so the input sounds metallic too.
    """
    from torchaudio.functional import griffinlim

    window, triangles = bank.tables(torch.device("cpu"))
    silence = float(np.log(FLOOR))
    mel = encodable(logmel.float().cpu(), -LOUDEST, LOUDEST, silence).exp()
    power = (mel @ torch.linalg.pinv(triangles)).clamp(min=0)  # (R, T, padded / 2)
    angle = torch.arange(power.shape[-1]) * (torch.pi / power.shape[-1])
    power = power / (1 + PREEMPHASIS**2 - 2 * PREEMPHASIS * angle.cos())
    power[..., angle < 2 * torch.pi * 20.0 / bank.rate] = 0  # below the lowest triangle
    power = torch.nn.functional.pad(power, (0, 1)).transpose(1, 2)
    with seeded("griffin-lim"):
        return griffinlim(
            power, window, bank.padded, bank.hop, bank.window, power=2.0, n_iter=ITERATIONS, momentum=0.99,
            length=None, rand_init=True,
        )  # fmt: skip


def player(columns: Mapping[str, Tensor], bank: FilterBank) -> str | None:
    """HTML that plays the first samples of ``columns``: caption -> raw log-mel (R, T, F). None: nothing to compare."""
    if len(columns) < 2:
        return None
    chosen = {name: columns[name] for name in (list(columns)[0], list(columns)[-1])}
    frames = bank.frames(round(MOST_SECONDS * bank.rate))
    waves = {name: to_wave(logmel[:MOST_SAMPLES, :frames], bank) for name, logmel in chosen.items()}
    rows = []
    for row in range(len(next(iter(waves.values())))):
        loudest = max(float(wave[row].abs().max()) for wave in waves.values())
        peak = max(loudest, 1e-6)
        cells = "".join(f"<td>{_audio(wave[row] / peak * 0.9, bank.rate)}</td>" for wave in waves.values())
        rows.append(f"<tr><th>{row + 1}</th>{cells}</tr>")
    heads = "".join(f"<th>{escape(' '.join(name.split()))}</th>" for name in waves)
    return (
        f'<div class="sounds"><style>{_STYLE}</style><table><tr><th></th>{heads}</tr>{"".join(rows)}</table>'
        "<p>Made from the spectrograms alone (Griffin-Lim), the input too.</p></div>"
    )


_STYLE = ".sounds table { border-spacing: 8px 4px; } .sounds th { text-align: left; font-weight: 600; font-size: 85%; }"


def _audio(wave: Tensor, rate: int) -> str:
    kind, data = encoded(wave.numpy(), rate)
    text = base64.b64encode(data).decode()
    return f'<audio controls preload="none" src="data:audio/{kind};base64,{text}"></audio>'


def encoded(wave: np.ndarray, rate: int) -> tuple[str, bytes]:
    """(MIME subtype, bytes) of (samples,) float -1 .. 1: MP3, which every browser plays, else WAV.

    Louder samples are clipped, NaN is silence.
    """
    import soundfile

    wave = encodable(torch.from_numpy(np.asarray(wave, np.float32)), -1.0, 1.0).numpy()
    for kind, format in (("mpeg", "MP3"), ("wav", "WAV")):
        file = io.BytesIO()
        try:
            soundfile.write(file, wave, rate, format=format)
        except (soundfile.LibsndfileError, ValueError):
            continue
        return kind, file.getvalue()
    raise ValueError(f"no sound can be written at {rate} Hz")
