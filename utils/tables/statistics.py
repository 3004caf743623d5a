"""Is one score better than another?  Tests over seeds, over pixels and over pairs, as pure functions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, chi2, friedmanchisquare, rankdata, studentized_range, wilcoxon

from utils.run.metrics import confusion_matrix, scores

ALPHA = 0.05
FEWEST_SEEDS = 5          # below, even n differences of one sign are not significant: 2^-4 > 0.05
FEW_DISCORDANT = 25       # pixels below which McNemar's test is the exact one


def differences(a: Mapping[int, float], b: Mapping[int, float]) -> np.ndarray:
    """a − b over the seeds that both have: {seed: score} twice -> [n]."""
    return np.array([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())], dtype=float)


def signed_rank(difference: np.ndarray, alternative: str = "two-sided") -> float:
    """p of Wilcoxon's signed-rank test that paired differences [n] are symmetric about zero; exact for n up to 50, with
    ties up to 13, and by the normal distribution beyond.

    Zeros are dropped; without any other difference p is 1.  alternative: 'two-sided', 'greater' or 'less'.
    """
    return signed_ranks([difference], alternative)[0]


def signed_ranks(family: Sequence[np.ndarray], alternative: str = "two-sided") -> list[float]:
    """`signed_rank` of each of some comparisons; those of the same length and without ties are tested in one call."""
    found, alike = [1.0] * len(family), defaultdict(list)
    for index, difference in enumerate(family):
        difference = difference[difference != 0]
        if len(difference):
            untied = len(np.unique(np.abs(difference))) == len(difference)
            alike[(len(difference), True) if untied else (index, False)].append((index, difference))
    for members in alike.values():
        p = wilcoxon(np.stack([difference for _, difference in members]), alternative=alternative, axis=1).pvalue
        for (index, _), one in zip(members, p):
            found[index] = float(one)
    return found


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values of one family (Scandinavian Journal of Statistics 6, 1979)."""
    corrected, highest = [0.0] * len(p), 0.0
    for rank, index in enumerate(np.argsort(p, kind="stable")):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = highest
    return corrected


def against_best(values: Mapping[str, Mapping[int, float]]) -> tuple[str, dict[str, dict[str, float]]]:
    """{name: {seed: score}} -> the name with the highest mean, and every other's Holm-corrected `p` of being no worse,
    with the effect sizes `r` (rank-biserial) and `d_z` (Cohen) of the best one's lead, over common seeds.

    One-sided signed-rank tests; p is 1 where there is no common seed.  The best one is chosen by the same scores, so a p
    here is rather too small than too large.
    """
    best = max(values, key=lambda name: np.mean(list(values[name].values())))
    others = [name for name in values if name != best]
    leads = [differences(values[best], values[name]) for name in others]
    corrected = holm(signed_ranks(leads, "greater"))
    return best, {name: {"p": p, "r": rank_biserial(lead), "d_z": cohen_dz(lead)}
                  for name, p, lead in zip(others, corrected, leads)}


def smallest_p(n: int, comparisons: int, sides: int = 1) -> float:
    """The smallest p that n paired differences can reach, if all have the same sign, after Holm's correction."""
    return min(1.0, sides * comparisons * 2.0 ** -n)


def rank_biserial(difference: np.ndarray) -> float:
    """Matched-pairs rank-biserial correlation of differences [n]: the rank sum of the positive ones less that of the
    negative ones, over their total; −1..1 (Kerby, Comprehensive Psychology 3, 2014).  0 without any difference."""
    difference = difference[difference != 0]
    ranks = rankdata(np.abs(difference))
    return float((ranks * np.sign(difference)).sum() / ranks.sum()) if len(difference) else 0.0


def cohen_dz(difference: np.ndarray) -> float:
    """Cohen's d_z: mean over standard deviation (ddof 1) of paired differences [n]; NaN where there is no deviation."""
    deviation = np.std(difference, ddof=1) if len(difference) > 1 else 0.0
    return float(np.mean(difference) / deviation) if deviation > 0 else math.nan


