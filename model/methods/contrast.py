"""Contrast between samples whose classes are known, for the methods that train on several views of a patch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def supervised_contrast(z: Tensor, y: Tensor, temperature: float, floor: float = 0.0) -> Tensor:
    """Supervised contrastive loss, the sum outside the logarithm (Khosla et al., NeurIPS 2020, eq. 2).

    z [N, V, D] raw features of V views of N samples, or [N, D] of one; y [N] their classes; -> scalar (nats).  The
    features are L2-normalised here (normalised ones stay as they are; a zero vector stays zero).

    −1/|P(i)| Σ_{p∈P(i)} log exp(z_i·z_p/τ) / Σ_{a≠i} exp(z_i·z_a/τ), mean over the views i that have a positive: P(i)
    holds the other views of i's class, i's own sample's among them.  0 where no view has a positive.  With a floor ε
    see `log_shares`.
    """
    labels = y.repeat_interleave(z[..., 0].numel() // len(y))                          # [M], M = N·V
    itself = torch.eye(len(labels), dtype=torch.bool, device=z.device)
    log_p = log_shares(z.flatten(0, -2), ~itself, temperature, floor)
    positive = ((labels[:, None] == labels) & ~itself).to(z.dtype)
    count = positive.sum(1)
    per_view = -(positive * log_p).sum(1) / count.clamp_min(1)
    return per_view.sum() / (count > 0).sum().clamp_min(1)


def log_shares(z: Tensor, seen: Tensor, temperature: float, floor: float) -> Tensor:
    """log p_ij, p_ij = exp(s_ij/τ) / Σ_{k seen by i} exp(s_ik/τ) of the cosines s of features z [M, D]; 0 where j is
    not seen by i, seen [M, M] -> [M, M].

    With a floor ε > 0, as the authors' codes of PDEN and SDEnet have it: log(e_ij / (Σ_k e_ik + ε) + ε), where
    e = exp((s − 1)/τ); so no term exceeds −log ε.
    """
    views = functional.normalize(z, dim=1)
    logits = views @ views.T / temperature
    if not floor:
        return logits.masked_fill(~seen, -torch.inf).log_softmax(1).masked_fill(~seen, 0)
    e = (logits - 1 / temperature).exp() * seen
    return (e / (e.sum(1, keepdim=True) + floor) + floor).log() * seen
