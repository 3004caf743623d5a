"""Controls without generators: the same discriminator and augmentation, trained on the source alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from model.methods.base import Method, Task, recordable
from model.settings import Settings
from utils.seeding import Streams

GAIN_WAVES = 4            # cosines that make up a smooth log gain


class ERM(Method):
    """Empirical risk minimisation: cross-entropy of the augmented source patches, nothing else."""

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__(task, settings, streams)
        self.optimiser = self.add_optimiser("discriminator", self.discriminator)

    def transform(self, x: Tensor) -> Tensor:
        return x

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return self.step(self.transform(x), y)

    @recordable
    def step(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """One batch of transformed patches."""
        loss = functional.cross_entropy(self.discriminator(x), y)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return {"ce": loss}


class ERMGain(ERM):
    """ERM with a smooth random spectral gain per patch: what a cheap model of sensor and illumination does alone."""

    def transform(self, x: Tensor) -> Tensor:
        return spectral_gain(x, self.settings.gain_strength, self.streams.gain)

    def generated_views(self, x: Tensor) -> dict[str, Tensor]:
        return {"random gain": self.transform(x)}


def spectral_gain(x: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Multiply each patch's spectra by one smooth random gain and renormalise them: [N, B, P, P] -> the same.

    log gain(t) = strength·√(2/W)·Σ_{w=1..W} a_w cos(π w t + φ_w), t ∈ [0, 1] over the bands, a ~ N(0, 1),
    φ ~ U(0, 2π): standard deviation `strength` at every band.  The L2 norm of a spectrum stays what it was.
    """
    n, bands = x.shape[:2]
    t = torch.linspace(0, 1, bands, device=x.device)
    wave = torch.arange(1, GAIN_WAVES + 1, device=x.device)[:, None] * math.pi * t            # [W, B]
    amplitude = torch.randn(n, GAIN_WAVES, 1, generator=rng, device=x.device)
    phase = 2 * math.pi * torch.rand(n, GAIN_WAVES, 1, generator=rng, device=x.device)
    log_gain = strength * math.sqrt(2 / GAIN_WAVES) * (amplitude * torch.cos(wave + phase)).sum(1)    # [N, B]
    gained = x * log_gain.exp()[:, :, None, None]
    scale = x.norm(dim=1, keepdim=True) / gained.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return gained * scale
