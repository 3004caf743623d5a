"""Tests over seeds, pixels and pairs, against enumerations, tables of the literature and known properties."""

import itertools
import math
import warnings

import numpy as np
import pytest

from utils.run.metrics import confusion_matrix, scores
from utils.tables import statistics as st


def enumerated(difference, alternative):
    """p of the signed-rank statistic by all 2^n signs."""
    kept = np.array([d for d in difference if d != 0])
    ranks = np.array([sum(abs(other) < abs(d) for other in kept) + (sum(abs(other) == abs(d) for other in kept) + 1) / 2
                      for d in kept])
    observed = ranks[kept > 0].sum()
    sums = np.array([sum(r for r, sign in zip(ranks, signs) if sign)
                     for signs in itertools.product((0, 1), repeat=len(kept))])
    low, high = (sums <= observed + 1e-9).mean(), (sums >= observed - 1e-9).mean()
    return {"greater": high, "less": low, "two-sided": min(1.0, 2 * min(low, high))}[alternative]


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_signed_rank_test_against_all_sign_vectors(alternative):
    rng = np.random.default_rng(0)
    for n in (1, 4, 8):
        difference = rng.normal(0.5, 1, n)
        assert st.signed_rank(difference, alternative) == pytest.approx(enumerated(difference, alternative))
    tied = np.array([0.0, 1.0, 1.0, -1.0, 2.0, 0.0, -3.0])
    assert st.signed_rank(tied, alternative) == pytest.approx(enumerated(tied, alternative))
    assert st.signed_rank(np.zeros(4), alternative) == 1.0 and st.signed_rank(np.zeros(0), alternative) == 1.0


def test_a_family_of_comparisons_gives_each_its_own_p():
    family = [np.array(values, float) for values in (
        [3, -1, 2, 4], [1, 2, 3, 4], [1, 1, -2, 3], [2, 2, 1, 5], [0, 0], [], [-1, 0, -2, 3, 4], [7], [5, -1])]
    for alternative in ("greater", "less", "two-sided"):
        expected = [enumerated(each, alternative) if each.any() else 1.0 for each in family]
        assert st.signed_ranks(family, alternative) == pytest.approx(expected)
    assert st.signed_ranks(family) == pytest.approx(expected)


def test_ties_of_one_comparison_leave_the_others_exact():
    """Beyond 13 differences, those with ties have p from the normal distribution."""
    untied = np.arange(1.0, 21) * np.where(np.arange(20) % 4, 1, -1)
    tied = np.sign(untied) * np.maximum(np.abs(untied), 2)
    assert st.signed_ranks([untied, tied]) == [st.signed_rank(untied), st.signed_rank(tied)]
    sums = np.zeros(211)                                     # how many of the 2^20 signs have each sum of ranks
    sums[0] = 1
    for rank in range(1, 21):
        sums[rank:] = sums[rank:] + sums[:-rank]
    low = sums[:int(-untied[untied < 0].sum()) + 1].sum() / 2 ** 20
    assert st.signed_rank(untied) == pytest.approx(2 * low)


def test_fewer_than_five_seeds_cannot_be_significant():
    for n in range(1, 8):
        assert st.signed_rank(np.arange(1.0, n + 1), "greater") == pytest.approx(st.smallest_p(n, 1))
        assert st.signed_rank(np.arange(1.0, n + 1)) == pytest.approx(st.smallest_p(n, 1, sides=2))
        assert (st.smallest_p(n, 1) < st.ALPHA) == (n >= st.FEWEST_SEEDS)
    assert st.smallest_p(10, 8) == pytest.approx(8 / 1024) and st.smallest_p(1, 8) == 1.0


def test_holm_on_a_worked_example():
    assert st.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert st.holm([0.6, 0.9]) == [1.0, 1.0] and st.holm([]) == [] and st.holm([0.2]) == [0.2]


