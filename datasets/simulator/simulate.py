"""The simulated pair: two small airborne scenes with a domain gap of known physical parameters.

It has the seven classes and 48 bands of the Houston pair, needs no download, and its gap has one knob (severity).  The
chain is that of an imaging spectrometer: land -> material reflectance -> illumination and shading -> blur -> path
radiance -> gain -> noise -> digital numbers.  It serves tests, examples and tuning; a score on it says nothing about
published numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from scipy import ndimage

from datasets.scene import Scene
from datasets.simulator.land import CLASS_NAMES, LandCover, annotate, draw_land_cover
from datasets.simulator.materials import MATERIALS, Material, bell, mineral, vegetation, water_body
from datasets.writers import write_mat_v5, write_mat_v73
from model.errors import ConfigError

SHAPE = (150, 250)
WAVELENGTHS = np.linspace(380.0, 1050.0, 48)
MAX_SEVERITY = 3.0

_RGB_NM = (640.0, 550.0, 460.0)
_BLUR_PIXELS = 0.5          # standard deviation of the spatial point spread
_COUNTS = 24000.0           # digital numbers of a white, sunlit surface at the peak of the spectrum
_ROOFS = ("shingle", "tile", "membrane", "gravel", "sheet metal")
_PAVEMENTS = ("asphalt", "concrete")
_DUST = {"level": 0.20, "rise": 180.0, "slope": 1.22, "edge": 0.008, "iron": 0.02}         # grey film on roofs
_AGGREGATE = {"level": 0.22, "rise": 260.0, "slope": 1.20, "edge": 0.045, "iron": 0.06}    # stones of a worn road


@dataclass(frozen=True)
class DomainGap:
    """How a scene was observed and what state its materials are in.  The defaults are the source's values."""

    # radiometry: smooth in wavelength, the same for every pixel
    path_radiance: float = 0.006       # light scattered into the sensor, as reflectance at 550 nm
    haze_exponent: float = 2.5         # path radiance ~ wavelength ** -haze_exponent (4 = clean air, 1 = thick haze)
    sky_light: float = 0.12            # diffuse irradiance / direct irradiance at 550 nm
    water_vapour: float = 0.35         # relative depth of the 940 nm absorption band
    gain_tilt: float = 0.0             # relative gain at the last band, less 1 (linear from the first band)
    gain_ripple: float = 0.0           # amplitude of a smooth oscillation of the gain, relative
    band_shift_nm: float = 0.0         # true minus stated band centre, nm
    noise: float = 0.006               # noise / signal (1 / SNR) at the mean signal of a band
    # materials: different from object to object
    chlorophyll_loss: float = 0.0      # share of the chlorophyll lost in the mean (season, drought)
    canopy_dryness: float = 0.0        # share of the canopy's water lost in the mean
    litter: float = 0.0                # share of dry matter added to grass and crowns in the mean
    turbidity: float = 0.0             # relative increase of the sediment in lakes and ponds
    roof_dust: float = 0.05            # share of a roof covered with dust in the mean
    road_wear: float = 0.05            # share of a pavement's surface worn down to the stones in the mean


_GAP = DomainGap(path_radiance=0.017, haze_exponent=2.2, sky_light=0.16, water_vapour=0.45, gain_tilt=-0.08,
                 gain_ripple=0.013, band_shift_nm=1.6, noise=0.010, chlorophyll_loss=0.25, canopy_dryness=0.30,
                 litter=0.10, turbidity=0.8, roof_dust=0.35, road_wear=0.34)


def gap_at(severity: float) -> DomainGap:
    """The target's parameters: severity 0 = those of the source, 1 = the default gap, linear in between and beyond.

    Raises ConfigError outside 0..3 (beyond 3, shares would leave their range).
    """
    if not 0 <= severity <= MAX_SEVERITY:
        raise ConfigError(f"The severity of the simulated gap is {severity}. Use a number from 0 (no gap) to "
                          f"{MAX_SEVERITY:g}; 1 is the default.")
    nominal = DomainGap()
    return DomainGap(**{f.name: getattr(nominal, f.name) + severity * (getattr(_GAP, f.name) - getattr(nominal, f.name))
                        for f in fields(DomainGap)})


