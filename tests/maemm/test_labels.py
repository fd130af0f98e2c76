"""Labels: one or several for each sample, from lists, arrays and in batches; few of them; balanced draws."""

import numpy as np
import pytest
import torch

from maemm.contract import Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.arrays import open_arrays
from maemm.data.labels import Labelled, LabelTable, labelled, multi_hot, stack
from maemm.data.lists import class_labels, read_list, strays
from maemm.data.order import ShuffledBatches, drawn
from maemm.data.shots import Shots, balancing, labels_of
from maemm.data.subset import Subset
from maemm.model.metrics import average_precision, mean_average_precision


class Given(Source):
    def __init__(self, labels, classes=None):
        self.labels, self.classes = labels, classes
        self.multilabel = any(isinstance(one, tuple) for one in labels)

    def __len__(self):
        return len(self.labels)

    def read(self, index, rng):
        if self.labels[index] == "broken":
            raise OSError("broken")
        return Sample({"x": np.zeros(2)}, str(index), self.labels[index])


# ------------------------------------------------------------------------------------------------------ batches
def test_labels_of_a_batch():
    assert stack([None, None]) is None
    assert stack([1, None, 0]).tolist() == [1, -1, 0]
    multilabel = stack([(2, 0), None, (), 1])
    assert multilabel.tolist() == [[2, 0], [-2, -2], [-1, -1], [1, -1]]
    assert labelled(multilabel).tolist() == [True, False, True, True]  # an empty list says: none of the classes
    assert multi_hot(multilabel, 3).tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert multi_hot(torch.tensor([1, 0]), 2).tolist() == [[0, 1], [1, 0]]


def test_tables_give_back_what_they_were_given():
    for labels in ([1, None, 0], [(1, 2), None, (), (0,)]):
        table = LabelTable(labels)
        assert [table[i] for i in range(len(labels))] == labels and table.multilabel == isinstance(labels[0], tuple)


