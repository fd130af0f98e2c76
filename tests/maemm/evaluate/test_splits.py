import numpy as np
import pytest

from maemm.contract.errors import MaemmError
from maemm.data.folds import Fold, groups_of, split_folds
from maemm.data.shots import Shots
from maemm.tasks._shared.features import Features
from maemm.tasks._shared.overlap import copies, overlap


def made(labels, digests=None, ids=None):
    labels = np.asarray(labels)
    ids = ids or [f"{i}" for i in range(len(labels))]
    return Features(np.zeros((len(labels), 1), np.float32), labels, ids, digests=digests)


def test_folds_share_out_every_sample_and_every_class():
    data = made([0] * 20 + [1] * 10)
    parts = split_folds(data.labels, 5, seed=1)
    assert sorted(np.concatenate([test for _, test in parts])) == list(range(30))
    for train, test in parts:
        assert not set(train) & set(test) and np.bincount(data.labels[test]).tolist() == [4, 2]
    assert any(not np.array_equal(a[1], b[1]) for a, b in zip(parts, split_folds(data.labels, 5, seed=2), strict=True))


def test_groups_are_never_torn_apart():
    ids = [f"{group}-{take}.wav" for group in range(6) for take in range(5)]
    groups = groups_of(ids, r"^(\d+)-")
    assert groups.tolist() == [i // 5 for i in range(30)]
    for train, test in split_folds(made([0, 1] * 15, ids=ids).labels, 3, groups=groups):
        assert not set(groups[train]) & set(groups[test])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split_folds(made([0, 1, 0]).labels, 5), "3 labelled samples do not make 5 folds"),
        (lambda: split_folds(made([0, 1, 2, 3, 4, 5]).labels, 5), "no class has 5 samples"),
        (lambda: split_folds(made([0, 1] * 8).labels, 1), "1 folds leave no test part"),
        (lambda: split_folds(made([0, 1] * 4).labels, 3, groups=np.array([0, 1] * 4)), "2 groups do not make 3 folds"),
        (lambda: groups_of(["a"], "("), "is not a regular expression"),
        (lambda: groups_of(["1-a", "b"], r"^(\d)-"), r"matches 1 of 2 ids \(not: b\)"),
        (lambda: Shots.parse("some"), "--shots 'some' is not valid"),
        (lambda: Shots.parse("0"), "is not valid"),
        (lambda: Shots.parse("120%"), "is not valid"),
        (lambda: Shots.parse("4").choose(np.array([0, 0, 0, 0, 1]), 0), "label 1 has 1 samples, --shots needs 4"),
        (lambda: Shots.parse("2").choose(np.array([0, 0, 1]), 0, ["cat", "dog"]), "class 'dog' has 1 samples, --shots"),
        (lambda: Fold.parse("0/3"), "fold '0/3' is not valid"),
        (lambda: Fold.parse("2"), "fold '2' is not valid"),
    ],
)
def test_what_cannot_be_split_is_said(call, message):
    with pytest.raises(MaemmError, match=message):
        call()


def test_classes_with_few_samples_miss_in_some_folds_without_a_word(recwarn):
    assert len(split_folds(made([0] * 20 + [1] * 2).labels, 5)) == 5 and not recwarn.list


def test_shots():
    labels = np.array([0] * 100 + [1] * 10 + [2] * 3 + [-1] * 5)
    few = Shots.parse("2").choose(labels, seed=0)
    assert np.bincount(labels[few]).tolist() == [2, 2, 2]
    fraction = Shots.parse("10%").choose(labels, seed=0)
    assert np.bincount(labels[fraction]).tolist() == [10, 1, 1]  # one at least
    assert set(Shots.parse("1").choose(labels, 7)) < set(Shots.parse("3").choose(labels, 7))
    assert set(few) != set(Shots.parse("2").choose(labels, seed=1))


def test_the_folds_of_a_source_are_those_of_its_features(world):
    source = world.source(samples=23, unlabelled=[4])
    known = np.array([i for i in range(23) if i != 4])
    expected = split_folds(made(known % 4).labels, 3, seed=7)
    for number, rows in enumerate(expected, 1):
        learned, asked = Fold(number, 3).split(source, 7)
        assert learned.rows.tolist() == known[rows[0]].tolist() and asked.rows.tolist() == known[rows[1]].tolist()
    learned, asked = Fold(1, 2, r"^0(\d)").split(source, 0)
    assert not {learned.name(i)[1] for i in range(len(learned))} & {asked.name(i)[1] for i in range(len(asked))}
    with pytest.raises(MaemmError, match="no labels to make folds of"):
        Fold(1, 2).split(world.source(samples=3, unlabelled=[0, 1, 2]), 0)


def test_overlap_counts_content_and_names():
    train = made([0] * 4, digests=np.array([1, 2, 3, 4]), ids=["a", "b", "c", "d"])
    test = made([0] * 4, digests=np.array([4, 3, 9, 8]), ids=["x", "c", "a", "y"])
    found = overlap(train, test)
    assert (found.content, found.ids, found.same_name, found.total) == (2, 1, 2, 4)
    assert str(found).startswith("2 of 4 test samples have the content of a training sample (1 of them its id too)")
    assert copies(made([0] * 3, digests=np.array([5, 5, 6]))) == 1
