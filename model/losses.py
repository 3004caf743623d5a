"""The loss terms as pure functions (docs/method.md, "Losses")."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

SHORTEST = 1e-12          # length of a feature vector, as functional.normalize has it

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
    logs = torch.stack([augmented, mixed]).log_softmax(2)                                 # [2, N, K]
    log_mean = (torch.logaddexp(*logs) - math.log(2)).expand_as(logs)
    return (functional.kl_div(log_mean, logs, reduction="none", log_target=True).sum((1, 2)) / len(augmented)).sum() / 2


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


def mutual_information_sum(features: Sequence[Tensor], temperature: float, normalise: bool) -> Tensor:
    """Σ MI(x, x̂) over several x̂, each as `mutual_information` and of all layers at once; per tapped layer the features
    of x and of every x̂, [1 + number of x̂, N, D_l] -> scalar (nats).

    Each view's term is a cross-entropy over the other views, partner's kind first, whose right class is the partner.
    """
    own, across = map(torch.stack, zip(*map(_Products.apply, features)))                  # own [L, V, N, N]
    across = across.unflatten(2, (-1, across.shape[1])).transpose(1, 2)                   # [L, V - 1, N (x), N (x̂)]
    if normalise:
        inverse = own.diagonal(dim1=2, dim2=3).clamp_min(SHORTEST ** 2).rsqrt()           # [L, V, N]
        own = own * inverse[..., None] * inverse[..., None, :]
        across = across * inverse[:, :1, :, None] * inverse[:, 1:, None]
    itself = torch.eye(own.shape[-1], dtype=torch.bool, device=own.device)
    others = own.masked_fill(itself, -torch.inf)
    logits = torch.cat([torch.cat([across, others[:, :1].expand_as(across)], 3),
                        torch.cat([across.mT, others[:, 1:]], 3)], 1) / temperature       # [L, 2 (V - 1), N, 2 N]
    terms = -logits.log_softmax(3).diagonal(dim1=2, dim2=3)                               # [L, 2 (V - 1), N]
    return terms.sum(1).mean() / 2


class _Products(torch.autograd.Function):
    """Features [V, N, D] -> inner products of each kind [V, N, N], and of the first with all the others [N, (V − 1) N].

    Autograd's own gradient would multiply once per factor of the former, and keep a gradient for every use.
    """

    @staticmethod
    def forward(ctx, f: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(f)
        return f @ f.mT, f[0] @ f[1:].flatten(0, 1).T

    @staticmethod
    @once_differentiable
    def backward(ctx, own: Tensor, across: Tensor) -> Tensor:
        f, = ctx.saved_tensors
        grad = (own + own.mT) @ f
        grad[0].addmm_(across, f[1:].flatten(0, 1))
        grad[1:].view(-1, f.shape[2]).addmm_(across.T, f[0])
        return grad
