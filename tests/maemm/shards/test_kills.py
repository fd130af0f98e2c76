"""Training from a web server that is killed, and one whose server dies; ``benchmarks/shards_kills.py`` at length."""

from __future__ import annotations

import pytest

from .servers import serving

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(folder with pictures and shards, losses of the run from the pictures)."""
    import shards_kills

    from maemm.tasks.data.pack import data_shards

    home = tmp_path_factory.mktemp("kills")
    shards_kills.write_pictures(home / "pictures")
    data_shards(home / "pictures", home / "shards", samples=40, workers=0)
    return home, shards_kills.whole(home, home / "pictures")


def test_a_killed_run_continues_bit_for_bit(data):
    import shards_kills

    home, losses = data
    with serving(home / "shards", delay=0.01) as server:
        result = shards_kills.killed(home, "http", server.url, {}, home / "shards", 4, losses)
    assert [row["status"] for row in result["kills"]] == [-9, -9, 2, 143]


def test_a_server_that_dies_for_a_while(data):
    import shards_kills

    home, losses = data
    result = shards_kills.dead_for(home, home / "shards", 8.0, losses)
    assert result["lines"][0].startswith("waiting for the storage of the data, which does not answer")


def test_a_server_that_dies_for_good(data):
    import shards_kills

    home, losses = data
    result = shards_kills.dead_for_good(home, home / "shards", losses)
    assert "the storage of the data does not answer since 3 s" in result["line"]
