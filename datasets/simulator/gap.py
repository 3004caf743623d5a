"""What separates the two scenes of a simulated pair: one fixed gap, or one that each pair draws from RANGES.

docs/data.md, "Drawn pairs", has the table of the ranges and where they come from; a test holds it to RANGES.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import yaml

from datasets.simulator.materials import MATERIALS
from model.errors import ConfigError

MAX_SEVERITY = 3.0
SOURCE_FWHM_NM = 14.0       # response width that the material and atmosphere models include


@dataclass(frozen=True)
class DomainGap:
    """How a scene was observed, what state its materials are in, and what stands in it.  The defaults are the source's.
    """

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
    chlorophyll_loss: float = 0.0      # share of the chlorophyll lost in the mean (season, drought); below 0: gained
    canopy_dryness: float = 0.0        # share of the canopy's water lost in the mean; below 0: gained
    litter: float = 0.0                # share of dry matter added to grass and crowns in the mean
    turbidity: float = 0.0             # relative increase of the sediment in lakes and ponds
    roof_dust: float = 0.05            # share of a roof covered with dust in the mean
    road_wear: float = 0.05            # share of a pavement's surface worn down to the stones in the mean
    # what only a drawn gap changes
    ripple_waves: float = 1.7          # waves of the gain's oscillation over the bands
    ripple_phase: float = 0.7          # its phase at the first band, in waves
    fwhm_nm: float = SOURCE_FWHM_NM    # full width at half maximum of a band's Gaussian response, nm
    adjacency: float = 0.0             # share of a pixel's light that comes from its surroundings, at 550 nm
    adjacency_width: float = 15.0      # standard deviation of those surroundings, in the source's pixels
    pixel_size: float = 1.0            # side of a pixel, in the source's pixels
    medians: Mapping[str, float] = field(default_factory=dict)     # "asphalt level": factor on the parameter's median
    shares: Mapping[str, float] = field(default_factory=dict)      # block kind or material: factor on how often
    missing: tuple[str, ...] = ()                                  # block kinds and materials that the scene lacks


FIXED = {"path_radiance": 0.017, "haze_exponent": 2.2, "sky_light": 0.16, "water_vapour": 0.45, "gain_tilt": -0.08,
         "gain_ripple": 0.013, "band_shift_nm": 1.6, "noise": 0.010, "chlorophyll_loss": 0.25, "canopy_dryness": 0.30,
         "litter": 0.10, "turbidity": 0.8, "roof_dust": 0.35, "road_wear": 0.34}          # the fixed gap at severity 1


@dataclass(frozen=True)
class Range:
    """A parameter's values at severity 1, drawn evenly from low..high, and the bounds that hold at every severity.

    add      low, high are added to the source's value, times the severity
    times    low, high multiply the source's value, to the power of the severity (drawn evenly in the logarithm)
    any      low..high holds whatever the severity
    """

    kind: str
    low: float
    high: float
    least: float
    most: float

    def at(self, place: float, source: float, severity: float) -> float:
        """The value at a place 0..1 of the range."""
        low, high = np.log((self.low, self.high)) if self.kind == "times" else (self.low, self.high)
        value = low + place * (high - low)
        if self.kind != "any":
            value = source * np.exp(severity * value) if self.kind == "times" else source + severity * value
        return float(np.clip(value, self.least, self.most))


RANGES = {
    "path_radiance": Range("times", 0.4, 3.5, 0.001, 0.06),
    "haze_exponent": Range("add", -0.6, 0.6, 1.0, 4.0),
    "sky_light": Range("times", 0.6, 1.7, 0.03, 0.6),
    "water_vapour": Range("add", -0.15, 0.15, 0.05, 0.8),
    "gain_tilt": Range("add", -0.12, 0.12, -0.4, 0.4),
    "gain_ripple": Range("add", 0.0, 0.03, 0.0, 0.09),
    "ripple_waves": Range("any", 0.5, 3.0, 0.5, 3.0),
    "ripple_phase": Range("any", 0.0, 1.0, 0.0, 1.0),
    "band_shift_nm": Range("add", -2.0, 2.0, -6.0, 6.0),
    "noise": Range("times", 0.6, 2.0, 0.002, 0.03),
    "chlorophyll_loss": Range("add", -0.30, 0.30, -0.8, 0.8),
    "canopy_dryness": Range("add", -0.35, 0.35, -0.8, 0.8),
    "litter": Range("add", -0.05, 0.12, -0.15, 0.4),
    "turbidity": Range("add", -0.3, 0.9, -0.8, 3.0),
    "roof_dust": Range("add", -0.05, 0.30, 0.0, 0.9),
    "road_wear": Range("add", -0.05, 0.30, 0.0, 0.9),
    "fwhm_nm": Range("times", 0.9, 1.4, 10.0, 40.0),
    "adjacency": Range("add", 0.0, 0.12, 0.0, 0.4),
    "adjacency_width": Range("any", 5.0, 40.0, 5.0, 40.0),
    "pixel_size": Range("times", 0.71, 1.41, 0.5, 2.0),
}
MEDIANS = 0.6               # spread of a drawn median at severity 1, in the spreads between a material's objects
MEDIANS_MOST = 2.0          # its bound at every severity, in the same unit
SHARES = 0.35               # spread of the logarithm of a drawn share at severity 1
SHARES_MOST = 1.2           # its bound at every severity
MISSING_FROM = ((0.3, 2.0), (1.2, 3.5))     # severities from which the first and the second surface are missing
MIXED = ("residential", "commercial", "fields", "grove", "lake", "park", "shingle", "tile", "membrane", "gravel",
         "sheet metal", "asphalt", "concrete", "healthy grass", "stressed grass")
MISSABLE = (("shingle", "tile"), ("membrane", "gravel", "sheet metal"), ("asphalt", "concrete"),
            ("healthy grass", "stressed grass"), ("tree",), ("water",), ("residential",), ("commercial",))   # one of each
_PURPOSE, _STRATA_PURPOSE = 4, 5            # of the draws; 0 to 3 are those of simulate_scene
_STRATA = 10


def target_gap(kind: str, severity: float, seed: int) -> DomainGap:
    """The target's parameters: those of the one `fixed` gap, or those `drawn` for this pair.  Raises ConfigError for a
    severity outside 0..3, a negative seed or another kind."""
    if seed < 0:
        raise ConfigError(f"The seed of the simulated pair is {seed}. Use 0 or a positive whole number.")
    if kind not in ("fixed", "drawn"):
        raise ConfigError(f"The gap of the simulated pair is '{kind}'. Use fixed or drawn.")
    return gap_at(severity) if kind == "fixed" else drawn_gap(severity, seed)


def gap_at(severity: float) -> DomainGap:
    """The fixed gap: severity 0 = the source's values, 1 = the default gap, linear in between and beyond.

    Raises ConfigError outside 0..3 (beyond 3, shares would leave their range).
    """
    _check(severity)
    nominal = DomainGap()
    return replace(nominal, **{name: getattr(nominal, name) + severity * (value - getattr(nominal, name))
                               for name, value in FIXED.items()})


def drawn_gap(severity: float, seed: int) -> DomainGap:
    """A pair's own gap: severity 0 = the source's values, 1 = typical, 2 = hard, 3 = extreme.

    A seed stands for one direction; the severity says how far it is followed.  Seeds 0 to 9, 10 to 19, … cover each of
    RANGES evenly.  Every parameter has generators of its own, so that one more leaves its draws alone.  Raises
    ConfigError outside 0..3.
    """
    _check(severity)
    nominal = DomainGap()
    if severity == 0:
        return nominal
    values = {name: one.at(_even(seed, name), getattr(nominal, name), severity) for name, one in RANGES.items()}
    spreads = {f"{material} {name}": between for material, model in MATERIALS.items()
               for name, (_, between, _) in model.parameters.items()}
    medians = {name: between * _normal(seed, name, MEDIANS * severity, MEDIANS_MOST)
               for name, between in spreads.items()}
    shares = {name: _normal(seed, name, SHARES * severity, SHARES_MOST) for name in MIXED}
    return DomainGap(**values, missing=_missing(severity, seed), medians=_exponentials(medians),
                     shares=_exponentials(shares))


def as_yaml(gap: DomainGap) -> str:
    """The parameters as a YAML file."""
    return yaml.safe_dump(asdict(gap) | {"missing": list(gap.missing)}, sort_keys=False)


def _check(severity: float) -> None:
    if not 0 <= severity <= MAX_SEVERITY:
        raise ConfigError(f"The severity of the simulated gap is {severity}. Use a number from 0 (no gap) to "
                          f"{MAX_SEVERITY:g}; 1 is the default.")


def _generator(seed: int, name: str, purpose: int = _PURPOSE) -> np.random.Generator:
    return np.random.default_rng([seed, purpose, zlib.crc32(name.encode())])


def _even(seed: int, name: str) -> float:
    """A draw from U(0, 1); those of ten seeds lie in ten different tenths (a Latin hypercube over the names)."""
    ten, one = divmod(seed, _STRATA)
    tenth = _generator(ten, name, _STRATA_PURPOSE).permutation(_STRATA)[one]
    return float(tenth + _generator(seed, name).random()) / _STRATA


def _normal(seed: int, name: str, spread: float, most: float) -> float:
    return float(np.clip(spread * _generator(seed, name).standard_normal(), -most, most))


def _exponentials(logarithms: dict[str, float]) -> dict[str, float]:
    return {name: float(np.exp(value)) for name, value in logarithms.items()}


def _missing(severity: float, seed: int) -> tuple[str, ...]:
    """None, one or two surfaces, of different groups of MISSABLE: what is missing stays so at higher severities."""
    first = int(len(MISSABLE) * _even(seed, "first missing"))
    second = (first + 1 + int((len(MISSABLE) - 1) * _even(seed, "second missing"))) % len(MISSABLE)
    names = [str(_generator(seed, "missing").choice(MISSABLE[group])) for group in (first, second)]
    from_first, from_second = (low + _even(seed, f"severity {low}") * (high - low) for low, high in MISSING_FROM)
    return tuple(name for name, least in zip(names, (from_first, max(from_first, from_second))) if severity >= least)
