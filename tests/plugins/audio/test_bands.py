"""The product with mel triangles in parts: every number of the table once, and the bits of the whole product."""

import pytest
import torch

from maemm_plugins.audio import bands
from maemm_plugins.audio.frontend import FilterBank

CPU = torch.device("cpu")
SIZES = [(16000, 128), (16000, 64), (48000, 128), (8000, 40), (22050, 23), (44100, 4)]


def table(rate, mels):
    return FilterBank(rate, mels).tables(CPU)[1]


@pytest.mark.parametrize(("rate", "mels"), SIZES)
@pytest.mark.parametrize(("width", "halves"), [(16, True), (32, False)])
def test_groups_hold_the_whole_table(rate, mels, width, halves):
    bank = table(rate, mels)
    sums, products = torch.zeros_like(bank), bands._groups(bank, width, halves=halves)
    for part in products:
        sums[part.low : part.high, part.first : part.last] += part.table
    assert torch.equal(sums, bank)
    assert sum(part.table.numel() for part in products) < bank.numel() or len(products) == 1
    assert [part.added for part in products] == [i > 0 and part.first == products[i - 1].first
                                                 for i, part in enumerate(products)]  # fmt: skip


@pytest.mark.parametrize(("rate", "mels"), SIZES)
@pytest.mark.parametrize("rows", [1, 50, 333, 512])
def test_bits_are_those_of_the_whole_product(rate, mels, rows):
    bank = table(rate, mels)
    power = torch.randn(rows, len(bank) + 1).square() * 10.0 ** torch.randint(-9, 5, (rows, 1))
    out, expected = torch.empty(rows, mels), torch.empty(rows, mels)
    bands.multiply(power, bands.fewest_products(bank), out)
    bands.multiply(power, [bands.whole(bank)], expected)
    assert torch.equal(out, expected)


def test_a_library_that_sums_otherwise_keeps_the_whole_product(monkeypatch):
    def other(bank, products, rows):
        return False

    monkeypatch.setattr(bands, "_same", other)
    assert [part.table.shape for part in bands.fewest_products(table(16000, 128))] == [(256, 128)]
