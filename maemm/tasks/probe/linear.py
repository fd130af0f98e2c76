"""Linear classifiers on frozen features."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from maemm.tasks._shared.features import Features
from maemm.tasks._shared.tables import Choice, Table, held_out, tables

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

L2_C_VALUES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of the logistic regression: the inverse of its L2 penalty
_DEFAULT = 1e-2  # where C cannot be chosen
_HELD_OUT = 10  # one of so many samples is held out to choose C with ...
_FEWEST = 30  # ... if that makes so many,
_FOLDS = 5  # else there are so many folds


def linear(train: Features, test: Features, *, seed: int = 0) -> float:
    """Accuracy on ``test`` (multi-label: mAP) of a logistic regression on z-scored features.

    Its C is chosen inside ``train``, on a part that ``seed`` draws. Raises :class:`MaemmError` where the two do not
    make a task (see :func:`maemm.tasks._shared.tables.tables`).
    """
    train_table, test_table = tables(train, test)
    return test_table.metric(logistic_scores(train_table, test_table, seed=seed))


def logistic_scores(
    train: Table, test: Table, *, seed: int = 0, l2_c: float | None = None, balanced: bool = False
) -> np.ndarray:
    """(n, classes) probabilities of a converged multinomial logistic regression with an L2 penalty.

    Multi-label: of one binary regression for each class. ``l2_c`` None: the C of :func:`choose_l2_c`. ``balanced``
    weighs classes by the inverse of their frequency.
    """
    train, test = _narrow(train, test)
    c = choose_l2_c(train, seed=seed, balanced=balanced) if l2_c is None else l2_c
    return _scores(train, test.x, c, balanced)


def l2_c_choice(train: Table, *, seed: int = 0, balanced: bool = False) -> Choice:
    """The C that :func:`logistic_scores` chooses by itself, as its option ``l2_c``."""
    return Choice("l2_c", choose_l2_c(_narrow(train, train)[0], seed=seed, balanced=balanced))


def _scores(train: Table, x: np.ndarray, c: float, balanced: bool) -> np.ndarray:
    """(n, classes) probabilities for ``x``, fitted on ``train``."""
    scores = np.zeros((len(x), train.classes), np.float32)
    if not train.multilabel:
        fitted = _fit(train.x, train.y, c, balanced)
        scores[:, fitted.classes_] = fitted.predict_proba(x)
        return scores
    for label, y in enumerate(train.y.T):
        if y.any() and not y.all():
            scores[:, label] = _fit(train.x, y, c, balanced).predict_proba(x)[:, 1]
        else:  # all training samples are alike
            scores[:, label] = y.mean()
    return scores


def _narrow(train: Table, test: Table) -> tuple[Table, Table]:
    """Rotate the features into the span of the training samples, where there are fewer samples than features.

    The solution under an L2 penalty lies in that span, and a rotation does not change the penalty: the classifier is
    the same and is found in a fraction of the time.
    """
    if train.x.shape[1] <= len(train.x):
        return train, test
    basis = np.linalg.qr(train.x.T.astype(np.float64))[0]  # (D, n) orthonormal
    train_x, test_x = ((table.x @ basis).astype(np.float32) for table in (train, test))
    return replace(train, x=train_x), replace(test, x=test_x)


def choose_l2_c(train: Table, *, seed: int = 0, balanced: bool = False) -> float:
    """The C of :data:`L2_C_VALUES` that is best on a held-out tenth, or in five folds where a tenth is too small.

    0.01 where a class has a single sample, and multi-label where a tenth is too small: nothing can be held out then.
    """
    rng = np.random.default_rng(seed)
    if train.multilabel:
        held = held_out(train, seed)
        rest, tenth = train.select(~held), train.select(held)
        if held.sum() < _FEWEST or not tenth.y.any():
            return _DEFAULT
        return max(L2_C_VALUES, key=lambda c: tenth.metric(_scores(rest, tenth.x, c, balanced)))
    if len(train.y) // _HELD_OUT >= _FEWEST:
        parts = [rng.permutation(len(train.y)) < len(train.y) // _HELD_OUT]
    else:
        counts = np.bincount(train.y)
        folds = min(_FOLDS, int(counts[counts > 0].min()))
        if folds < 2:
            return _DEFAULT
        from sklearn.model_selection import StratifiedKFold

        split = StratifiedKFold(folds, shuffle=True, random_state=int(rng.integers(2**31))).split(train.x, train.y)
        parts = [np.isin(np.arange(len(train.y)), rows) for _, rows in split]
    if any(len(np.unique(train.y[~held])) < 2 for held in parts):
        return _DEFAULT

    def accuracy(c: float) -> float:
        scores = [
            _fit(train.x[~held], train.y[~held], c, balanced).score(train.x[held], train.y[held]) for held in parts
        ]
        return float(np.mean(scores))

    return max(L2_C_VALUES, key=accuracy)


def _fit(x: np.ndarray, y: np.ndarray, c: float, balanced: bool) -> LogisticRegression:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 500 steps of L-BFGS are the protocol
        return LogisticRegression(C=c, max_iter=500, class_weight="balanced" if balanced else None).fit(x, y)