# --------------------------------------------------------------------------------------------------------- lists
def test_a_column_of_labels_holds_several(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('path,labels\na.npy,"dog,rain"\nb.npy,\nc.npy,rain;cat\nd.npy,dog|cat\n')
    _, paths, labels, classes = read_list(path, None, [".npy"])
    assert paths == ["a.npy", "b.npy", "c.npy", "d.npy"] and classes == ["cat", "dog", "rain"]
    assert labels == [(1, 2), (), (2, 0), (1, 0)]
    path.write_text("path,label\na.npy,dog\nb.npy,cat\n")
    assert read_list(path, None, [".npy"])[2:] == ([1, 0], ["cat", "dog"])


def test_numbers_beyond_64_bits_are_named_with_their_line(tmp_path):
    path = tmp_path / "x.csv"
    for column in ("label", "labels"):
        path.write_text(f"path,{column}\na.npy,1\n\nb.npy,{'9' * 20}\n")
        with pytest.raises(MaemmError, match=rf"too large \({path}, line 4: 9{{20}}\)"):
            read_list(path, None, [".npy"])
    path.write_text(f"a.npy,1\nb.npy,{'9' * 5000}\n")  # more digits than Python reads
    with pytest.raises(MaemmError, match="line 2: 9{40}"):
        read_list(path, None, [".npy"])


def test_strays_keep_folders_from_being_classes():
    within = [f"{folder}/{number}.npy" for folder in "ab" for number in range(3)]
    assert class_labels(within)[1] == ["a", "b"] and strays(within) == []
    for odd in ("c.npy", "a/b/c.npy"):
        assert class_labels([*within, odd]) == (None, None) and strays([*within, odd]) == [odd]
    assert strays(["a/0.npy", "a/1.npy", "c.npy"]) == []  # a single folder is no class
    assert strays(["a/0.npy", "b/0.npy", "c.npy", "d.npy", "e.npy"]) == []  # most are outside


def test_an_array_of_zeros_and_ones_holds_several(tmp_path):
    y = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    np.savez(tmp_path / "x.npz", x=np.ones((3, 2, 4), np.float32), y=y)
    source = open_arrays(str(tmp_path / "x.npz"), None, "x")
    assert source.multilabel and [source.label(i) for i in range(3)] == [(0, 2), (), (1,)]
    assert source.read(0, Rng((0,))).label == (0, 2) and (labels_of(source) == y).all()
    np.savez(tmp_path / "x.npz", x=np.ones((3, 2, 4), np.float32), y=y + 1)
    with pytest.raises(MaemmError, match=r"labels have shape \(3, 3\).*store one whole number per sample"):
        open_arrays(str(tmp_path / "x.npz"), None, "x")


def test_labelled_renames_several():
    source = Labelled(Given([(0, 1), (2,), None, ()], ["a", "b", "c"]), ["b", "a"])
    assert source.multilabel and source.label(0) == (1, 0) and source.label(1) is None and source.label(3) == ()
    assert source.read(0, Rng((0,))).label == (1, 0)
    with pytest.raises(ValueError, match="its class 'c' is none of the 2"):
        source.read(1, Rng((0,)))
    with pytest.raises(ValueError, match="no label"):
        source.read(2, Rng((0,)))


# ---------------------------------------------------------------------------------------------- whole sources
def test_labels_of_a_source():
    assert labels_of(Given([1, None, "broken", 0])).tolist() == [1, -1, -1, 0]
    multilabel = labels_of(Given([(0,), None, (), (1, 0)], ["a", "b", "c"]))
    assert multilabel.tolist() == [[1, 0, 0], [-1, -1, -1], [0, 0, 0], [1, 1, 0]]
    subset = Subset(Given([3, 2, 1]), [2, 0])
    assert labels_of(subset).tolist() == [1, 3] and subset.tta_view(1, 0).label == 3


def test_shots_of_several_labels():
    labels = np.array([[1, 0], [1, 1], [0, 1], [0, 0], [1, 0]] * 4)
    few = Shots.parse("2").choose(labels, 0)
    assert labels[few].sum(0).min() >= 2 and len(few) <= 4 and set(Shots.parse("1").choose(labels, 0)) <= set(few)
    assert len(Shots.parse("all").choose(np.array([0, 1, -1, 1]), 0)) == 3
    with pytest.raises(MaemmError, match="no labels to choose from"):
        Shots.parse("1").choose(np.full(4, -1), 0)


def test_balancing_makes_classes_alike():
    labels = np.array([0] * 90 + [1] * 10 + [-1] * 5)
    weights = balancing(labels)
    assert weights[:90].sum() == pytest.approx(1) and weights[90:100].sum() == pytest.approx(1) and not weights[-1]
    found = labels[drawn(len(labels), 2000, 0, 0, weights)]
    assert abs((found == 1).mean() - 0.5) < 0.05 and (found >= 0).all()
    multilabel = balancing(np.array([[1, 0], [1, 1], [-1, -1]]))
    assert multilabel.tolist() == [0.5, 1.5, 0.0]
    with pytest.raises(MaemmError, match="no labels to balance"):
        balancing(np.array([-1, -1]))


def test_epochs_of_another_length():
    order = ShuffledBatches(20, 4, 0, epoch=8)
    assert order.steps_per_epoch == 2
    rows = [request.index for step in (0, 1) for request in order.micro_batches(step)[0]]
    other = [request.index for step in (2, 3) for request in order.micro_batches(step)[0]]
    assert len(set(rows)) == 8 and rows != other  # none twice in an epoch, others in the next
    whole = ShuffledBatches(20, 4, 0, weights=np.eye(20)[3])
    assert {request.index for step in range(5) for request in whole.micro_batches(step)[0]} == {3}
    with pytest.raises(MaemmError, match="train.batch 4 is larger"):
        ShuffledBatches(20, 4, 0, epoch=3)


# ------------------------------------------------------------------------------------------------------- ranking
def test_average_precision_is_the_mean_of_the_precision_at_each_positive():
    generator = np.random.default_rng(0)
    truth = (generator.random((50, 4)) < 0.3).astype(np.int8)
    scores = np.round(generator.random((50, 4)), 1).astype(np.float32)  # many are equal: they stand together
    # Precision among all scores that are at least as high.
    expected = [np.mean([truth[scores[:, i] >= at, i].mean() for at in scores[truth[:, i] == 1, i]]) for i in range(4)]
    assert average_precision(scores, truth) == pytest.approx(expected, abs=1e-12)
    truth[:, 2] = 0
    assert np.isnan(average_precision(scores, truth)[2])
    assert mean_average_precision(scores, truth) == pytest.approx(np.mean([expected[i] for i in (0, 1, 3)]))
    assert np.isnan(mean_average_precision(scores, truth * 0))
    # A model that diverged has an average precision all the same: NaN is the lowest score.
    assert average_precision(np.array([[np.nan], [0.2], [np.inf]]), np.array([[1], [0], [1]])) == pytest.approx(5 / 6)
