"""All scores from one confusion matrix."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass

import numpy as np

log = logging.getLogger(__name__)

SCORES = {"oa": "OA", "aa": "AA", "kappa": "κ", "macro_f1": "F1"}


@dataclass(frozen=True)
class Scores:
    """Overall accuracy, average accuracy, Cohen's kappa, macro F1 and accuracy per class, all as fractions.

    AA and macro F1 are means over the classes that the truth holds; the accuracy of an absent class is None.
    """

    oa: float
    aa: float
    kappa: float
    macro_f1: float
    per_class: list[float | None]
    n: int

    def as_dict(self) -> dict:
        return asdict(self)


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, n_classes: int) -> np.ndarray:
    """Classes 0..K-1 twice [N] -> counts [K, K], rows truth, columns prediction."""
    return np.bincount(truth * n_classes + prediction, minlength=n_classes ** 2).reshape(n_classes, n_classes)


def scores(confusion: np.ndarray) -> Scores:
    """Scores of a confusion matrix [K, K] (rows truth).  Raises ValueError if it is empty."""
    confusion = np.asarray(confusion, dtype=np.float64)
    n = confusion.sum()
    if n == 0:
        raise ValueError("an empty confusion matrix has no scores")
    right, truth, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    present = truth > 0
    recall = np.divide(right, truth, out=np.zeros_like(right), where=present)
    f1 = np.divide(2 * right, truth + predicted, out=np.zeros_like(right), where=present)
    observed, chance = right.sum() / n, (truth * predicted).sum() / n ** 2
    return Scores(oa=float(observed), aa=float(recall[present].mean()),
                  kappa=float((observed - chance) / (1 - chance)) if chance < 1 else 0.0,
                  macro_f1=float(f1[present].mean()),
                  per_class=[float(r) if p else None for r, p in zip(recall, present)], n=int(n))


def constant_answer(counts: np.ndarray) -> np.ndarray:
    """The confusion matrix [K, K] of always answering the truth's largest class; counts [K]."""
    confusion = np.zeros((len(counts), len(counts)), np.int64)
    confusion[:, np.argmax(counts)] = counts
    return confusion
