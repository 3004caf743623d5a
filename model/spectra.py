"""Operations on spectra: smooth random gains, and the unit norm that preprocessing gives every pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GAIN_WAVES = 4            # cosines that make up a smooth log gain


def draw_gain(n: int, bands: int, strength: float, rng: torch.Generator) -> Tensor:
    """n smooth random spectral gains: [n, B].

    log gain(t) = strength·√(2/W)·Σ_{w=1..W} a_w cos(π w t + φ_w), t ∈ [0, 1] over the bands, a ~ N(0, 1),
    φ ~ U(0, 2π): standard deviation `strength` at every band.
    """
    t = torch.linspace(0, 1, bands, device=rng.device)
    wave = torch.arange(1, GAIN_WAVES + 1, device=rng.device)[:, None] * math.pi * t          # [W, B]
    amplitude = torch.randn(n, GAIN_WAVES, 1, generator=rng, device=rng.device)
    phase = 2 * math.pi * torch.rand(n, GAIN_WAVES, 1, generator=rng, device=rng.device)
    return (strength * math.sqrt(2 / GAIN_WAVES) * (amplitude * torch.cos(wave + phase)).sum(1)).exp()


def apply_gain(x: Tensor, gain: Tensor) -> Tensor:
    """Multiply each patch's spectra [N, B, P, P] by its gain [N, B]; the L2 norm of every spectrum stays what it was."""
    gained = x * gain[:, :, None, None]
    scale = x.norm(dim=1, keepdim=True) / gained.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return gained * scale


def unit_spectra(x: Tensor) -> Tensor:
    """What a spectrum can be after preprocessing: negative values become 0, then every pixel of [N, B, P, P] gets unit
    L2 norm; one without a positive value stays zero, and passes no gradient on."""
    positive = x.clamp_min(0)
    square = positive.square().sum(1, keepdim=True)
    return positive * square.clamp_min(torch.finfo(x.dtype).eps ** 2).rsqrt()