def test_against_the_best_over_common_seeds():
    best = {seed: 0.9 + 0.001 * seed for seed in range(8)}
    worse = {seed: 0.8 for seed in range(1, 8)}                                    # seven common seeds
    near = {seed: 0.9 + 0.001 * seed + (0.01 if seed % 2 else -0.011) for seed in range(8)}
    name, tests = st.against_best({"worse": worse, "best": best, "near": near, "alone": {99: 0.1}})
    p = {other: found["p"] for other, found in tests.items()}
    assert name == "best" and list(p) == ["worse", "near", "alone"]
    lead = st.differences(best, worse)
    assert tests["worse"] == {"p": p["worse"], "r": 1.0, "d_z": st.cohen_dz(lead)} and tests["alone"]["r"] == 0.0
    assert p["worse"] == pytest.approx(3 / 2 ** 7) and p["near"] > 0.1 and p["alone"] == 1.0
    assert st.against_best({"only": {0: 0.5}}) == ("only", {})


def test_differences_pair_by_seed():
    assert st.differences({1: 5.0, 0: 1.0, 7: 0.0}, {0: 0.5, 1: 1.0, 2: 9.0}).tolist() == [0.5, 4.0]
    assert st.differences({3: 2}, {3: 1}).dtype == float


def test_effect_sizes():
    assert st.rank_biserial(np.array([1.0, 2.0, 3.0])) == 1.0 and st.rank_biserial(np.array([-1.0, -2.0])) == -1.0
    assert st.rank_biserial(np.array([3.0, -1.0, 2.0, 0.0])) == pytest.approx((3 + 2 - 1) / 6)
    assert st.rank_biserial(np.zeros(3)) == 0.0
    assert st.cohen_dz(np.array([1.0, 2.0, 3.0])) == pytest.approx(2.0)
    assert st.cohen_dz(np.array([1.0, 5.0])) == pytest.approx(3 / math.sqrt(8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(st.cohen_dz(np.array([1.0]))) and math.isnan(st.cohen_dz(np.ones(3)))


def right(both, first, second, none):
    """Which pixels two maps have right, so many of each kind."""
    return (np.repeat([True, True, False, False], [both, first, second, none]),
            np.repeat([True, False, True, False], [both, first, second, none]))


def test_mcnemar_exact_and_approximate():
    few = st.mcnemar(*right(50, 2, 8, 5))
    assert (few.only_first, few.only_second, few.exact) == (2, 8, True)
    assert few.p == pytest.approx(2 * sum(math.comb(10, k) for k in range(3)) / 2 ** 10)
    many = st.mcnemar(*right(10, 60, 40, 0))
    assert (many.only_first, many.only_second, many.exact) == (60, 40, False)
    assert many.p == pytest.approx(math.erfc(math.sqrt((20 - 1) ** 2 / 100 / 2)))
    assert st.mcnemar(*right(0, 14, 10, 0)).exact and not st.mcnemar(*right(0, 15, 10, 0)).exact
    assert st.mcnemar(*right(9, 0, 0, 1)).p == 1.0 and st.mcnemar(*right(0, 30, 30, 0)).p == 1.0


def two_maps(n=40, classes=3, accuracy=(0.9, 0.6), seed=0):
    """Truth, predictions of two maps and positions of a square scene whose errors come in 5×5 squares."""
    rng = np.random.default_rng(seed)
    positions = np.argwhere(np.ones((n, n), bool))
    truth = rng.integers(classes, size=n * n)
    predictions = []
    for share in accuracy:
        wrong = (rng.random((n // 5, n // 5)) > share).repeat(5, 0).repeat(5, 1).ravel()
        predictions.append(np.where(wrong, (truth + 1) % classes, truth))
    return truth, predictions, positions


def test_block_confusions_partition_the_scene():
    truth, (prediction, _), positions = two_maps()
    blocks = st.block_confusions(truth, prediction, positions, 3, 16)
    assert blocks.shape == (9, 3, 3) and (blocks.sum(0) == confusion_matrix(truth, prediction, 3)).all()
    corner = (positions < 16).all(1)
    assert (blocks[0] == confusion_matrix(truth[corner], prediction[corner], 3)).all()
    sparse = st.block_confusions(truth[:3], prediction[:3], np.array([[0, 0], [30, 2], [31, 2]]), 3, 16)
    assert sparse.sum((1, 2)).tolist() == [1, 2]


def test_block_bootstrap_repeats_and_surrounds_the_score():
    truth, predictions, positions = two_maps()
    blocks = np.stack([st.block_confusions(truth, each, positions, 3, 5) for each in predictions])
    found, again = st.block_bootstrap(blocks, 300, 1), st.block_bootstrap(blocks, 300, 1)
    other = st.block_bootstrap(blocks, 300, 2)
    for key, values in found.items():
        assert values.shape == (2, 300) and (values == again[key]).all() and (values != other[key]).any()
        for each, of_map in zip(predictions, values):
            low, high = st.interval(of_map)
            assert low < getattr(scores(confusion_matrix(truth, each, 3)), key) < high
    assert st.interval(found["oa"][0] - found["oa"][1])[0] > 0


def test_block_bootstrap_draws_the_same_blocks_for_every_map():
    truth, (prediction, _), positions = two_maps()
    blocks = st.block_confusions(truth, prediction, positions, 3, 5)
    found = st.block_bootstrap(np.stack([blocks, blocks]), 50, 0)
    assert (found["oa"][0] == found["oa"][1]).all()


def test_errors_in_squares_make_the_interval_wider_than_single_pixels_do():
    """With blocks of the errors' own size the deviation is that of 64 squares, √(p(1−p)/64), not of 1600 pixels."""
    truth, (prediction, _), positions = two_maps(accuracy=(0.7, 0.7))
    share = (prediction == truth).mean()
    for side, independent in ((1, 1600), (5, 64)):
        blocks = st.block_confusions(truth, prediction, positions, 3, side)[None]
        deviation = st.block_bootstrap(blocks, 400, 0)["oa"].std()
        assert deviation == pytest.approx(math.sqrt(share * (1 - share) / independent), rel=0.15)


def test_interval_of_known_quantiles():
    assert st.interval(np.arange(101.0), 0.9) == pytest.approx((5.0, 95.0))


def test_critical_difference_of_the_literature():
    """Demšar 2006, table 5 (α = 0.05: q 2.343, 2.569, 3.164) and his example of four methods on 14 sets: CD 1.25."""
    for methods, q in ((3, 2.343), (4, 2.569), (10, 3.164)):
        assert st.nemenyi(methods, 6) == pytest.approx(q * math.sqrt(methods * (methods + 1) / 36), abs=2e-3)
    assert st.nemenyi(4, 14) == pytest.approx(1.25, abs=0.01)


def test_ranks_over_pairs():
    ranks = st.rank_methods({"a": [0.9, 0.8, 0.7], "b": [0.5, 0.8, 0.6], "c": [0.1, 0.2, 0.3]})
    assert ranks.mean == {"a": pytest.approx((1 + 1.5 + 1) / 3), "b": pytest.approx((2 + 1.5 + 2) / 3), "c": 3.0}
    assert ranks.n == 3 and 0.05 < ranks.p < 0.15
    assert ranks.critical_difference == pytest.approx(2.343 * math.sqrt(3 * 4 / (6 * 3)), abs=2e-3)
    assert st.rank_methods({name: [0.5, 0.5] for name in "abc"}).p == 1.0
    with pytest.raises(ValueError, match="three methods"):
        st.rank_methods({"a": [1, 2], "b": [2, 1]})
    with pytest.raises(ValueError, match="two pairs"):
        st.rank_methods({"a": [1], "b": [2], "c": [3]})


def test_groups_that_are_not_told_apart():
    def groups(**mean):
        return st.cliques(st.Ranks(mean, 0.01, 1.0, 9))
    assert groups(a=1.0, b=1.5, c=2.2, d=2.4) == [["a", "b"], ["b", "c", "d"]]
    assert groups(a=1.0, b=1.4, c=1.9, d=2.3) == [["a", "b", "c"], ["b", "c", "d"]]
    assert groups(b=1.0, a=1.5, c=2.2) == [["b", "a"], ["a", "c"]]
    assert groups(a=1.0, b=3.0) == groups(a=1.0, b=2.0) == [] and groups(d=1.2, a=1.0) == [["a", "d"]]
    assert groups(a=1.0, b=1.4, c=1.8, d=2.9) == [["a", "b", "c"]]
