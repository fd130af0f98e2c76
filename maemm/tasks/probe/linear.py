"""Linear classifiers on frozen features."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np

from maemm.tasks._shared.features import Features
from maemm.tasks._shared.tables import Choice, Table, held_out, tables

L2_C_VALUES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of the logistic regression: the inverse of its L2 penalty
_HELD, _FEW, _FOLDS, _DEFAULT = 10, 30, 5, 1e-2


def linear(train: Features, test: Features, *, seed: int = 0) -> float:
    """Accuracy on ``test`` of a logistic regression on z-scored features; its C is chosen inside ``train``.

    mAP where samples may have several labels. ``seed`` draws the part of ``train`` that chooses C. Raises
    :class:`MaemmError` where the two do not make a task (see :func:`maemm.tasks._shared.tables.tables`).
    """
    a, b = tables(train, test)
    return b.metric(logistic_scores(a, b, seed=seed))


def logistic_scores(
    train: Table, test: Table, *, seed: int = 0, l2_c: float | None = None, balanced: bool = False
) -> np.ndarray:
    """(n, classes) probabilities of a converged multinomial logistic regression with an L2 penalty.

    Where samples may have several labels, of one regression for each class. ``strength`` None: C of
    :func:`choose_strength`. ``balanced`` weighs classes by the inverse of their frequency.
    """
    train, test = _narrow(train, test)
    c = choose_l2_c(train, seed=seed, balanced=balanced) if l2_c is None else l2_c
    return _scores(train, test.x, c, balanced)


def l2_c_choice(train: Table, *, seed: int = 0, balanced: bool = False) -> Choice:
    """The C that :func:`logistic_scores` takes, as its option."""
    return Choice("l2_c", choose_l2_c(_narrow(train, train)[0], seed=seed, balanced=balanced))


def _scores(train: Table, x: np.ndarray, c: float, balanced: bool) -> np.ndarray:
    """(n, classes) probabilities for ``x`` of what is fitted on ``train``."""
    found = np.zeros((len(x), train.classes), np.float32)
    if not train.multilabel:
        fitted = _fit(train.x, train.y, c, balanced)
        found[:, fitted.classes_] = fitted.predict_proba(x)
        return found
    for label, y in enumerate(train.y.T):
        if y.any() and not y.all():
            found[:, label] = _fit(train.x, y, c, balanced).predict_proba(x)[:, 1]
        else:  # nothing to tell apart
            found[:, label] = y.mean()
    return found


def _narrow(train: Table, test: Table) -> tuple[Table, Table]:
    """The same task in as many features as there are training samples, where there are more.

    An L2 penalty keeps the weights in the span of the training samples, and a rotation changes no penalty, so the
    classifier is the same one; it is found in a fraction of the time.
    """
    if train.x.shape[1] <= len(train.x):
        return train, test
    basis = np.linalg.qr(train.x.T.astype(np.float64))[0]  # (D, n) orthonormal
    x, y = ((one.x @ basis).astype(np.float32) for one in (train, test))
    return replace(train, x=x), replace(test, x=y)


def choose_l2_c(train: Table, *, seed: int = 0, balanced: bool = False) -> float:
    """The C among :data:`STRENGTHS` that is best on a held-out tenth, or in five folds where a tenth is too few.

    With a single sample of some class nothing can be held out, and C is 0.01.
    """
    drawn = np.random.default_rng(seed)
    if train.multilabel:
        return _best_of_several(train, seed, balanced)
    if len(train.y) // _HELD >= _FEW:
        held = drawn.permutation(len(train.y)) < len(train.y) // _HELD
        parts = [held]
    else:
        counts = np.bincount(train.y)
        folds = min(_FOLDS, int(counts[counts > 0].min()))
        if folds < 2:
            return _DEFAULT
        from sklearn.model_selection import StratifiedKFold

        split = StratifiedKFold(folds, shuffle=True, random_state=int(drawn.integers(2**31))).split(train.x, train.y)
        parts = [np.isin(np.arange(len(train.y)), rows) for _, rows in split]
    if any(len(np.unique(train.y[~held])) < 2 for held in parts):
        return _DEFAULT

    def right(c: float) -> float:
        scores = [
            _fit(train.x[~held], train.y[~held], c, balanced).score(train.x[held], train.y[held]) for held in parts
        ]
        return float(np.mean(scores))

    return max(L2_C_VALUES, key=right)


def _best_of_several(train: Table, seed: int, balanced: bool) -> float:
    """The C with the best mAP on a held-out tenth; 0.01 where the tenth is too small."""
    held = held_out(train, seed)
    known, asked = train.select(~held), train.select(held)
    if held.sum() < _FEW or not asked.y.any():
        return _DEFAULT
    return max(L2_C_VALUES, key=lambda c: asked.metric(_scores(known, asked.x, c, balanced)))


def _fit(x: np.ndarray, y: np.ndarray, c: float, balanced: bool):  # noqa: ANN202  a scikit-learn estimator
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 500 steps of L-BFGS are the protocol
        return LogisticRegression(C=c, max_iter=500, class_weight="balanced" if balanced else None).fit(x, y)
