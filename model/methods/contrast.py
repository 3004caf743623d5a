"""Contrast between samples whose classes are known, for the methods that train on several views of a patch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def supervised_contrast(z: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss, the sum outside the logarithm (Khosla et al., NeurIPS 2020, eq. 2).

    z [N, V, D] raw features of V views of N samples, or [N, D] of one; y [N] their classes; -> scalar (nats).  The
    features are L2-normalised here (normalised ones stay as they are; a zero vector stays zero).

    −1/|P(i)| Σ_{p∈P(i)} log exp(z_i·z_p/τ) / Σ_{a≠i} exp(z_i·z_a/τ), mean over the views i that have a positive: P(i)
    holds the other views of i's class, i's own sample's among them.  0 where no view has a positive.
    """
    views = functional.normalize(z.flatten(0, -2), dim=1)                              # [M, D], M = N·V
    labels = y.repeat_interleave(len(views) // len(y))                                 # [M]
    itself = torch.eye(len(views), dtype=torch.bool, device=z.device)
    logits = (views @ views.T / temperature).masked_fill(itself, -torch.inf)
    log_p = logits.log_softmax(1).masked_fill(itself, 0)
    positive = ((labels[:, None] == labels) & ~itself).to(z.dtype)
    count = positive.sum(1)
    per_view = -(positive * log_p).sum(1) / count.clamp_min(1)
    return per_view.sum() / (count > 0).sum().clamp_min(1)