@dataclass(frozen=True)
class McNemar:
    """Pixels that only the first or only the second map has right, and p of both being equally likely."""

    only_first: int
    only_second: int
    p: float
    exact: bool


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """McNemar's test of two maps, [N] booleans each: which pixels are right (Psychometrika 12, 1947).

    Exact binomial below FEW_DISCORDANT discordant pixels, else χ² with continuity correction.  Pixels count as
    independent; neighbours are not, so that p is too small on maps with large patches of errors.
    """
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    if b + c < FEW_DISCORDANT:
        return McNemar(b, c, float(binomtest(b, b + c).pvalue) if b + c else 1.0, True)
    return McNemar(b, c, float(chi2.sf(max(0, abs(b - c) - 1) ** 2 / (b + c), 1)), False)


def block_confusions(truth: np.ndarray, prediction: np.ndarray, positions: np.ndarray, n_classes: int,
                     side: int) -> np.ndarray:
    """One confusion matrix per block of side×side pixels that holds a labelled one: [blocks, K, K], rows truth.

    truth, prediction [N] classes 0..K-1, positions [N, 2] (row, column).
    """
    _, block = np.unique(positions // side, axis=0, return_inverse=True)
    block = block.ravel()
    return np.stack([confusion_matrix(truth[block == i], prediction[block == i], n_classes)
                     for i in range(block.max() + 1)])


def block_bootstrap(confusions: np.ndarray, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Scores of maps [M, blocks, K, K] when the blocks are drawn with replacement, the same ones for every map:
    score -> [M, resamples].

    Whole blocks, since neighbouring pixels err together (Lahiri, "Resampling methods for dependent data", 2003).
    """
    n_blocks, rng = confusions.shape[1], np.random.default_rng(seed)
    drawn = rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=resamples)             # [resamples, blocks]
    summed = np.einsum("rb,mbij->mrij", drawn, confusions)
    found = [[scores(confusion) for confusion in of_map] for of_map in summed]
    return {key: np.array([[getattr(score, key) for score in of_map] for of_map in found])
            for key in ("oa", "aa", "kappa", "macro_f1")}


def interval(values: np.ndarray, level: float = 1 - ALPHA) -> tuple[float, float]:
    """The percentiles between which `level` of the values [R] lie."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Ranks:
    """Mean rank of every method over N pairs (1 = best), Friedman's p that all are alike, and Nemenyi's critical
    difference: mean ranks that differ by less are not told apart."""

    mean: dict[str, float]
    p: float
    critical_difference: float
    n: int


def nemenyi(methods: int, n: int, alpha: float = ALPHA) -> float:
    """Critical difference of mean ranks of k methods over n pairs: q √(k(k+1)/6n), q the studentised range's quantile
    over √2 (Demšar, JMLR 7, 2006)."""
    return float(studentized_range.ppf(1 - alpha, methods, np.inf) / math.sqrt(2)
                 * math.sqrt(methods * (methods + 1) / (6 * n)))


def rank_methods(table: Mapping[str, Sequence[float]]) -> Ranks:
    """{method: scores on the same N pairs} -> ranks.  Raises ValueError for fewer than three methods or two pairs."""
    values = np.array(list(table.values()), dtype=float)                                             # [methods, pairs]
    if values.ndim != 2 or len(values) < 3 or values.shape[1] < 2:
        raise ValueError("ranks need at least three methods with scores on at least two pairs")
    mean = rankdata(-values, axis=0).mean(1)
    alike = (values == values[0]).all()
    p = 1.0 if alike else float(friedmanchisquare(*values).pvalue)
    return Ranks(dict(zip(table, mean.tolist())), p, nemenyi(*values.shape), values.shape[1])


def cliques(ranks: Ranks) -> list[list[str]]:
    """The largest groups of methods, best first, whose mean ranks differ by less than the critical difference; a group
    of one is none."""
    order, groups = sorted(ranks.mean, key=ranks.mean.get), []
    for start, first in enumerate(order):
        group = [name for name in order[start:] if ranks.mean[name] - ranks.mean[first] < ranks.critical_difference]
        if len(group) > 1 and not (groups and group[-1] in groups[-1]):
            groups.append(group)
    return groups
