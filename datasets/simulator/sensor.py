"""What the sensor makes of a surface: sun and sky, blur, surroundings, air, band responses, gain, noise, counts."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.linalg import expm

from datasets.simulator.gap import SOURCE_FWHM_NM, DomainGap
from datasets.simulator.materials import bell

WAVELENGTHS = np.linspace(380.0, 1050.0, 48)

_BLUR_PIXELS = 0.5          # standard deviation of the spatial point spread
_RELIEF_PIXELS = 18         # of the source: how far slopes of the ground are alike
_COUNTS = 24000.0           # digital numbers of a white, sunlit surface at the peak of the spectrum
_ANGSTROM = 1.3             # light of the surroundings ~ wavelength ** -1.3, as aerosol scatters
_FWHM = np.sqrt(8 * np.log(2))      # full width at half maximum / standard deviation


def sun(wavelengths: np.ndarray, water_vapour: float) -> np.ndarray:
    """[B] direct irradiance at the ground, 1 at its peak: Planck's curve of 5778 K behind ozone, oxygen and water."""
    micrometres = wavelengths / 1000
    planck = micrometres ** -5 / np.expm1(14387.8 / (micrometres * 5778))
    vapour = bell(wavelengths, 940, 22) + 0.35 * bell(wavelengths, 822, 12) + 0.20 * bell(wavelengths, 724, 10)
    ozone, oxygen = 0.05 * bell(wavelengths, 600, 50), 0.25 * bell(wavelengths, 762, 6)
    transmission = (1 - water_vapour * vapour) * (1 - ozone) * (1 - oxygen)
    scattered = np.exp(-0.10 * (550 / wavelengths) ** 4)
    irradiance = planck * transmission * scattered
    return irradiance / irradiance.max()


def gain(gap: DomainGap) -> np.ndarray:
    """[B] relative response of the sensor: a silicon detector's efficiency, then the gap's tilt and ripple."""
    position = (WAVELENGTHS - WAVELENGTHS[0]) / (WAVELENGTHS[-1] - WAVELENGTHS[0])
    efficiency = 0.30 + 0.70 * bell(WAVELENGTHS, 680, 190)
    ripple = np.sin(2 * np.pi * (gap.ripple_waves * position + gap.ripple_phase))
    return efficiency * (1 + gap.gain_tilt * position) * (1 + gap.gain_ripple * ripple)


def response(fwhm_nm: float) -> np.ndarray:
    """[B, B] what turns spectra (times it from the right) of the source's response width into those of another width.

    The difference of the two Gaussians' variances, as heat that spreads over the bands, or, for a narrower response,
    that runs back.  Sums of spectra stay as they are.
    """
    spacing = WAVELENGTHS[1] - WAVELENGTHS[0]
    second = np.diag(np.full(len(WAVELENGTHS), -2.0)) + np.eye(len(WAVELENGTHS), k=1) + np.eye(len(WAVELENGTHS), k=-1)
    second[0, 0] = second[-1, -1] = -1
    return expm(0.5 * (fwhm_nm ** 2 - SOURCE_FWHM_NM ** 2) / (_FWHM * spacing) ** 2 * second)


def surroundings(radiance: np.ndarray, width: float) -> np.ndarray:
    """[H, W, B] Gaussian mean of standard deviation `width` pixels, the scene mirrored at its edge."""
    rows, columns = (ndimage.gaussian_filter1d(np.eye(size), width, axis=0, mode="reflect")
                     for size in radiance.shape[:2])
    return columns @ np.tensordot(rows, radiance, 1)


def block_mean(values: np.ndarray, samples: int) -> np.ndarray:
    """[H·samples, W·samples, B] -> [H, W, B], the mean over the samples of a pixel."""
    height, width, bands = values.shape
    return values.reshape(height // samples, samples, width // samples, samples, bands).mean(axis=(1, 3))


def observe(reflectance: np.ndarray, sunlight: np.ndarray, gap: DomainGap, rng: np.random.Generator,
            samples: int = 1) -> np.ndarray:
    """[H, W, B] digital numbers (float32 holding integers of 0..65535) of a surface under the sun and the sky.

    The surface has samples × samples points in each pixel: reflectance [H·samples, W·samples, B], sunlight [H·samples,
    W·samples].
    """
    wavelengths = WAVELENGTHS + gap.band_shift_nm
    alike = _RELIEF_PIXELS * samples / gap.pixel_size
    relief = ndimage.gaussian_filter(rng.standard_normal(sunlight.shape), alike, mode="wrap")   # slopes of the ground
    direct = sunlight * (1 + 0.06 * relief / relief.std())
    light = sun(wavelengths, gap.water_vapour)
    sky = gap.sky_light * (550 / wavelengths) ** 2.5 * light
    radiance = reflectance * (direct[..., None] * light + sky)
    if samples > 1:
        radiance = block_mean(radiance, samples)
    radiance = ndimage.gaussian_filter(radiance, (_BLUR_PIXELS, _BLUR_PIXELS, 0))
    if gap.adjacency:
        share = gap.adjacency * (550 / wavelengths) ** _ANGSTROM
        radiance += share * (surroundings(radiance, gap.adjacency_width / gap.pixel_size) - radiance)
    radiance += gap.path_radiance * (550 / wavelengths) ** gap.haze_exponent * light
    if gap.fwhm_nm != SOURCE_FWHM_NM:
        radiance = radiance @ response(gap.fwhm_nm)
    signal = radiance * gain(gap)
    spread = gap.noise * np.sqrt(signal * signal.mean(axis=(0, 1)))     # photon noise grows with the root of the signal
    counts = _COUNTS * (signal + spread * rng.standard_normal(signal.shape))
    return np.clip(np.rint(counts), 0, np.iinfo(np.uint16).max).astype(np.float32)
