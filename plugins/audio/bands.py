"""The product of power spectra with mel triangles, without most of its zeros.

A triangle covers a few frequencies: of the 256 x 128 numbers of AudioMAE's table 504 are not zero, and the product with
all of them took 40 % of the filter bank's time on a CPU. A group of bands needs only the frequencies between its first
and its last one. Sums must keep their bits, which depend on where the library cuts a long sum into parts; so groups are
used only where they give those of the whole product, as a trial shows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TRIALS = (512, 486, 98, 7)  # rows: of whole blocks of a clip of 10 s and of 1 s, and of what is left of them


class Product(NamedTuple):
    """Frequencies ``low`` .. ``high`` - 1 times ``table`` are bands ``first`` .. ``last`` - 1, or are added to them."""

    first: int
    last: int
    low: int
    high: int
    table: Tensor  # (high - low, last - first)
    added: bool = False


def whole(bank: Tensor) -> Product:
    """All bands at once; ``bank``: (frequencies, mels)."""
    return Product(0, bank.shape[1], 0, bank.shape[0], bank)


def multiply(power: Tensor, products: list[Product], out: Tensor) -> None:
    """Power (rows, at least frequencies) -> bands, into ``out`` (rows, mels)."""
    for first, last, low, high, table, added in products:
        bands = out[:, first:last]
        if added:
            torch.addmm(bands, power[:, low:high], table, out=bands)
        else:
            torch.mm(power[:, low:high], table, out=bands)


def fewest_products(bank: Tensor) -> list[Product]:
    """The fastest way that gives the bits of the whole product here; on a CPU."""
    plain = [whole(bank)]
    for products in (_groups(bank, 16, halves=True), _groups(bank, 32)):
        if len(products) > 1 and all(_same(bank, products, rows) for rows in TRIALS):
            return products
    return plain


def _groups(bank: Tensor, width: int, *, halves: bool = False) -> list[Product]:
    """Products of ``width`` bands, which are cut in the middle of the frequencies as some libraries cut long sums.

    Without ``halves`` a product starts at the first frequency, so that other cuts are where they were.
    """
    frequencies, mels = bank.shape
    products = []
    starts = [*range(0, mels - width + 1, width)] or [0]
    for first, last in zip(starts, [*starts[1:], mels], strict=True):
        used = bank[:, first:last].any(1).nonzero().flatten().tolist() or [0]
        low, high = used[0] if halves else 0, used[-1] + 1
        cut = frequencies // 2 if halves and low < frequencies // 2 < high else high
        products.append(Product(first, last, low, cut, bank[low:cut, first:last].contiguous()))
        if cut < high:
            products.append(Product(first, last, cut, high, bank[cut:high, first:last].contiguous(), added=True))
    return products


def _same(bank: Tensor, products: list[Product], rows: int) -> bool:
    power = torch.rand(rows, len(bank) + 1, generator=torch.Generator().manual_seed(rows)).square_()
    out, expected = power.new_empty(rows, bank.shape[1]), power.new_empty(rows, bank.shape[1])
    multiply(power, products, out)
    multiply(power, [whole(bank)], expected)
    return torch.equal(out, expected)
