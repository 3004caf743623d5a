"""Scores against scikit-learn, and the constant answers that docs/protocol.md, "Scores", states."""

import numpy as np
import pytest
from sklearn import metrics as sk

from datasets.benchmark import BENCHMARK
from utils.run.metrics import confusion_matrix, constant_answer, scores


def test_scores_against_scikit_learn():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 5, 500), rng.integers(0, 5, 500)
    confusion = confusion_matrix(truth, prediction, 5)
    np.testing.assert_array_equal(confusion, sk.confusion_matrix(truth, prediction))
    ours = scores(confusion)
    assert ours.oa == pytest.approx(sk.accuracy_score(truth, prediction))
    assert ours.aa == pytest.approx(sk.balanced_accuracy_score(truth, prediction))
    assert ours.kappa == pytest.approx(sk.cohen_kappa_score(truth, prediction))
    assert ours.macro_f1 == pytest.approx(sk.f1_score(truth, prediction, average="macro"))
    assert ours.per_class == pytest.approx(sk.recall_score(truth, prediction, average=None).tolist())


def test_absent_classes_do_not_count():
    with np.errstate(all="raise"):
        ours = scores(np.array([[4, 0, 1], [0, 0, 0], [0, 0, 5]]))
    assert ours.per_class == [0.8, None, 1.0] and ours.aa == pytest.approx(0.9) and ours.n == 10
    assert ours.macro_f1 == pytest.approx((8 / 9 + 10 / 11) / 2)
    assert ours.as_dict() == {"oa": 0.9, "aa": ours.aa, "kappa": pytest.approx(0.8), "macro_f1": ours.macro_f1,
                              "per_class": [0.8, None, 1.0], "n": 10}


def test_a_class_of_one_pixel_counts():
    ours = scores(np.array([[3, 0], [0, 1]]))
    assert ours.per_class == [1.0, 1.0] and (ours.oa, ours.aa, ours.kappa, ours.macro_f1) == (1, 1, 1, 1)


def test_an_empty_matrix_has_no_scores():
    with pytest.raises(ValueError, match="empty confusion matrix"):
        scores(np.zeros((3, 3)))


@pytest.mark.parametrize("name,percent", [("Houston18", 61.0), ("paviaC", 23.5), ("Loukia", 29.0)])
def test_constant_answers(name, percent):
    ours = scores(constant_answer(np.array(BENCHMARK[name].class_counts)))
    assert 100 * ours.oa == pytest.approx(percent, abs=0.05) and ours.kappa == pytest.approx(0)
    assert ours.aa == pytest.approx(1 / len(BENCHMARK[name].class_names))


def test_a_constant_answer_is_that_of_the_largest_class_in_whole_pixels():
    confusion = constant_answer(np.array([2, 7, 4]))
    assert confusion.tolist() == [[0, 2, 0], [0, 7, 0], [0, 4, 0]] and confusion.dtype == np.int64


def test_one_class_only():
    assert scores(np.array([[3]])).kappa == 0
