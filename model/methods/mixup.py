"""ERM with mixup (Zhang, Cisse, Dauphin, Lopez-Paz, ICLR 2018), a control: straight lines between the samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model.methods.base import Method, Task, capturable
from model.mixing import draw_lambda, mix
from model.seeding import Streams
from model.settings import Settings

ALPHA = 0.2               # λ ~ Beta(α, α); the paper's for ImageNet, and DomainBed's default


class Mixup(Method):
    """mixup: beyond empirical risk minimization (Zhang et al., ICLR 2018).

    x̃ = λ x + (1−λ) x',   L = λ CE(F(x̃), y) + (1−λ) CE(F(x̃), y'),   λ ~ Beta(α, α)

    One λ per batch, (x', y') the batch in another order.  Nothing is simplified.
    """

    supports_compile = True

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__(task, settings, streams)
        self.optimiser = self.add_optimiser("discriminator", self.discriminator)

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return self.step(x, y, *self.draw(x))

    def draw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The partner's number for each patch, [N], and λ, a number."""
        partner = torch.randperm(len(x), generator=self.streams.noise, device=x.device)
        return partner, torch.tensor(draw_lambda(self.streams.mixing, ALPHA), dtype=x.dtype, device=x.device)

    @capturable
    def step(self, x: Tensor, y: Tensor, partner: Tensor, lam: Tensor) -> dict[str, Tensor]:
        """One batch with given partners [N] and λ."""
        loss = mixup_loss(self.discriminator(mix(x, x[partner], lam)), y, y[partner], lam)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return {"loss": loss}

    def generated_views(self, x: Tensor) -> dict[str, Tensor]:
        partner, lam = self.draw(x)
        return {"mixup": mix(x, x[partner], lam)}


def mixup_loss(logits: Tensor, y: Tensor, y_partner: Tensor, lam: Tensor) -> Tensor:
    """λ CE(z, y) + (1−λ) CE(z, y'): logits [N, K], classes [N] twice, λ a number -> scalar (nats)."""
    return lam * functional.cross_entropy(logits, y) + (1 - lam) * functional.cross_entropy(logits, y_partner)
