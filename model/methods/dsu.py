"""DSU (Li, Dai, Ge, Liu, Shan, Duan, ICLR 2022), a control: feature statistics as random variables."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model.discriminator import STAGES
from model.layers import EPSILON, channel_statistics
from model.methods.base import Method, Task, capturable
from model.seeding import Streams
from model.settings import Settings

PROBABILITY = 0.5         # of perturbing the statistics behind a stage (section 4 of the paper)


class DSU(Method):
    """Uncertainty modeling for out-of-distribution generalization (Li et al., ICLR 2022).

    Behind each stage, with mean μ(h) and standard deviation σ(h) of each channel over a patch's pixels,

    DSU(h) = (σ + ε_σ Σ_σ) · (h − μ) / σ + μ + ε_μ Σ_μ,   ε ~ N(0, I) per patch and channel,

    where Σ_μ² and Σ_σ² are the variances of μ and of σ over the batch.  The statistics behind a stage are perturbed
    with probability ½ per batch.  Cross-entropy; in evaluation mode nothing is perturbed.

    Written from memory of the paper, which does this behind the first convolution, the pooling and the four stages of a
    ResNet; here it is done behind the three stages.
    """

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__(task, settings, streams)
        self.optimiser = self.add_optimiser("discriminator", self.discriminator)

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return self.step(x, y, self.draw_noise(x))

    def draw_noise(self, x: Tensor) -> Tensor:
        """ε_μ and ε_σ of every stage, zero behind the stages that are left alone this time: [3, 2, N, d]."""
        rng, device = self.streams.noise, x.device
        noise = torch.randn(STAGES, 2, len(x), self.settings.pro_dim, generator=rng, device=device)
        perturbed = torch.rand(STAGES, 1, 1, 1, generator=rng, device=device) < PROBABILITY
        return noise * perturbed

    @capturable
    def step(self, x: Tensor, y: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """One batch with given noise [3, 2, N, d]."""
        loss = functional.cross_entropy(self.perturbed_logits(x, noise), y)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return {"ce": loss}

    def perturbed_logits(self, x: Tensor, noise: Tensor) -> Tensor:
        """The classifier with perturbed statistics: [N, B, P, P] -> [N, K]."""
        h = x
        for stage, drawn in zip(self.discriminator.stages, noise):
            h = perturb_statistics(self.discriminator.run_stages(h, [stage]), *drawn)
        return self.discriminator.read_out(h)


def perturb_statistics(h: Tensor, mean_noise: Tensor, std_noise: Tensor) -> Tensor:
    """DSU(h) with given ε_μ and ε_σ [N, C]: [N, C, P, P] -> the same; without noise h itself but for rounding."""
    mean, std = channel_statistics(h)
    new_mean, new_std = (value + noise[:, :, None, None] * (value.var(0, correction=0) + EPSILON).sqrt()
                         for value, noise in ((mean, mean_noise), (std, std_noise)))
    return new_std * (h - mean) / std + new_mean
