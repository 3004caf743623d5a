"""Scene correction: spectra seen against the mean spectrum of their own scene.

Light, air and detector change a whole flight at once, and the mean spectrum with it: what is left when the mean is
taken out changes less.  It is old practice in remote sensing (internal average relative reflectance: Kruse 1988; log
residuals: Green & Craig 1985).  Let u be a pixel's unit spectrum, r the reference, the mean of u over a scene's pixels.

    mean              u − r
    ratio             u / r, scaled to unit length again
    standardise       (u − r) / s, s the standard deviation of u over the scene over its mean over the bands
    half_standardise  (u − r) / √s, between `mean` and `standardise`: bands of little contrast come forward, but s, which
                      depends on the surfaces of the scene, counts for less

A scene that holds other surfaces has another mean for that reason alone.  So that a network learns not to trust the
mean, training may mix the reference: every patch sees r = a·m + (1 − a)·Σ_k w_k c_k, m the source's mean, c_k the mean
over the training pixels of class k, a ~ U(0, 1), w ~ Dirichlet(concentration), one draw per patch.  The classes of
another scene do not have the source's means either: the mean of S deviations of training pixels from the mean of their
class, drawn at random, may be added to the mixture.

The mean is robust as it is.  Unit spectra have one length, so no pixel weighs more than another, however bright or
broken: one pixel of n moves the mean by 2/n at most.  Pixels without data are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NONE, MEAN, RATIO, STANDARDISE, HALF = "none", "mean", "ratio", "standardise", "half_standardise"
POWER = {STANDARDISE: 1.0, HALF: 0.5}       # of the deviation that is divided by
DARKEST = 0.05            # of the reference's root mean square: less is not divided by
FEW_PIXELS = 1000         # a mean of fewer is not to be trusted
ONE_SURFACE = 0.5         # of the source's spread: below, the scene may show one kind of surface alone


@dataclass(frozen=True)
class Reference:
    """What the spectra of a scene are seen against.

    mean, deviation  [B] float32, over the unit spectra of its pixels that hold data
    pixels           how many these are
    """

    mean: np.ndarray
    deviation: np.ndarray
    pixels: int

    @property
    def spread(self) -> float:
        """Root mean square distance of a unit spectrum from the mean."""
        return float(np.sqrt(np.square(self.deviation, dtype=np.float64).sum()))


def reference_of(cube: np.ndarray) -> Reference:
    """The reference of a cube [H, W, B] of unit spectra, zero where there is no data."""
    there = cube.any(axis=2)
    spectra = cube[there]
    return Reference(spectra.mean(0, dtype=np.float64).astype(np.float32),
                     spectra.std(0, dtype=np.float64).astype(np.float32), int(there.sum()))


def doubts(reference: Reference, source_spread: float | None) -> str | None:
    """Why a scene's reference is not to be trusted, if so.  source_spread: that of the scene trained on, if known."""
    if reference.pixels < FEW_PIXELS:
        return f"it has {reference.pixels} pixels with data"
    if source_spread and reference.spread < ONE_SURFACE * source_spread:
        return (f"its spectra differ {reference.spread / source_spread:.0%} as much as those of the scene trained on; "
                "it may show one kind of surface alone")
    return None


@dataclass(frozen=True)
class Mixture:
    """What is mixed into the reference while training.

    means          [K, B] float64, of the unit spectra of the training pixels, by class
    deviations     [M, B] float32, of every training pixel from the mean of its class
    concentration  of the weights' Dirichlet distribution
    pixels         S: how many deviations make one draw; 0: none
    """

    means: np.ndarray
    deviations: np.ndarray
    concentration: float
    pixels: int = 0

    def draw(self, n: int, mean: np.ndarray, numbers: np.random.Generator) -> np.ndarray:
        """n references [n, B] float32; mean [B]: the scene's own."""
        own = numbers.uniform(size=(n, 1))
        others = numbers.dirichlet(np.full(len(self.means), self.concentration), n) @ self.means               # [n, B]
        if self.pixels:
            others += self.deviations[numbers.integers(len(self.deviations), size=(n, self.pixels))].mean(1)
        return (own * mean + (1 - own) * others).astype(np.float32)


def mixture_of(cube: np.ndarray, centres: np.ndarray, labels: np.ndarray, concentration: float, pixels: int = 0
               ) -> Mixture:
    """The mixture of a cube [H, W, B] of unit spectra whose training pixels are centres [M, 2] with labels [M]."""
    spectra = cube[centres[:, 0], centres[:, 1]]
    _, labels = np.unique(labels, return_inverse=True)
    means = np.stack([spectra[labels == k].mean(0, dtype=np.float64) for k in range(labels.max() + 1)])
    return Mixture(means, (spectra - means[labels]).astype(np.float32), concentration, pixels)


def corrected(cube: np.ndarray, kind: str, reference: Reference) -> np.ndarray:
    """A cube [H, W, B] of unit spectra seen against a reference; a pixel without data stays zero."""
    if kind == NONE:
        return cube
    image = torch.from_numpy(cube).permute(2, 0, 1)[None]                                              # [1, B, H, W]
    seen = Correction(kind, reference, torch.device("cpu")).plain(image)
    return np.ascontiguousarray(seen[0].permute(1, 2, 0).numpy())


class Correction:
    """The correction of patches of one scene; without a mixture the reference is never mixed."""

    def __init__(self, kind: str, reference: Reference, device: torch.device, mixture: Mixture | None = None):
        self.kind, self.reference, self.mixture = kind, reference, mixture
        self.mean = torch.from_numpy(reference.mean).to(device)
        self.deviation = torch.from_numpy(reference.deviation).to(device)

    def plain(self, x: Tensor) -> Tensor:
        """Unit spectra [N, B, P, P] seen against the scene's own reference."""
        return against(x, self.kind, self.mean[None], self.deviation)

    def training(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """The same while training, every patch against a reference of its own.  `rng` is a generator on x's device."""
        return self.plain(x) if self.mixture is None else \
            against(x, self.kind, self.draw(len(x), rng), self.deviation)

    def draw(self, n: int, rng: torch.Generator) -> Tensor:
        """n mixed references: [n, B]."""
        seed = torch.empty(1, dtype=torch.int64, device=rng.device).random_(generator=rng).item()
        drawn = self.mixture.draw(n, self.reference.mean, np.random.default_rng(seed))
        return torch.from_numpy(drawn).to(self.mean.device)


def against(x: Tensor, kind: str, reference: Tensor, deviation: Tensor) -> Tensor:
    """Unit spectra x [N, B, P, P] seen against references [N or 1, B]; a pixel without data stays zero.

    kind: of the correction; deviation [B]: the scene's, which the kinds of POWER use.
    """
    there, r = x.any(1, keepdim=True), reference[:, :, None, None]
    if kind == RATIO:
        seen = x / torch.maximum(r, DARKEST * r.square().mean(1, keepdim=True).sqrt())
        seen = seen / seen.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    else:
        seen = x - r
        if kind in POWER:
            s = torch.maximum(deviation, DARKEST * deviation.mean())
            seen = seen * ((deviation.mean() / s) ** POWER[kind])[None, :, None, None]
    return seen * there