def _texture(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """[H, W] noise of unit variance, alike over about two pixels."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), 0.7, mode="wrap")
    return noise / noise.std()


def _parameters(material: Material, objects: np.ndarray, pixels: np.ndarray, rng: np.random.Generator
                ) -> dict[str, np.ndarray]:
    """Name -> [N, 1] drawn values for the N pixels of a material: one draw per object, one texture per pixel."""
    ids, member = np.unique(objects[pixels], return_inverse=True)
    return {name: (median * np.exp(between * rng.standard_normal(len(ids))[member]
                                   + within * _texture(objects.shape, rng)[pixels]))[:, None]
            for name, (median, between, within) in material.parameters.items()}


def _worn(reflectance: np.ndarray, film: dict[str, float], share: float, age: np.ndarray,
          wavelengths: np.ndarray) -> np.ndarray:
    """[N, B] reflectance with a film on it; age [N, 1] (mean 1) tells how much more or less than the mean share."""
    covered = 1 - (1 - share) ** age
    return (1 - covered) * reflectance + covered * mineral(wavelengths, **film)


def _reflectance(land: LandCover, gap: DomainGap, rng: np.random.Generator) -> np.ndarray:
    """[H, W, B] reflectance of the surface at the sensor's true band centres."""
    wavelengths = WAVELENGTHS + gap.band_shift_nm
    ages = rng.gamma(4.0, 0.25, land.objects.max() + 1)
    cube = np.zeros((*land.material.shape, len(wavelengths)))
    for index, (name, material) in enumerate(MATERIALS.items()):
        pixels = land.material == index
        values = _parameters(material, land.objects, pixels, rng)
        age = ages[land.objects[pixels]][:, None]
        if material.model is vegetation:
            values["chlorophyll"] = values["chlorophyll"] * (1 - gap.chlorophyll_loss) ** age
            values["canopy_water"] = values["canopy_water"] * (1 - gap.canopy_dryness) ** age
            values["litter"] = values["litter"] + gap.litter * age
        elif material.model is water_body:
            values["sediment"] = values["sediment"] * (1 + gap.turbidity * age)
        spectra = material.model(wavelengths, **values)
        if name in _ROOFS:
            spectra = _worn(spectra, _DUST, gap.roof_dust, age, wavelengths)
        elif name in _PAVEMENTS:
            spectra = _worn(spectra, _AGGREGATE, gap.road_wear, age, wavelengths)
        cube[pixels] = spectra
    return np.clip(cube, 0, 1)


def _sun(wavelengths: np.ndarray, water_vapour: float) -> np.ndarray:
    """[B] direct irradiance at the ground, 1 at its peak: Planck's curve of 5778 K behind ozone, oxygen and water."""
    micrometres = wavelengths / 1000
    planck = micrometres ** -5 / np.expm1(14387.8 / (micrometres * 5778))
    vapour = bell(wavelengths, 940, 22) + 0.35 * bell(wavelengths, 822, 12) + 0.20 * bell(wavelengths, 724, 10)
    ozone, oxygen = 0.05 * bell(wavelengths, 600, 50), 0.25 * bell(wavelengths, 762, 6)
    transmission = (1 - water_vapour * vapour) * (1 - ozone) * (1 - oxygen)
    scattered = np.exp(-0.10 * (550 / wavelengths) ** 4)
    irradiance = planck * transmission * scattered
    return irradiance / irradiance.max()


def _gain(gap: DomainGap) -> np.ndarray:
    """[B] relative response of the sensor: a silicon detector's efficiency, then the gap's tilt and ripple."""
    position = (WAVELENGTHS - WAVELENGTHS[0]) / (WAVELENGTHS[-1] - WAVELENGTHS[0])
    efficiency = 0.30 + 0.70 * bell(WAVELENGTHS, 680, 190)
    ripple = np.sin(2 * np.pi * (1.7 * position + 0.7))
    return efficiency * (1 + gap.gain_tilt * position) * (1 + gap.gain_ripple * ripple)


def _observe(reflectance: np.ndarray, sunlight: np.ndarray, gap: DomainGap, rng: np.random.Generator) -> np.ndarray:
    """[H, W, B] digital numbers (float32 holding integers of 0..65535) of a surface under the sun and the sky."""
    wavelengths = WAVELENGTHS + gap.band_shift_nm
    relief = ndimage.gaussian_filter(rng.standard_normal(sunlight.shape), 18, mode="wrap")      # slopes of the ground
    direct = sunlight * (1 + 0.06 * relief / relief.std())
    sun = _sun(wavelengths, gap.water_vapour)
    sky = gap.sky_light * (550 / wavelengths) ** 2.5 * sun
    radiance = reflectance * (direct[..., None] * sun + sky)
    radiance = ndimage.gaussian_filter(radiance, (_BLUR_PIXELS, _BLUR_PIXELS, 0))
    radiance += gap.path_radiance * (550 / wavelengths) ** gap.haze_exponent * sun
    signal = radiance * _gain(gap)
    spread = gap.noise * np.sqrt(signal * signal.mean(axis=(0, 1)))     # photon noise grows with the root of the signal
    counts = _COUNTS * (signal + spread * rng.standard_normal(signal.shape))
    return np.clip(np.rint(counts), 0, np.iinfo(np.uint16).max).astype(np.float32)


def simulate_scene(name: str, gap: DomainGap, seed: int, scene_index: int) -> Scene:
    """One scene under any gap: scene_index 0 has the land of the pair's source, 1 that of its target.

    Each purpose has its own generator, so that a change of one leaves the other draws alone.
    """
    rng_land, rng_labels, rng_materials, rng_sensor = (
        np.random.default_rng([seed, scene_index, purpose]) for purpose in range(4))
    land = draw_land_cover(SHAPE, rng_land)
    reflectance = _reflectance(land, gap, rng_materials)
    cube = _observe(reflectance, land.sunlight, gap, rng_sensor)
    rgb = tuple(int(np.abs(WAVELENGTHS - centre).argmin()) for centre in _RGB_NM)
    return Scene(name, cube, annotate(land, rng_labels), CLASS_NAMES, WAVELENGTHS.copy(), rgb)


def simulate_pair(severity: float = 1.0, seed: int = 0) -> tuple[Scene, Scene]:
    """Source and target scene (150 x 250 pixels, 48 bands, 7 classes) with a domain gap between them.

    severity  0 = the target differs from the source only in land and random draws, 1 = default, 2 = hard, up to 3
    seed      0 or positive; the same severity and seed give the same scenes, the source is the same at every severity
    Raises ConfigError if one is out of range.
    """
    gap = gap_at(severity)
    if seed < 0:
        raise ConfigError(f"The seed of the simulated pair is {seed}. Use 0 or a positive whole number.")
    return simulate_scene("SimSource", DomainGap(), seed, 0), simulate_scene("SimTarget", gap, seed, 1)


def write_pair(folder: str | Path, severity: float = 1.0, seed: int = 0) -> None:
    """Write the pair as scene files: SimSource.mat (v7.3) and SimTarget.mat (v5), key ori_data, uint16 [H, W, B], and
    SimSource_7gt.mat / SimTarget_7gt.mat, key map, uint8 [H, W].

    The folder is made where it is missing.  Same arguments, same bytes.  Raises what simulate_pair raises, before
    anything is written.
    """
    folder = Path(folder)
    source, target = simulate_pair(severity, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for scene, write in ((source, write_mat_v73), (target, write_mat_v5)):
        write(folder / f"{scene.name}.mat", {"ori_data": scene.cube.astype(np.uint16)})
        write(folder / f"{scene.name}_7gt.mat", {"map": scene.labels.astype(np.uint8)})
