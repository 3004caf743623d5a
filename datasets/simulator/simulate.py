"""The simulated pair: two small airborne scenes with a domain gap of known physical parameters.

It has the seven classes and 48 bands of the Houston pair, needs no download, and its gap has one knob (severity).  The
chain is that of an imaging spectrometer: land -> material reflectance -> illumination and shading -> pixels -> blur ->
surroundings -> path radiance -> band responses -> gain -> noise -> digital numbers.  It serves tests, examples and
tuning; a score on it says nothing about published numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from datasets.scene import Scene
from datasets.simulator.canvas import CLASS_NAMES
from datasets.simulator.gap import DomainGap, as_yaml, target_gap
from datasets.simulator.land import LandCover, annotate, draw_land_cover
from datasets.simulator.materials import MATERIALS, Material, mineral, vegetation, water_body
from datasets.simulator.sensor import WAVELENGTHS, observe
from datasets.writers import write_mat_v5, write_mat_v73

SHAPE = (150, 250)

_RGB_NM = (640.0, 550.0, 460.0)
_ALIKE_PIXELS = 0.7         # standard deviation of the ground's texture, in the source's pixels
_ROOFS = ("shingle", "tile", "membrane", "gravel", "sheet metal")
_PAVEMENTS = ("asphalt", "concrete")
_DUST = {"level": 0.20, "rise": 180.0, "slope": 1.22, "edge": 0.008, "iron": 0.02}         # grey film on roofs
_AGGREGATE = {"level": 0.22, "rise": 260.0, "slope": 1.20, "edge": 0.045, "iron": 0.06}    # stones of a worn road


def _texture(shape: tuple[int, int], step: float, rng: np.random.Generator) -> np.ndarray:
    """[H, W] noise of unit variance, alike over about two pixels of the source; larger steps see less of it, as they
    average it."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), _ALIKE_PIXELS / min(step, 1.0), mode="wrap")
    return noise / noise.std() / max(step, 1.0)


def _parameters(material: Material, medians: dict[str, float], objects: np.ndarray, pixels: np.ndarray, step: float,
                rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Name -> [N, 1] drawn values for the N pixels of a material: one draw per object, one texture per pixel."""
    ids, member = np.unique(objects[pixels], return_inverse=True)
    return {name: (medians[name] * np.exp(between * rng.standard_normal(len(ids))[member]
                                          + within * _texture(objects.shape, step, rng)[pixels]))[:, None]
            for name, (_, between, within) in material.parameters.items()}


def _worn(reflectance: np.ndarray, film: dict[str, float], share: float, age: np.ndarray,
          wavelengths: np.ndarray) -> np.ndarray:
    """[N, B] reflectance with a film on it; age [N, 1] (mean 1) tells how much more or less than the mean share."""
    covered = 1 - (1 - share) ** age
    return (1 - covered) * reflectance + covered * mineral(wavelengths, **film)


def _reflectance(land: LandCover, gap: DomainGap, rng: np.random.Generator, step: float = 1.0) -> np.ndarray:
    """[H, W, B] reflectance of the surface, seen every `step`, at the sensor's true band centres."""
    wavelengths = WAVELENGTHS + gap.band_shift_nm
    ages = rng.gamma(4.0, 0.25, land.objects.max() + 1)
    cube = np.zeros((*land.material.shape, len(wavelengths)))
    for index, (name, material) in enumerate(MATERIALS.items()):
        pixels = land.material == index
        medians = {key: median * gap.medians.get(f"{name} {key}", 1.0)
                   for key, (median, _, _) in material.parameters.items()}
        values = _parameters(material, medians, land.objects, pixels, step, rng)
        age = ages[land.objects[pixels]][:, None]
        if material.model is vegetation:
            values["chlorophyll"] = values["chlorophyll"] * (1 - gap.chlorophyll_loss) ** age
            values["canopy_water"] = values["canopy_water"] * (1 - gap.canopy_dryness) ** age
            values["litter"] = np.maximum(values["litter"] + gap.litter * age, 0)
        elif material.model is water_body:
            values["sediment"] = values["sediment"] * np.maximum(1 + gap.turbidity * age, 0.1)
        spectra = material.model(wavelengths, **values)
        if name in _ROOFS:
            spectra = _worn(spectra, _DUST, gap.roof_dust, age, wavelengths)
        elif name in _PAVEMENTS:
            spectra = _worn(spectra, _AGGREGATE, gap.road_wear, age, wavelengths)
        cube[pixels] = spectra
    return np.clip(cube, 0, 1)


def simulate_scene(name: str, gap: DomainGap, seed: int, scene_index: int) -> Scene:
    """One scene under any gap: scene_index 0 has the land of the pair's source, 1 that of its target.

    Each purpose has its own generator, so that a change of one leaves the other draws alone.
    """
    rng_land, rng_labels, rng_materials, rng_sensor = (
        np.random.default_rng([seed, scene_index, purpose]) for purpose in range(4))
    samples = max(1, round(gap.pixel_size))             # a larger pixel is the mean of several points of the ground
    step = gap.pixel_size / samples
    land = draw_land_cover((SHAPE[0] * samples, SHAPE[1] * samples), rng_land, gap, step)
    reflectance = _reflectance(land, gap, rng_materials, step)
    cube = observe(reflectance, land.sunlight, gap, rng_sensor, samples)
    rgb = tuple(int(np.abs(WAVELENGTHS - centre).argmin()) for centre in _RGB_NM)
    return Scene(name, cube, annotate(land, rng_labels, samples), CLASS_NAMES, WAVELENGTHS.copy(), rgb)


def simulate_pair(severity: float = 1.0, seed: int = 0, kind: str = "fixed") -> tuple[Scene, Scene]:
    """Source and target scene (150 x 250 pixels, 48 bands, 7 classes) with a domain gap between them.

    severity  0 = the target differs from the source only in land and random draws, 1 = default, 2 = hard, up to 3
    seed      0 or positive; the same arguments give the same scenes, the source is the same at every severity and kind
    kind      the gap is the same `fixed` one for all seeds, or `drawn` by each (see drawn_gap)
    Raises ConfigError if one is out of range.
    """
    gap = target_gap(kind, severity, seed)
    return simulate_scene("SimSource", DomainGap(), seed, 0), simulate_scene("SimTarget", gap, seed, 1)


def write_pair(folder: str | Path, severity: float = 1.0, seed: int = 0, kind: str = "fixed") -> None:
    """Write the pair as scene files: SimSource.mat (v7.3) and SimTarget.mat (v5), key ori_data, uint16 [H, W, B], and
    SimSource_7gt.mat / SimTarget_7gt.mat, key map, uint8 [H, W]; beside a drawn pair its parameters, gap.yaml.

    The folder is made where it is missing.  Same arguments, same bytes.  Raises what simulate_pair raises, before
    anything is written.
    """
    folder = Path(folder)
    source, target = simulate_pair(severity, seed, kind)
    folder.mkdir(parents=True, exist_ok=True)
    for scene, write in ((source, write_mat_v73), (target, write_mat_v5)):
        write(folder / f"{scene.name}.mat", {"ori_data": scene.cube.astype(np.uint16)})
        write(folder / f"{scene.name}_7gt.mat", {"map": scene.labels.astype(np.uint8)})
    if kind == "drawn":
        (folder / "gap.yaml").write_text(as_yaml(target_gap(kind, severity, seed)), encoding="utf-8")
