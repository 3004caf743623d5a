"""The loss terms as pure functions (docs/method.md, "Losses")."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def kl_consistency(augmented: Tensor, mixed: Tensor) -> Tensor:
    """KL(softmax(z_aug) ‖ softmax(z_mix)), batch mean, from log-softmax.  Logits [N, K] twice -> scalar (nats).

    The paper's consistency term; zero for equal arguments, never negative, unbounded.
    """
    log_p, log_q = augmented.log_softmax(1), mixed.log_softmax(1)
    return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def js_consistency(augmented: Tensor, mixed: Tensor) -> Tensor:
    """Jensen–Shannon divergence of softmax(z_aug) and softmax(z_mix), mean over the batch, from log-softmax.  Logits
    [N, K] twice -> scalar (nats).

    Symmetric, zero for equal arguments and at most log 2, so that a maximiser cannot run away with it.
    """
    log_p, log_q = augmented.log_softmax(1), mixed.log_softmax(1)
    log_mean = torch.logaddexp(log_p, log_q) - math.log(2)
    return sum(functional.kl_div(log_mean, each, reduction="batchmean", log_target=True) for each in (log_p, log_q)) / 2


def released_consistency(augmented: Tensor, mixed: Tensor) -> Tensor:
    """mean over N·K of q (log q − p), p = softmax(z_aug), q = softmax(z_mix).  Logits [N, K] twice -> scalar.

    What the released code computes: a probability stands where the divergence has a log-probability.  Not a
    divergence; always negative and bounded.  The logarithm's argument is clamped at the smallest normal float, since
    a probability that underflows to 0 would make the gradient NaN.
    """
    p, q = augmented.softmax(1), mixed.softmax(1)
    return (q * (q.clamp_min(torch.finfo(q.dtype).tiny).log() - p)).mean()


def info_nce(z: Tensor, z_prime: Tensor, temperature: float) -> Tensor:
    """Instance-level InfoNCE over 2N views: z, z' [N, D] -> scalar (nats).

    −log exp(s(z_i, z'_i)/τ) / Σ_{k≠i} exp(s(z_i, z_k)/τ), mean over the 2N views, s the dot product; by log-sum-exp,
    since raw logits reach 10⁶ in recipe `released`.
    """
    n = len(z)
    views = torch.cat([z, z_prime])                                           # [2N, D]
    logits = views @ views.T / temperature                                    # [2N, 2N]
    positive = torch.cat([logits.diagonal(n), logits.diagonal(-n)])           # s(z_i, z'_i)/τ of every view
    itself = torch.eye(2 * n, dtype=torch.bool, device=z.device)
    return (logits.masked_fill(itself, -torch.inf).logsumexp(1) - positive).mean()


def info_nce_in_blocks(z: Tensor, z_prime: Tensor, temperature: float, within_prime: Tensor) -> Tensor:
    """`info_nce` from three N×N blocks in place of 2N×2N products; `within_prime` = z'z'ᵀ, which several z share.

    Each view's term is a cross-entropy over the other views, whose right class is the partner.
    """
    across = z @ z_prime.T                                                    # [N, N] s(z_i, z'_k)
    partner = torch.arange(len(z), device=z.device)
    terms = [functional.cross_entropy(torch.cat([others, without_diagonal(own)], 1) / temperature, partner)
             for own, others in ((gram(z), across), (within_prime, across.T))]
    return sum(terms) / 2


def mutual_information(generated: Sequence[Tensor], source: Sequence[Tensor], temperature: float,
                       normalise: bool) -> Tensor:
    """MI(x, x̂): mean over the tapped layers of InfoNCE between φ_l(x̂) and φ_l(x), each [N, D_l] -> scalar (nats).

    `normalise` L2-normalises the features (cosine similarity); without it the raw dot products count.
    """
    def terms():
        for z, z_prime in zip(generated, source, strict=True):
            if normalise:
                z, z_prime = functional.normalize(z, dim=1), functional.normalize(z_prime, dim=1)
            yield info_nce(z, z_prime, temperature)
    return torch.stack(list(terms())).mean()


def mutual_information_sum(generated: Sequence[Sequence[Tensor]], source: Sequence[Tensor], temperature: float,
                           normalise: bool) -> Tensor:
    """Σ MI(x, x̂) over several x̂, each as `mutual_information`, with the source's own products made once."""
    if normalise:
        source = [functional.normalize(f, dim=1) for f in source]
        generated = [[functional.normalize(f, dim=1) for f in features] for features in generated]
    products = [gram(f) for f in source]
    terms = [info_nce_in_blocks(z, z_prime, temperature, within) for features in generated
             for z, z_prime, within in zip(features, source, products, strict=True)]
    return torch.stack(terms).sum() / len(source)


def gram(z: Tensor) -> Tensor:
    """z zᵀ: [N, D] -> [N, N]."""
    return _Gram.apply(z)


class _Gram(torch.autograd.Function):
    """Half the cost of autograd's own gradient, which multiplies once per factor."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z @ z.T

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        z, = ctx.saved_tensors
        return (grad + grad.T) @ z


def without_diagonal(products: Tensor) -> Tensor:
    """−∞ on the diagonal: a view is not its own negative."""
    return products.diagonal_scatter(products.new_full(products.shape[:1], -torch.inf))
