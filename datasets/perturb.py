"""Held-out source patches as other flights might have seen them: what the selection rule `shifted-source` scores.

Ten views: five physical perturbations, each at two strengths.  The spectra that preprocessing scaled to unit length get
their brightness back, are perturbed as radiance, clipped at zero and scaled to unit length again; a zero spectrum (no
data) stays zero.  What is added (path radiance, noise) therefore weighs more in dark pixels, as it does in flight.

    gain           a smooth factor of zero mean logarithm over the bands: another calibration, another light
    tilt           exp(±size·position), position 0..1 from the shortest to the longest wavelength
    path_radiance  size times the band's mean signal times (wavelength / 550 nm)^-a, a from 2 (haze) to 4 (clean air);
                   the mean signal carries sun and detector, which colour scattered light as they colour the ground's
    noise          size·sqrt(signal · mean signal of the band)·N(0, 1), photon noise as datasets/simulator has it
    band_shift     every band reads what lies ±size nm beside it, by linear interpolation; the end bands are held

A gain, a haze or a shift belongs to a flight, not to a pixel.  So there are eight imagined flights (eight gain curves,
both signs of tilt and shift, exponents from 2 to 4), and held-out pixel number i is seen from flight i mod 8, the same
for its whole patch.  Noise is drawn per value.  All draws come from generators with seeds of their own: they are the
same in every run, epoch and seed and on every machine, so that scores of different runs can be compared.

Sizes.  'weak' and 'strong' are the gap of the simulated pair at severity 1 and 2, effect by effect (tests/test_perturb
holds them to datasets/simulator): what its light and detector do together gives the tilt (the straight line in the
logarithm of their ratio) and the gain (the rest's root mean square); path radiance is related to the source's mean
signal at 550 nm; noise adds to the source's own in squares.  For comparison, in-flight checks of scanners against the
ground found radiances to be wrong by up to 7 to 20 % (Markham et al., Proc. SPIE 1493, 1991), and under 4 % for a good
instrument of today (AVIRIS-NG over desert sites, Adv. Space Res. 2024).  No target score had a part in them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from datasets.correction import NONE, Correction, reference_of
from datasets.harmonize import hot
from datasets.patches import PatchSampler, place
from datasets.scene import Scene

log = logging.getLogger(__name__)

SIZES = {"gain": (0.03, 0.065),             # kind -> weak, strong; root mean square of the log gain
         "tilt": (0.18, 0.36),              # log gain of the last band against the first
         "path_radiance": (0.064, 0.128),   # share of the mean signal at 550 nm
         "noise": (0.008, 0.0126),          # noise / signal at the mean signal of a band
         "band_shift": (1.6, 3.2)}          # nm
VIEWS = {f"{kind}_{word}": (kind, size) for kind, sizes in SIZES.items()
         for word, size in zip(("weak", "strong"), sizes)}

MOST_PIXELS = 1024                          # held-out pixels that are scored
REFERENCE_PIXELS = 4096                     # of the scene, for the mean that a scene correction takes out
FLIGHTS = 8
GAIN_SEED, NOISE_SEED = 550, 551
GAIN_WAVES = 3                              # whole waves over the bands that make up a gain curve, 1/w each
HAZE_EXPONENTS = (2.0, 4.0)
REFERENCE_NM = 550.0
ASSUMED_NM = (400.0, 1000.0)                # first and last band of a scene whose wavelengths are unknown
PLAUSIBLE_NM = (100.0, 30000.0)


class Perturbations:
    """The perturbations for the bands of one scene.

    Radiance is in units of the scene's mean brightness, [N, P, P, B] (bands last); flight [N] tells from which of the
    flights 0..FLIGHTS-1 each patch is seen; normals [N, P, P, B] are N(0, 1).
    """

    def __init__(self, wavelengths: np.ndarray, mean: np.ndarray, device: torch.device):
        """wavelengths [B] in nm, in any order; mean [B]: mean signal of each band, in units of the mean brightness."""
        self.wavelengths, self.device = np.asarray(wavelengths, np.float64), device
        span = np.ptp(self.wavelengths) or 1.0
        position = (self.wavelengths - self.wavelengths.min()) / span
        exponents = np.linspace(*HAZE_EXPONENTS, FLIGHTS)[:, None]
        self.signs = np.where(np.arange(FLIGHTS) % 2, 1.0, -1.0)
        self.mean = self._tensor(mean)                                                                          # [B]
        self.log_gain = self._tensor(gain_curves(position))                                            # [FLIGHTS, B]
        self.slope = self._tensor(self.signs[:, None] * position)                                      # [FLIGHTS, B]
        self.haze = self._tensor(mean * (self.wavelengths / REFERENCE_NM) ** -exponents)               # [FLIGHTS, B]
        self.kinds = {"gain": self.gain, "tilt": self.tilt, "path_radiance": self.path_radiance, "noise": self.noise,
                      "band_shift": self.band_shift}

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.float32)).to(self.device)

    def see(self, kind: str, size: float, radiance: Tensor, flight: Tensor, normals: Tensor) -> Tensor:
        """Unit spectra of the perturbed radiance, [N, P, P, B]; zero where the radiance was."""
        seen = self.kinds[kind](size, radiance, flight, normals).clamp_min(0)
        seen = seen * radiance.any(-1, keepdim=True)
        return seen / seen.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(seen.dtype).tiny)

    def gain(self, size: float, radiance: Tensor, flight: Tensor, normals: Tensor) -> Tensor:
        return radiance * (size * self.log_gain[flight]).exp()[:, None, None]

    def tilt(self, size: float, radiance: Tensor, flight: Tensor, normals: Tensor) -> Tensor:
        return radiance * (size * self.slope[flight]).exp()[:, None, None]

    def path_radiance(self, size: float, radiance: Tensor, flight: Tensor, normals: Tensor) -> Tensor:
        return radiance + (size * self.haze[flight])[:, None, None]

    def noise(self, size: float, radiance: Tensor, flight: Tensor, normals: Tensor) -> Tensor:
        return radiance + size * (radiance.clamp_min(0) * self.mean).sqrt() * normals

    def band_shift(self, size: float, radiance: Tensor, flight: Tensor, normals: Tensor) -> Tensor:
        lower, upper, weight = (torch.from_numpy(np.stack(rows)).to(self.device)[flight][:, None, None] for rows in
                                zip(*(neighbours(self.wavelengths, sign * size) for sign in self.signs)))
        below, above = (radiance.gather(-1, index.expand(radiance.shape)) for index in (lower, upper))
        return below + weight * (above - below)


def gain_curves(position: np.ndarray) -> np.ndarray:
    """[FLIGHTS, B] smooth log gains of root mean square 1 (over evenly spaced bands) at positions [B] in 0..1:
    sqrt(2 / Σ w⁻²)·Σ_w cos(2π w position + φ_w) / w, w = 1..GAIN_WAVES, φ ~ U(0, 2π)."""
    waves = np.arange(1, GAIN_WAVES + 1)[:, None]
    phase = np.random.default_rng(GAIN_SEED).uniform(0, 2 * np.pi, (FLIGHTS, GAIN_WAVES, 1))
    curves = (np.cos(2 * np.pi * waves * position + phase) / waves).sum(1)
    return np.sqrt(2 / (1 / waves ** 2).sum()) * curves


def neighbours(wavelengths: np.ndarray, shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bands below and above wavelengths [B] + shift (nm), and the weight of the upper one, [B] each."""
    order, last = np.argsort(wavelengths, kind="stable"), max(len(wavelengths) - 2, 0)
    place = np.interp(wavelengths + shift, wavelengths[order], np.arange(len(wavelengths)))
    below = np.minimum(place.astype(np.int64), last)
    above = np.minimum(below + 1, len(wavelengths) - 1)
    return order[below], order[above], (place - below).astype(np.float32)


