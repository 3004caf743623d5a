"""How far trained weights may be trusted on a scene: calibration where there are labels, distance from what they know
where there are none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.neighbors import NearestNeighbors
from torch.nn.modules.batchnorm import _BatchNorm

from datasets.patches import PatchSampler
from model.methods import Method
from model.states import reestimate_statistics, state_kept
from utils.run.predict import BATCH, features

BINS = 15                 # of confidence (Guo et al., ICML 2017)
COLDEST, WARMEST = 0.05, 20.0           # temperatures that are tried
QUANTILES = np.linspace(0.005, 0.995, 100)
USUAL = 0.95              # share of held-out source pixels that count as like the training pixels
NEIGHBOURS = 64           # training pixels among which the nearest without a common patch is looked for
LEVELS = ("close to", "somewhat off", "far from", "very far from")
UNLIKE_LIMITS = (0.10, 0.30, 0.60)      # share of pixels like no training pixel from which the next level holds
BAND_LIMITS = (0.2, 0.5, 1.0)           # the same of the bands' mean distance, in standard deviations


def temperature(logits: np.ndarray, y: np.ndarray) -> float:
    """The T of softmax(logits / T) with the smallest mean −log p of the truth (Guo et al., ICML 2017, section 4.2).

    logits [N, K], y [N] classes 0..K-1 -> scalar, 1 = as trained.
    """
    def nll(log_t: float) -> float:
        return -float(log_softmax(logits / np.exp(log_t), axis=1)[np.arange(len(y)), y].mean())
    bounds = (np.log(COLDEST), np.log(WARMEST))
    return float(np.exp(minimize_scalar(nll, bounds=bounds, method="bounded").x))


@dataclass(frozen=True)
class Calibration:
    """How probabilities [N, K] meet the truth.

    ece         expected calibration error over BINS equal bins of the largest probability: Σ n_b/N |accuracy − confidence|
    brier       mean squared distance of p from the one-hot truth, 0 to 2
    nll         mean −log p of the truth (nats)
    confidence, accuracy, share  [b] of the bins that hold pixels
    coverage, risk               [N] share of the pixels answered, the surest first, and the share of wrong ones there
    """

    ece: float
    brier: float
    nll: float
    confidence: np.ndarray
    accuracy: np.ndarray
    share: np.ndarray
    coverage: np.ndarray
    risk: np.ndarray

    @property
    def area(self) -> float:
        """Mean risk over all coverages (AURC; Geifman, Uziel & El-Yaniv, ICLR 2019); the smaller the better."""
        return float(self.risk.mean())


def calibration(p: np.ndarray, y: np.ndarray) -> Calibration:
    """p [N, K] probabilities, y [N] classes 0..K-1."""
    surest, right = p.max(1), p.argmax(1) == y
    bins = np.minimum((surest * BINS).astype(int), BINS - 1)
    n = np.bincount(bins, minlength=BINS)
    kept = n > 0
    confidence, accuracy = (np.bincount(bins, values, BINS)[kept] / n[kept] for values in (surest, right))
    share = n[kept] / len(y)
    order = np.argsort(-surest, kind="stable")
    answered = np.arange(1, len(y) + 1)
    truth = np.zeros_like(p)
    truth[np.arange(len(y)), y] = 1
    smallest = np.finfo(p.dtype).tiny
    return Calibration(
        ece=float((share * np.abs(accuracy - confidence)).sum()), brier=float(((p - truth) ** 2).sum(1).mean()),
        nll=float(-np.log(np.maximum(p[truth == 1], smallest)).mean()), confidence=confidence, accuracy=accuracy,
        share=share, coverage=answered / len(y), risk=np.cumsum(~right[order]) / answered)


@dataclass(frozen=True)
class Shift:
    """How far a scene is from the one trained on; no label is read.

    bands           [B] distance of the band's distribution, over its standard deviation in the source (1-Wasserstein)
    norms           BatchNorm layer -> distance of its channels' means and deviations from the running ones, over the
                    running deviation, mean over the channels; empty where the classifier has none
    unlike, usual   share of the pixels that no training pixel resembles, in the scene and among held-out source pixels
    agreement       mean share of pixels on which two members agree; None for one member
    """

    bands: np.ndarray
    norms: dict[str, float]
    unlike: float
    usual: float
    agreement: float | None = None

    @property
    def level(self) -> int:
        """0 (close) to 3 (very far): the worse of what the pixels that no training pixel resembles and the bands say.  A
        network may see what it does not know as something that it knows; the bands tell that."""
        return int(max(np.searchsorted(UNLIKE_LIMITS, self.unlike, side="right"),
                       np.searchsorted(BAND_LIMITS, self.bands.mean(), side="right")))

    def sentence(self, scene: str) -> str:
        """What a person should know before believing a map."""
        text = (f"{scene} is {LEVELS[self.level]} what the model knows: {100 * self.unlike:.0f} % of its pixels resemble "
                f"no training pixel ({100 * self.usual:.0f} % of the training scene's own held-out ones), and its bands lie "
                f"{self.bands.mean():.1f} standard deviations from the training scene's on average")
        return text + (f"; two members agree on {100 * self.agreement:.0f} %." if self.agreement is not None else ".")


def band_distances(source: np.ndarray, scene: np.ndarray) -> np.ndarray:
    """Per band, the mean distance between the quantiles of two sets of spectra [N, B] and [M, B], over the source's
    standard deviation: [B]."""
    apart = np.abs(np.quantile(source, QUANTILES, axis=0) - np.quantile(scene, QUANTILES, axis=0)).mean(0)
    return apart / np.maximum(source.std(0), np.finfo(np.float32).tiny)


def norm_distances(method: Method, scene: PatchSampler) -> dict[str, float]:
    """BatchNorm layer -> √(Δμ² + Δσ²) / σ of its channels, mean over them: what the layer sees in a scene against its
    running statistics (the 2-Wasserstein distance of two normal distributions)."""
    norms = {name: module for name, module in method.discriminator.named_modules() if isinstance(module, _BatchNorm)}
    before = {name: (norm.running_mean.clone(), norm.running_var.clone()) for name, norm in norms.items()}
    with state_kept(method.discriminator):
        reestimate_statistics(method.discriminator, scene.in_order(BATCH, len(scene)))
        after = {name: (norm.running_mean.clone(), norm.running_var.clone()) for name, norm in norms.items()}
    method.eval()
    found = {}
    for name, (mean, variance) in before.items():
        moved = (after[name][0] - mean).square() + (after[name][1].sqrt() - variance.sqrt()).square()
        found[name] = float((moved / variance.clamp_min(torch.finfo(variance.dtype).tiny)).sqrt().mean())
    return found


def unlike_shares(method: Method, training: PatchSampler, held_out: PatchSampler, scene: PatchSampler
                  ) -> tuple[float, float]:
    """The shares of the scene's and of the held-out source's pixels that no training pixel resembles.

    A pixel resembles a training pixel if its features are no further from that one's than those of USUAL of the
    held-out pixels are from theirs.  A held-out pixel and a training pixel whose patches overlap are not compared:
    neighbours are alike for that reason alone.
    """
    known, own, theirs = (features_of(method, sampler) for sampler in (training, held_out, scene))
    index = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(known))).fit(known)
    distance, nearest = index.kneighbors(own)
    apart = np.abs(training.centres.cpu().numpy()[nearest] - held_out.centres.cpu().numpy()[:, None]).max(2) \
        >= training.patch_size
    apart[:, -1] = True                                        # where all overlap: the furthest of them
    own_distance = distance[np.arange(len(own)), apart.argmax(1)]
    limit = np.quantile(own_distance, USUAL)
    there = index.kneighbors(theirs, n_neighbors=1)[0][:, 0]
    return float((there > limit).mean()), float((own_distance > limit).mean())


def agreement(predictions: list[np.ndarray]) -> float | None:
    """Mean over all pairs of members of the share of pixels with the same class; predictions [n] each."""
    pairs = [(one == other).mean() for k, one in enumerate(predictions) for other in predictions[:k]]
    return float(np.mean(pairs)) if pairs else None


def features_of(method: Method, sampler: PatchSampler) -> np.ndarray:
    """The classifier's features [N, D] of a sampler's patches; of a classifier that has none, their centre spectra."""
    if hasattr(method.discriminator, "features"):
        return features(method, (x for x, _ in sampler.in_order(BATCH)))
    return sampler.cube[:, *sampler.centres.T].T.cpu().numpy()
