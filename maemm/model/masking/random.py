"""Random masking: every token, or every block of tokens, is visible with equal probability."""

from __future__ import annotations

from torch import Tensor

from maemm.contract import PerModalityMasking, Plan, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction, PositiveInt
from maemm.contract.rng import Rng
from maemm.model.masking.counts import Count, noise_order, plan_from_order


class Random(PerModalityMasking):
    """Show a random subset of the tokens; exact counts (MAE, section 3).

    Options
        ratio: fraction of the tokens that is hidden
        mask_block: show or hide whole blocks of this many tokens along each axis (Pixio)
        count: how the ratio is rounded to a number of tokens
    """

    def __init__(self, *, ratio: Fraction = 0.75, mask_block: PositiveInt = 1, count: Count = "floor_visible"):
        self.ratio, self.mask_block, self.count = ratio, mask_block, count

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        if self.mask_block == 1:
            noise = rng.uniform(f"mask/{name}", tokens.count, device=tokens.values.device)
        else:
            noise = self._block_noise(name, tokens, rng)
        return plan_from_order(noise_order(noise, tokens), tokens, self.ratio, self.count)

    def _block_noise(self, name: str, tokens: Tokens, rng: Rng) -> Tensor:
        k = self.mask_block
        if tokens.grid is None or any(n % k for n in tokens.grid):
            raise MaemmError(
                f"grid {tokens.grid} is not a multiple of mask_block {k} (modalities.{name}.masking); use a divisor"
            )
        noise = rng.uniform(f"mask/{name}", *(n // k for n in tokens.grid), device=tokens.values.device)
        for axis in range(1, noise.ndim):
            noise = noise.repeat_interleave(k, dim=axis)
        return noise.flatten(1)  # equal inside a block; the stable sort keeps whole blocks together
