"""Looking at every sample of a data set: statistics, state that survives, findings."""

import json
import math
import os
import signal
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from maemm.contract import Preprocessed, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.grid import GridModality
from maemm.data.single_pass import each
from maemm.tasks._shared.channel_statistics import ChannelStatistics, moments
from maemm.tasks._shared.sample_facts import Looker, element_valid, not_finite, shapes
from maemm.tasks.data.findings import Findings, counts_text, range_text, yaml_list
from maemm.tasks.data.scan import ScanState, complete, scan_rows
from maemm.ui.text import number


def values_of(index):
    return np.random.default_rng(index // 2 if index in (8, 9) else index).normal(index, 2, (2, 4, 4)).astype("float32")


class Grids(Source):
    """Sample 9 repeats sample 8; ``trouble`` {index: what happens instead}."""

    classes = ["even", "odd"]

    def __init__(self, n=20, trouble=None):
        self.n, self.trouble = n, trouble or {}

    def __len__(self):
        return self.n

    def name(self, index):
        return f"grid-{index}"

    def read(self, index, rng):
        if index in self.trouble:
            self.trouble[index]()
        x = values_of(8 if index == 9 else index)
        if index == 11:
            x[0, 0, 0] = np.nan
        return Sample({"grid": x}, self.name(index), index % 2)


class Scaled(GridModality):
    """As prepared: half of what it was, minus 1."""

    def load(self, raw, rng):
        return {"x": torch.from_numpy(raw)}

    def preprocess(self, raw, rng):
        return Preprocessed(raw["x"] / 2 - 1)

    def denormalize_input(self, signal):
        return (signal + 1) * 2


def modalities():
    return {"grid": Scaled(size=4, patch=2, channels=2)}


def fail(error):
    def act():
        raise error

    return act


def rows_of(source, **options):
    return [row for rows in scan_rows(source, modalities(), **options) for row in rows]


# ------------------------------------------------------------------------------------------------ statistics
def test_spread_is_that_of_all_values_in_any_order():
    some = [np.random.default_rng(k).normal(1e4 + k, 3, (2, 5 + k)) for k in range(50)]
    whole = np.concatenate(some, axis=1)
    forward, backward = ChannelStatistics(), ChannelStatistics()
    for one in some:
        forward.add(moments(one))
    for one in reversed(some):
        backward.add(json.loads(json.dumps(moments(one))))  # as the state file keeps them
    assert forward.mean == backward.mean and forward.std == backward.std
    np.testing.assert_allclose(forward.mean, whole.mean(1), rtol=1e-12)
    np.testing.assert_allclose(forward.std, whole.std(1), rtol=1e-12)
    assert forward.low == whole.min(1).tolist() and forward.high == whole.max(1).tolist()


def test_padding_and_missing_channels_do_not_count():
    found = ChannelStatistics()
    found.add(moments(torch.tensor([[1.0, math.nan, 3.0], [math.nan] * 3])))
    found.add(moments(torch.tensor([[5.0]], dtype=torch.bfloat16)))
    assert found.mean[0] == 3 and math.isnan(found.mean[1]) and len(found) == 2
    assert found.std[0] == pytest.approx(np.std([1, 3, 5]))


def test_by_channel_leaves_out_padding():
    x = torch.arange(12.0).reshape(1, 2, 6)
    valid = torch.tensor([[True] * 4 + [False] * 2])
    modality = Scaled(size=(6,), patch=(2,), channels=2)
    found = modality.by_channel(Preprocessed(x / 2 - 1, valid))
    assert modality.by_channel(Preprocessed(x[0, :1], valid[:1])).shape == (1, 6)  # without an axis of channels
    assert found.shape == (2, 6) and found[:, :4].tolist() == x[0, :, :4].tolist() and found[:, 4:].isnan().all()


@pytest.mark.parametrize("shape", [(2, 7), (2, 3, 7), (2, 3), (2,)])
def test_validity_of_every_usual_shape(shape):
    valid = torch.ones(shape, dtype=torch.bool)
    valid[1] = False
    found = element_valid(Preprocessed(torch.zeros(2, 3, 7), valid))
    assert found.shape == (2, 3, 7) and found[0].all() and not found[1].any()


def test_padding_may_be_anything_but_values_must_be_finite():
    x = torch.tensor([[[1.0, math.inf, math.nan]]])
    assert not_finite(Preprocessed(x)) == 2
    assert not_finite(Preprocessed(x, torch.tensor([[True, True, False]]))) == 1


# ------------------------------------------------------------------------------------------------ looking
def test_rows_tell_what_is_there_and_what_is_broken():
    rows = rows_of(Grids(trouble={3: fail(OSError("bent")), 5: fail(MemoryError("too large"))}))
    assert [row["id"] for row in rows] == [f"grid-{k}" for k in range(20)]
    assert {k: row["bad"] for k, row in enumerate(rows) if "bad" in row} == {
        3: "OSError: bent",
        5: "MemoryError: too large",
        11: "ValueError: 1 of 32 values are not finite numbers",
    }
    of = rows[0]["of"]["grid"]
    assert of["facts"] == {"shape": "2 x 4 x 4", "type": "float32"}
    assert of["loaded"] == ["x 2 x 4 x 4 float32"] and of["tokens"] == 4
    np.testing.assert_allclose([one[1] for one in of["moments"]], values_of(0).mean((1, 2)), rtol=1e-5)
    assert rows[8]["digest"] == rows[9]["digest"] != rows[10]["digest"]
    assert json.loads(json.dumps(rows)) == json.loads(
        json.dumps(rows_of(Grids(trouble={3: fail(OSError("bent")), 5: fail(MemoryError("too large"))}), workers=2))
    )


def test_a_sample_that_kills_or_blocks_its_reader_is_broken():
    trouble = {4: lambda: os.kill(os.getpid(), signal.SIGKILL), 13: lambda: time.sleep(60)}
    rows = rows_of(Grids(trouble=trouble), workers=1, timeout=1.5)
    assert len(rows) == 20 and rows[4]["bad"] == "killed its reader (SIGKILL)"
    assert rows[13]["bad"] == "takes longer than 1.5 s" and sum("bad" in row for row in rows) == 3


def test_a_sample_without_the_modality():
    assert Looker(Grids(1), {"other": modalities()["grid"]})((0, 1))[0]["bad"] == (
        "ValueError: the sample has no 'other', only 'grid'"
    )


def test_content_is_arrays_and_bytes_not_names():
    @dataclass
    class Raw:
        values: object
        path: str

    class Raws(Source):
        raws = [Raw(np.arange(3), "a"), Raw(np.arange(3), "b"), Raw(np.arange(3.0), "a"), {"x": b"123", "path": "c"},
                {"path": "d", "x": b"123"}, "file-1", "file-2"]  # fmt: skip

        def __len__(self):
            return len(self.raws)

        def read(self, index, rng):
            return Sample({"grid": self.raws[index]}, str(index))

    class Same(Scaled):
        def load(self, raw, rng):
            return {"x": torch.zeros(2, 4, 4)}

    digests = [row["digest"] for row in Looker(Raws(), {"grid": Same(size=4, patch=2, channels=2)})((0, 7))]
    assert digests[0] == digests[1] != digests[2] and digests[3] == digests[4]
    assert digests[5] == digests[6]  # a path is no content: what was loaded decides


def test_shapes_in_words():
    assert shapes({"x": torch.zeros(3, 2), "rate": 5, "y": np.zeros(4, "int16")}) == ["x 3 x 2 float32", "y 4 int16"]


# ------------------------------------------------------------------------------------------------ state
HEADER = {"data": "d", "samples": 20, "recipe": 1}


def checked(path, source=None, header=HEADER, **options):
    said = []
    state = ScanState(path, header)
    complete(state, source or Grids(), modalities(), echo=said.append, **options)
    return list(state.rows()), said


@pytest.mark.parametrize("left", [0, 1, 37, 2000])
def test_a_check_goes_on_behind_its_last_whole_line(tmp_path, left):
    whole, said = checked(tmp_path / "a.part")
    assert len(whole) == 20 and said == []
    data = (tmp_path / "a.part").read_bytes()
    (tmp_path / "b.part").write_bytes(data[: len(data) // 2 + left])
    reads = []
    again, said = checked(tmp_path / "b.part", on_progress=lambda done, total: reads.append(done))
    assert again == whole and (tmp_path / "b.part").read_bytes() == data
    assert len(said) == 1 and "resuming after" in said[0] and reads[-1] == 20


def test_another_check_begins_anew_and_a_complete_one_reads_nothing(tmp_path):
    path = tmp_path / "a.part"
    checked(path)
    broken = Grids(trouble={k: fail(OSError("must not be read")) for k in range(20)})
    rows, said = checked(path, broken)
    assert not any("bad" in row and "must not" in row["bad"] for row in rows)
    rows, said = checked(path, broken, {**HEADER, "recipe": 2})
    assert "starting again" in said[0] and all("bad" in row for row in rows)


@pytest.mark.parametrize("content", [b"", b"\n", b"\x00\x00\n{}", b"[]\n", b"no json\n{}\n"])
def test_what_is_no_state_is_replaced(tmp_path, content):
    (tmp_path / "a.part").write_bytes(content)
    assert len(checked(tmp_path / "a.part")[0]) == 20


def test_two_writers_are_noticed_and_a_place_without_rights_too(tmp_path):
    state = ScanState(tmp_path / "a.part", HEADER)
    other = ScanState(tmp_path / "a.part", HEADER)
    other.add([{"id": "x", "bad": "y"}])
    with pytest.raises(MaemmError, match="two checks wrote to one file"):
        complete(state, Grids(), modalities(), echo=print)
    (tmp_path / "file").write_text("")
    with pytest.raises(MaemmError, match="cannot write the state of the check .* choose another folder with -o"):
        ScanState(tmp_path / "file" / "a.part", HEADER)
    with pytest.raises(MaemmError, match="there are no samples"):
        complete(state, Grids(0), modalities(), echo=print)


# ------------------------------------------------------------------------------------------------ findings
def test_samples_with_several_labels(tmp_path):
    class Tagged(Grids):
        def read(self, index, rng):
            sample = super().read(index, rng)
            return replace(sample, label=(0, 1) if index == 2 else () if index == 3 else (index % 2,))

    source = Tagged(6)
    found = Findings.from_rows(rows_of(source), source.classes)
    assert found.broken == 0 and found.labels == {"even": 3, "odd": 3}
    found.write_csv(lambda: rows_of(source), tmp_path / "a.csv")
    assert "ok,grid-2,even;odd," in (tmp_path / "a.csv").read_text()


def test_findings_sum_up(tmp_path):
    source = Grids(trouble={k: fail(OSError(f"cut at byte {k}")) for k in (1, 3)} | {5: fail(ValueError("empty"))})
    rows = rows_of(source)
    found = Findings.from_rows(rows, source.classes)
    assert (found.samples, found.broken, found.same, found.other_label) == (20, 4, {9: 8}, 1)
    assert found.first_bad == ("grid-1", "OSError: cut at byte 1")
    assert found.reasons["OSError: cut at byte 1"] == 2 and found.labels == {"even": 10, "odd": 6}
    used = np.concatenate(
        [values_of(8 if k == 9 else k).reshape(2, -1) for k in range(20) if k not in (1, 3, 5, 11)], 1
    )
    seen = found.modalities["grid"].statistics
    np.testing.assert_allclose(seen.mean, used.mean(1, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(seen.std, used.std(1, dtype=np.float64), rtol=1e-6)
    text = "\n".join(found.lines())
    assert "1 repeated" in text and "1 of them under another label" in text and "even (10), odd (6)" in text
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["modalities"]["grid"]["mean"] == seen.mean

    path = tmp_path / "list.csv"
    found.write_csv(lambda: iter(rows), path)
    lines = path.read_text().splitlines()
    assert lines[0] == "status,id,label,reason,shape,type" and len(lines) == 21
    assert lines[1] == "broken,grid-1,,OSError: cut at byte 1,,"
    assert lines[5] == "repeated,grid-9,odd,same content as grid-8,2 x 4 x 4,float32" and lines[6].startswith(
        "ok,grid-0"
    )


def test_figures_in_words():
    assert range_text({231: 1, 480: 5, 6000: 2, 1: 1, 2: 1}) == "1..6,000, median 480"
    assert range_text({3: 1950, 1: 50}) == "3 (1,950), 1 (50)" and counts_text({"a": 2}) == "a"
    assert counts_text({str(k): 1 for k in range(9)}, 2) == "0 (1), 1 (1) and 7 more"
    assert [number(one) for one in (1.5, 2.0, 10**6, math.nan, "x", True)] == [
        "1.5",
        "2",
        "1,000,000",
        "nan",
        "x",
        "True",
    ]
    assert yaml_list([0.4913, -12.34567, 1e-5]) == "[0.4913, -12.3457, 1e-05]"


# ------------------------------------------------------------------------------------------------ once
def test_each_reads_everything_once_and_leaves_out_bad_samples():
    done = []
    batches = list(
        each(Grids(10, {2: fail(OSError("x"))}), modalities(), batch=4, on_progress=lambda *two: done.append(two))
    )
    assert [one.rows for one in batches] == [[0, 1, 3], [4, 5, 6, 7], [8, 9]]
    assert [bad.id for one in batches for bad in one.bad] == ["grid-2"] and done == [(4, 10), (8, 10), (10, 10)]
    with pytest.raises(MaemmError, match="no samples"):
        each(Grids(0), modalities())
