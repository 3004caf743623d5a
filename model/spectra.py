"""Operations on spectra: smooth random gains, foreign spectra mixed in, and the unit norm of preprocessing."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

GAIN_WAVES = 4            # cosines that make up a smooth log gain


def draw_log_gain(n: int, bands: int, rng: torch.Generator) -> Tensor:
    """n smooth random log gains of standard deviation 1 at every band: [n, B].

    √(2/W)·Σ_{w=1..W} a_w cos(π w t + φ_w), t ∈ [0, 1] over the bands, a ~ N(0, 1), φ ~ U(0, 2π).
    """
    amplitude = torch.randn(n, GAIN_WAVES, 1, generator=rng, device=rng.device)
    phase = 2 * math.pi * torch.rand(n, GAIN_WAVES, 1, generator=rng, device=rng.device)
    return math.sqrt(2 / GAIN_WAVES) * (amplitude * torch.cos(_waves(bands, rng.device) + phase)).sum(1)


@functools.cache
def _waves(bands: int, device: torch.device) -> Tensor:
    """π w t for w = 1..W and t ∈ [0, 1] over the bands: [W, B]."""
    with torch.inference_mode(False):                              # it is kept, whoever asks first
        t = torch.linspace(0, 1, bands, device=device)
        return torch.arange(1, GAIN_WAVES + 1, device=device)[:, None] * math.pi * t


def apply_gain(x: Tensor, gain: Tensor) -> Tensor:
    """Multiply each patch's spectra [N, B, P, P] by its gain [N, B]; every spectrum keeps its L2 norm."""
    gained = x * gain[:, :, None, None]
    scale = x.norm(dim=1, keepdim=True) / gained.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return gained * scale


def admix(x: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Mix another patch's spectrum into each patch: x + share·s, s the centre spectrum of patch number `partner`; the
    foreign part of the mixture is share / (1 + share).

    [N, B, P, P], [N] int64, [N] -> [N, B, P, P]; brighter by up to 1 + share, so `unit_spectra` should come after it.
    """
    middle = x.shape[-1] // 2
    return x + share[:, None, None, None] * x[partner, :, middle, middle][:, :, None, None]


def unit_spectra(x: Tensor) -> Tensor:
    """What a spectrum can be after preprocessing: negative values become 0, then every pixel of [N, B, P, P] gets unit
    L2 norm; one without a positive value stays zero, and passes no gradient on."""
    positive = x.relu()
    square = positive.square().sum(1, keepdim=True)
    return positive * square.clamp_min(torch.finfo(x.dtype).eps ** 2).rsqrt()


def free_spectra(x: Tensor) -> Tensor:
    """Spectra of any sign and any norm: x itself."""
    return x


PROJECTIONS = {"free": free_spectra, "unit": unit_spectra}      # what generated spectra are confined to


class PhysicalBranch:
    """What light, calibration and mixed pixels do to a patch, at random: a generator's third branch, or an augmentation
    of every training patch; nothing learnt.

    Another patch's centre spectrum is mixed into the patch (soil between plants, dust on a roof), U(0, admixture) parts
    of it to one part of the patch; then comes a smooth gain whose standard deviation is ~ U(0, gain) per patch.  Spectra
    come out with unit norm.
    """

    def __init__(self, gain: float, admixture: float):
        self.gain, self.admixture = gain, admixture

    def draw(self, n: int, bands: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Gains [n, B], partners [n] and shares [n] for n patches."""
        strength, share = torch.rand(2, n, generator=rng, device=rng.device)
        gains = (self.gain * strength[:, None] * draw_log_gain(n, bands, rng)).exp()
        return gains, torch.randperm(n, generator=rng, device=rng.device), self.admixture * share

    def __call__(self, x: Tensor, gains: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
        return unit_spectra(admix(x, partners, shares) * gains[:, :, None, None])
