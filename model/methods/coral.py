"""Deep CORAL: a control that aligns second-order statistics with the unlabelled target."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model.methods.alignment import coral_loss
from model.methods.base import Method, Task, capturable
from model.seeding import Streams
from model.settings import Settings

WEIGHT = 1.0              # λ; the paper's rule: both terms end of the same order (0.17 and 0.06, simulated pair, 4 epochs)


class CORAL(Method):
    """Deep CORAL (Sun & Saenko, ECCV Workshops 2016, Deep CORAL: Correlation Alignment for Deep Domain Adaptation).

    CE + λ·‖C_S − C_T‖²_F / (4 d²), the covariances of the last layer's d outputs, which are the K logits, on source and
    target batches of the same size.  Both pass in one batch, so that BatchNorm's running statistics, which classify at
    test time, are those that training used.
    """

    uses_target = True

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__(task, settings, streams)
        self.optimiser = self.add_optimiser("discriminator", self.discriminator)

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return self.step(x, y, self.draw_target(len(x)))

    @capturable
    def step(self, x: Tensor, y: Tensor, target: Tensor) -> dict[str, Tensor]:
        """One batch of source patches x [N, B, P, P], y [N], and target patches [N, B, P, P]."""
        source_logits, target_logits = self.discriminator(torch.cat([x, target])).split(len(x))
        ce, coral = functional.cross_entropy(source_logits, y), coral_loss(source_logits, target_logits)
        loss = ce + WEIGHT * coral
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return {"loss": loss, "ce": ce, "coral": coral}
