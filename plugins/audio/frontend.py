"""Waveforms -> log-mel filter banks, batched, equal to ``torchaudio.compliance.kaldi.fbank``.

The steps and arguments are those of AudioMAE and CAV-MAE (published code): frames of 25 ms every 10 ms that lie
wholly inside the clip, minus their mean, pre-emphasis 0.97, symmetric Hann window, power spectrum, HTK mel
triangles from 20 Hz to half the rate, logarithm with a floor of float32's epsilon. Samples are -1 .. 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maemm.contract.errors import MaemmError

from .bands import Product, fewest_products, multiply, whole

PREEMPHASIS = 0.97
FLOOR = torch.finfo(torch.float32).eps  # log(FLOOR) = -15.942385 is what silence gives
LOW_HZ = 20.0
# Frames per block. On a CPU small buffers that stay in the cache are fast: a whole batch in one tensor is slower than
# clip after clip. A GPU wants few large kernels.
CPU_BLOCK, GPU_BLOCK = 512, 1 << 16


class FilterBank:
    """``bank(wave)``: (B, S) float -> (B, frames, mels) float32 log-mel. Window and mel triangles are cached.

    ``rate``: samples per second; ``mels``: bands. Raises :class:`MaemmError` where they give no filter bank.
    """

    def __init__(self, rate: int = 16000, mels: int = 128, frame_ms: float = 25.0, hop_ms: float = 10.0):
        self.rate, self.mels = rate, mels
        self.window, self.hop = int(rate * frame_ms * 0.001), int(rate * hop_ms * 0.001)
        if self.window < 2 or self.hop < 1 or mels < 4 or rate <= 2 * LOW_HZ:
            raise MaemmError(
                f"{mels} mel bands at {rate} Hz with frames of {frame_ms:g} ms every {hop_ms:g} ms are no filter bank; "
                "use at least 4 bands and 1000 Hz"
            )
        self.padded = 1 << (self.window - 1).bit_length()  # the FFT's length
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._products: dict[torch.device, list[Product]] = {}

    def frames(self, samples: int) -> int:
        """Frames that lie wholly inside ``samples``."""
        return 0 if samples < self.window else 1 + (samples - self.window) // self.hop

    def samples(self, frames: int) -> int:
        """The fewest samples that give ``frames``."""
        return self.window + (frames - 1) * self.hop if frames > 0 else 0

    @torch.no_grad()
    def __call__(self, wave: Tensor) -> Tensor:
        batch, count = wave.shape[0], self.frames(wave.shape[1])
        out = wave.new_empty(batch, count, self.mels, dtype=torch.float32)
        if not out.numel():
            return out
        frames = wave.float().contiguous().unfold(1, self.window, self.hop)  # (B, frames, window), a view
        block = CPU_BLOCK if wave.device.type == "cpu" else GPU_BLOCK
        clips, rows = (block // count, count) if count <= block else (1, block)
        buffers = _Buffers(min(block, batch * count), self.window, self.padded, wave.device)
        for first in range(0, batch, clips):
            for start in range(0, count, rows):
                part = frames[first : first + clips, start : start + rows]
                self._block(part, out[first : first + clips, start : start + rows], buffers)
        return out

    def _block(self, part: Tensor, out: Tensor, buffers: _Buffers) -> None:
        """Frames (clips, rows, window) -> log-mel into ``out`` (clips, rows, mels), which is contiguous."""
        window, _ = self.tables(part.device)
        rows = part.shape[0] * part.shape[1]
        x, y, power = buffers.x[:rows], buffers.y[:rows], buffers.power[:rows]
        x.view(part.shape).copy_(part)
        x.sub_(x.mean(1, keepdim=True))
        inside = y[:, : self.window]
        # Product, then difference, as Kaldi rounds them: a fused step moves near-silent bands by up to 0.005.
        torch.mul(x[:, :-1], -PREEMPHASIS, out=inside[:, 1:])
        torch.mul(x[:, 0], -PREEMPHASIS, out=inside[:, 0])  # the first sample has itself as predecessor
        inside.add_(x).mul_(window)
        spectrum = torch.fft.rfft(y, out=buffers.spectrum[:rows])
        real, imaginary = torch.view_as_real(spectrum).unbind(-1)
        if part.device.type == "cpu":  # squares where they lie side by side: 0.7 of the time, the same roundings
            squares = torch.view_as_real(spectrum).square()[..., 0]
        else:
            squares = torch.mul(real, real, out=power)
        torch.addcmul(squares, imaginary, imaginary, out=power)
        out = out.view(rows, self.mels)
        multiply(power, self.products(part.device), out)
        out.clamp_(min=FLOOR).log_()

    def tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Window (window,) and triangles (padded / 2, mels) on a device."""
        if device not in self._tables:
            from torchaudio.compliance.kaldi import get_mel_banks

            bank, _ = get_mel_banks(self.mels, self.padded, float(self.rate), LOW_HZ, 0.0, 100.0, -500.0, 1.0)
            window = torch.hann_window(self.window, periodic=False)
            tables = window, bank.T.contiguous()
            self._tables[device] = tables[0].to(device, non_blocking=True), tables[1].to(device, non_blocking=True)
        return self._tables[device]

    def products(self, device: torch.device) -> list[Product]:
        """How powers become bands on a device."""
        if device not in self._products:
            bank = self.tables(device)[1]
            self._products[device] = fewest_products(bank) if device.type == "cpu" else [whole(bank)]
        return self._products[device]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}, "_products": {}}


class _Buffers:
    """Buffers for one block of frames, reused within a call."""

    def __init__(self, rows: int, window: int, padded: int, device: torch.device):
        self.x = torch.empty(rows, window, device=device)
        self.y = torch.zeros(rows, padded, device=device)  # behind the window it stays zero
        self.spectrum = torch.empty(rows, padded // 2 + 1, dtype=torch.complex64, device=device)
        self.power = torch.empty(rows, padded // 2 + 1, device=device)
