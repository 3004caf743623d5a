"""DSAN: subdomain adaptation by local maximum mean discrepancy, with the unlabelled target."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model.methods.alignment import lmmd, ramp
from model.methods.base import Method, Task, capturable
from model.seeding import Streams
from model.settings import Settings

WEIGHT = 0.5              # of LMMD, before the ramp: the authors' released code


class DSAN(Method):
    """DSAN (Zhu, Zhuang, Wang, Ke, Chen, Bian, Xiong, He, IEEE TNNLS 32, 2021, Deep Subdomain Adaptation Network for
    Image Classification).

    CE + λ(p)·½·LMMD, λ(p) = 2/(1 + exp(−10 p)) − 1 over the share p of training.  On features f [N, D]:
    LMMD = 1/C Σ_c ‖Σ_i w_ic φ(f_i^s) − Σ_j w_jc φ(f_j^t)‖², w_ic = y_ic / Σ_j y_jc, with y one-hot for the source and
    softmax of the logits for the target; five RBF kernels, their middle bandwidth the mean squared distance.

    As the paper's released code does, the mean is over the classes that occur in both batches (not over all C), and the
    softmax weights carry no gradient.  The ramp moves per step (there per epoch), and source and target pass
    in one batch (there one after the other): BatchNorm's running statistics, which classify at test time, are then
    those that training used.  Features are those before the head, as wide as the backbone (there a bottleneck of 256).
    """

    uses_target = True
    needs_progress = True
    borrows_backbone = True

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__(task, settings, streams)
        self.optimiser = self.add_optimiser("discriminator", self.discriminator)

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return self.step(x, y, self.draw_target(len(x)), ramp(self.progress))

    @capturable
    def step(self, x: Tensor, y: Tensor, target: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """One batch of source patches x [N, B, P, P], y [N], and target patches [N, B, P, P]; weight λ(p)."""
        features = self.discriminator.features(torch.cat([x, target]))
        source_logits, target_logits = self.discriminator.head(features).split(len(x))
        ce = functional.cross_entropy(source_logits, y)
        local = lmmd(*features.split(len(x)), y, target_logits)
        loss = ce + weight * WEIGHT * local
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return {"loss": loss, "ce": ce, "lmmd": local}
