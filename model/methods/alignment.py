"""What domain-adaptation methods align source and target features with, as pure functions.

Unlike a loss on labels, none of these looks at a target label: where a class of a target sample is needed, it is the
classifier's own guess, and no gradient flows through it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

KERNELS = 5                   # RBF kernels whose bandwidths double: DAN (Long et al., ICML 2015), and DSAN and MRAN
SMALLEST_BANDWIDTH = 1e-12    # squared distance; only where all features are equal, so that nothing is divided by 0


def ramp(progress: float) -> Tensor:
    """2/(1 + exp(−10 p)) − 1, from 0 at the start of training (p = 0) to nearly 1 (Ganin et al., JMLR 2016)."""
    return torch.tensor(2 / (1 + math.exp(-10 * progress)) - 1)


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        scale, = ctx.saved_tensors
        return -scale * gradient, None


def reverse_gradient(x: Tensor, scale: Tensor) -> Tensor:
    """x itself, whose gradient is multiplied by −scale (scalar): what comes before it maximises a loss that what comes
    after it minimises (Ganin et al., JMLR 2016)."""
    return _Reversal.apply(x, scale)


def rbf_kernels(points: Tensor) -> Tensor:
    """Sum of five RBF kernels, points [M, D] -> [M, M], each entry from near 0 to 5.

    k(a, b) = Σ_i exp(−‖a − b‖² / σ_i), σ_i = σ·2^i for i = −2..2, σ the mean of ‖a − b‖² over pairs of points;
    no gradient flows through σ.  Distances come from inner products, which the mean is taken off for precision: M×M
    numbers in place of M×M×D.
    """
    centred = points - points.mean(0)
    squares = centred.square().sum(1)
    distances = (squares[:, None] + squares - 2 * centred @ centred.T).clamp_min(0)
    pairs = len(points) * (len(points) - 1)
    bandwidth = (distances.detach().sum() / pairs).clamp_min(SMALLEST_BANDWIDTH)
    return sum(torch.exp(-distances / (bandwidth * 2.0 ** (i - KERNELS // 2))) for i in range(KERNELS))


def one_hot(y: Tensor, n_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """y [N] -> [N, K] of 0 and 1."""
    return (y[:, None] == torch.arange(n_classes, device=y.device)).to(dtype)


def class_mmd(source: Tensor, target: Tensor, source_weights: Tensor, target_weights: Tensor) -> Tensor:
    """Σ_k ‖Σ_i w_ik φ(s_i) − Σ_j v_jk φ(t_j)‖² in the feature space φ of `rbf_kernels` -> scalar.

    source [N, D], target [M, D], and the weights of their samples in each class, w [N, K] and v [M, K].
    """
    weights = torch.cat([source_weights, -target_weights])                                        # [N + M, K]
    return (weights * (rbf_kernels(torch.cat([source, target])) @ weights)).sum()


def lmmd(source: Tensor, target: Tensor, y: Tensor, target_logits: Tensor) -> Tensor:
    """Local MMD of DSAN: squared MMD between the class means of the two domains, mean over the classes -> scalar.

    source [N, D], y [N] with one-hot shares of classes; target [M, D] with softmax shares from target_logits [M, K];
    normalised, the shares of a class sum to 1 over each domain.  A class counts where the source batch has it and it is
    some target sample's first guess: the normalised shares of one that no target sample belongs to are all rounding.
    """
    shares = target_logits.detach().softmax(1)
    labels, guesses = (one_hot(each, shares.shape[1], shares.dtype) for each in (y, shares.argmax(1)))
    present = labels.any(0) & guesses.any(0)
    tiny = torch.finfo(shares.dtype).tiny
    weights = [present * each / each.sum(0).clamp_min(tiny) for each in (labels, shares)]
    return class_mmd(source, target, *weights) / present.sum().clamp_min(1)


def conditional_mmd(source: Tensor, target: Tensor, y: Tensor, target_logits: Tensor) -> Tensor:
    """Conditional MMD of MRAN: Σ_k ‖1/N Σ_{i∈k} φ(s_i) − 1/M Σ_{j∈k} φ(t_j)‖² -> scalar, by sums over a class in
    parts of the batch, so that rare classes weigh little.

    source [N, D] with labels y [N]; target [M, D] with pseudo-labels, the argmax of target_logits [M, K].  A class
    counts where both batches have it: alone, its term would only push its samples apart.
    """
    n_classes, dtype = target_logits.shape[1], target_logits.dtype
    labels, guesses = (one_hot(each, n_classes, dtype) for each in (y, target_logits.argmax(1)))
    present = labels.any(0) & guesses.any(0)
    return class_mmd(source, target, *(present * each / len(each) for each in (labels, guesses)))


def covariance(points: Tensor) -> Tensor:
    """points [N, D] -> [D, D], the unbiased estimate; 0 for a single point."""
    centred = points - points.mean(0)
    return centred.T @ centred / max(len(points) - 1, 1)


def coral_loss(source: Tensor, target: Tensor) -> Tensor:
    """‖C_S − C_T‖²_F / (4 D²), the covariances of source [N, D] and target [M, D] -> scalar (Deep CORAL, eq. 1)."""
    return (covariance(source) - covariance(target)).square().mean() / 4