def brightness(cube: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What preprocessing divides out, and the scene's mean signal: [H, W, B] -> [H, W] float32, the L2 norm of each
    spectrum in units of its mean over the pixels that are not zero, and [B], the mean of those spectra in that unit.

    Hot pixels count as zero in the means and are as bright as the mean."""
    norm = np.sqrt(np.einsum("hwb,hwb->hw", cube, cube, dtype=np.float64))
    if (broken := hot(norm)).any():
        cube, norm = np.where(broken[..., None], 0, cube), np.where(broken, 0, norm)
    there = norm > 0
    mean = norm[there].mean()
    band_mean = cube.mean(axis=(0, 1), dtype=np.float64) * there.size / there.sum()
    return np.where(broken, 1, norm / mean).astype(np.float32), np.maximum(band_mean / mean, 0)


def wavelengths_of(scene: Scene) -> np.ndarray:
    """[B] wavelengths in nm; evenly spaced ones where the scene has none that can be in nm."""
    known, (low, high) = scene.wavelengths, PLAUSIBLE_NM
    if known is not None:
        if np.all((np.asarray(known) >= low) & (np.asarray(known) <= high)):
            return np.asarray(known, np.float64)
        log.warning("%s: wavelengths from %g to %g cannot be nm. The perturbations of shifted-source take its bands as "
                    "%g to %g nm; mend its scene file.", scene.name, np.min(known), np.max(known), *ASSUMED_NM)
    return np.linspace(*ASSUMED_NM, scene.bands)


class ShiftedSource:
    """Held-out source patches under every view.

    At most MOST_PIXELS pixels, evenly spread over the sampler's list; they are perturbed batch by batch, so that no
    perturbed copy of the scene ever exists.
    """

    def __init__(self, held_out: PatchSampler, scene: Scene, correction: str = NONE):
        """held_out: patches of unit spectra; scene: as it was read, which knows the brightness; correction: the scene
        correction that every view gets, against the mean of the scene as this view's flights see it."""
        plane, mean = brightness(scene.cube)
        device, count = held_out.cube.device, len(held_out)
        index = np.linspace(0, count - 1, min(count, MOST_PIXELS)).round().astype(np.int64)
        centres, labels = held_out.centres.cpu().numpy()[index], held_out.labels.cpu().numpy()[index]
        self.spectra, self.brightness = (
            PatchSampler(cube, centres, labels, held_out.patch_size, held_out.backend)
            for cube in (held_out.cube, place(plane[..., None], device)))
        self.perturbations = Perturbations(wavelengths_of(scene), mean, device)
        self.corrections = self._corrections(correction, plane) if correction != NONE else None

    def _corrections(self, kind: str, plane: np.ndarray) -> dict[str, list[Correction]]:
        """Of every view, one per flight, from REFERENCE_PIXELS pixels that hold data: what they see of the scene."""
        cube, device = self.spectra.cube, self.spectra.cube.device
        there = np.argwhere(cube.any(0).cpu().numpy())
        rows, columns = there[np.linspace(0, len(there) - 1, min(len(there), REFERENCE_PIXELS)).round().astype(int)].T
        spectra = cube[:, rows, columns].T * torch.from_numpy(plane[rows, columns]).to(device)[:, None]
        radiance = spectra[:, None, None]                                                            # [N, 1, 1, B]
        normals = torch.from_numpy(np.random.default_rng(NOISE_SEED + 1).standard_normal(tuple(radiance.shape),
                                                                                         dtype=np.float32)).to(device)
        found: dict[str, list[Correction]] = {}
        for view, (effect, size) in VIEWS.items():
            seen = (self.perturbations.see(effect, size, radiance, torch.full((len(radiance),), flight, device=device),
                                           normals).cpu().numpy()[:, 0] for flight in range(FLIGHTS))
            found[view] = [Correction(kind, reference_of(image), device) for image in seen]
        return found

    def _corrected(self, view: str, x: Tensor, flight: Tensor) -> Tensor:
        """Unit spectra [N, B, P, P] of a view against what each one's flight sees of the scene."""
        if self.corrections is None:
            return x
        seen = torch.empty_like(x)
        for number, correction in enumerate(self.corrections[view]):
            seen[flight == number] = correction.plain(x[flight == number])
        return seen

    def __len__(self) -> int:
        return len(self.spectra)

    def batches(self, batch_size: int) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Every view of every batch: (view's name, x [N, B, P, P] as the network sees them, y [N]).  What a pixel
        looks like does not depend on the batch size."""
        rng, first = np.random.default_rng(NOISE_SEED), 0
        for (x, y), (plane, _) in zip(self.spectra.in_order(batch_size), self.brightness.in_order(batch_size)):
            radiance = (x * plane).permute(0, 2, 3, 1)                                                   # [N, P, P, B]
            flight = torch.arange(first, first + len(x), device=x.device) % FLIGHTS
            normals = torch.from_numpy(rng.standard_normal(tuple(radiance.shape), dtype=np.float32)).to(x.device)
            for name, (kind, size) in VIEWS.items():
                seen = self.perturbations.see(kind, size, radiance, flight, normals).permute(0, 3, 1, 2)
                yield name, self._corrected(name, seen, flight), y
            first += len(x)
