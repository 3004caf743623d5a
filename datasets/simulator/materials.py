"""Parametric reflectance of the materials of the simulated scenes (380-1050 nm).

The models are textbook shapes, not measurements: absorption features at their known wavelengths (chlorophyll 440 and
680 nm, liquid water 970 nm, ferric iron 880 nm, aluminium 830 nm) on smooth continua.  Widths include the response of
a sensor with bands about 14 nm wide.  Every function takes wavelengths [B] in nm and parameters [N, 1] and returns
reflectance [N, B] in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def bell(wavelengths: np.ndarray, centre: float, width: float) -> np.ndarray:
    """[B] Gaussian feature of height 1 (centre and standard deviation in nm)."""
    return np.exp(-0.5 * ((wavelengths - centre) / width) ** 2)


def step(wavelengths: np.ndarray, centre: float, width: float) -> np.ndarray:
    """[B] logistic step from 0 to 1 (centre and width in nm)."""
    return 1 / (1 + np.exp(-(wavelengths - centre) / width))


def chlorophyll_absorption(wavelengths: np.ndarray) -> np.ndarray:
    """[B] relative absorption of leaf pigments: 1 at 680 nm, a window at 550 nm, gone beyond 750 nm."""
    blue = 1.05 * bell(wavelengths, 440, 48)
    orange = 0.30 * bell(wavelengths, 625, 38)
    red = 0.62 * bell(wavelengths, 678, 19)
    shoulder = 0.34 * (1 - step(wavelengths, 706, 8))
    return blue + orange + red + shoulder


def dry_matter(wavelengths: np.ndarray) -> np.ndarray:
    """[B] reflectance of straw and litter: a steady rise without a red edge."""
    return 0.42 * (1 - np.exp(-(wavelengths - 340) / 330))


def vegetation(wavelengths: np.ndarray, chlorophyll: np.ndarray, plateau: np.ndarray, canopy_water: np.ndarray,
               litter: np.ndarray) -> np.ndarray:
    """Canopy after Beer and Lambert, mixed with litter.

    chlorophyll  optical depth at 680 nm: more of it deepens the red well and moves the red edge to longer wavelengths
    plateau      near-infrared reflectance of the green canopy
    canopy_water optical depth of the liquid-water feature at 970 nm
    litter       share of the pixel covered by dry matter (values above 0.95 count as 0.95)
    """
    water_feature = bell(wavelengths, 975, 32) + 0.25 * step(wavelengths, 1060, 40)     # and the wing of 1200 nm
    depth = chlorophyll * chlorophyll_absorption(wavelengths) + canopy_water * water_feature
    slope = 1 + 0.10 * (wavelengths - 860) / 400
    green = 0.012 + plateau * slope * np.exp(-depth)
    litter = np.minimum(litter, 0.95)
    return (1 - litter) * green + litter * dry_matter(wavelengths)


def water_body(wavelengths: np.ndarray, level: np.ndarray, decay: np.ndarray, sediment: np.ndarray,
               glint: np.ndarray) -> np.ndarray:
    """Lake or pond: exponential fall from the blue, a sediment bump in the green, almost nothing in the infrared.

    level     reflectance at 400 nm of the clear water
    decay     e-folding length of the fall in nm
    sediment  height of the bump at 570 nm (its shoulder ends near 730 nm, where pure water absorbs everything)
    glint     sky mirrored at the surface, the same at all wavelengths
    """
    bump = bell(wavelengths, 570, 62) + 0.35 * bell(wavelengths, 690, 22) + 0.08 * bell(wavelengths, 810, 20)
    return glint + level * np.exp(-(wavelengths - 400) / decay) + sediment * bump


def mineral(wavelengths: np.ndarray, level: np.ndarray, rise: np.ndarray, slope: np.ndarray, edge: np.ndarray,
            iron: np.ndarray) -> np.ndarray:
    """Soil, concrete, asphalt, shingle, tile, membrane: a continuum with a colour edge and a ferric band.

    level  reflectance of the continuum at 700 nm
    rise   e-folding length of its rise from the ultraviolet in nm (short = white or grey, long = brown)
    slope  1 + relative rise of the continuum from 350 to 1050 nm (below 1: it falls)
    edge   height of the step at 575 nm that makes tiles and bricks red
    iron   relative depth of the ferric band at 880 nm
    """
    continuum = (1 - np.exp(-(wavelengths - 330) / rise)) / (1 - np.exp(-370 / rise))
    tilt = 1 + (slope - 1) * (wavelengths - 700) / 700
    colour = level * continuum * tilt + edge * step(wavelengths, 575, 22)
    return colour * (1 - iron * bell(wavelengths, 880, 75))


def metal(wavelengths: np.ndarray, level: np.ndarray, rise: np.ndarray, dip: np.ndarray) -> np.ndarray:
    """Coated sheet metal: flat, with the aluminium interband dip at 830 nm (dip = its relative depth)."""
    continuum = 1 - 0.5 * np.exp(-(wavelengths - 330) / rise)
    return level * continuum * (1 - dip * bell(wavelengths, 832, 55))


@dataclass(frozen=True)
class Material:
    """A reflectance model and the distribution of its parameters.

    parameters  name -> (median, spread between objects, spread between pixels of an object).  Spreads are standard
                deviations of the logarithm, so that every parameter stays positive.
    """

    model: Callable[..., np.ndarray]
    parameters: dict[str, tuple[float, float, float]]


MATERIALS: dict[str, Material] = {
    "healthy grass": Material(vegetation, {"chlorophyll": (2.9, 0.13, 0.08), "plateau": (0.46, 0.18, 0.08),
                                           "canopy_water": (0.10, 0.22, 0.16), "litter": (0.06, 0.45, 0.30)}),
    "stressed grass": Material(vegetation, {"chlorophyll": (2.0, 0.16, 0.14), "plateau": (0.36, 0.18, 0.12),
                                            "canopy_water": (0.055, 0.27, 0.20), "litter": (0.30, 0.29, 0.28)}),
    "tree": Material(vegetation, {"chlorophyll": (4.1, 0.16, 0.14), "plateau": (0.40, 0.25, 0.20),
                                  "canopy_water": (0.17, 0.25, 0.20), "litter": (0.045, 0.54, 0.40)}),
    "water": Material(water_body, {"level": (0.055, 0.27, 0.10), "decay": (170, 0.18, 0.06),
                                   "sediment": (0.022, 0.45, 0.12), "glint": (0.010, 0.36, 0.20)}),
    "soil": Material(mineral, {"level": (0.22, 0.32, 0.16), "rise": (420, 0.18, 0.06), "slope": (1.35, 0.09, 0.04),
                               "edge": (0.03, 0.45, 0.16), "iron": (0.08, 0.36, 0.16)}),
    "shingle": Material(mineral, {"level": (0.15, 0.36, 0.16), "rise": (230, 0.18, 0.06), "slope": (1.20, 0.09, 0.04),
                                  "edge": (0.022, 0.40, 0.16), "iron": (0.05, 0.36, 0.20)}),
    "tile": Material(mineral, {"level": (0.11, 0.27, 0.14), "rise": (260, 0.18, 0.06), "slope": (1.30, 0.09, 0.04),
                               "edge": (0.13, 0.32, 0.12), "iron": (0.12, 0.27, 0.16)}),
    "membrane": Material(mineral, {"level": (0.56, 0.25, 0.08), "rise": (38, 0.18, 0.06), "slope": (0.90, 0.07, 0.02),
                                   "edge": (0.012, 0.54, 0.20), "iron": (0.02, 0.36, 0.20)}),
    "gravel": Material(mineral, {"level": (0.27, 0.25, 0.16), "rise": (125, 0.14, 0.08), "slope": (0.98, 0.05, 0.04),
                                 "edge": (0.012, 0.45, 0.20), "iron": (0.03, 0.36, 0.20)}),
    "sheet metal": Material(metal, {"level": (0.40, 0.32, 0.10), "rise": (60, 0.27, 0.08), "dip": (0.10, 0.27, 0.10)}),
    "asphalt": Material(mineral, {"level": (0.10, 0.29, 0.14), "rise": (165, 0.14, 0.06), "slope": (1.28, 0.07, 0.03),
                                  "edge": (0.003, 0.45, 0.20), "iron": (0.012, 0.45, 0.20)}),
    "concrete": Material(mineral, {"level": (0.31, 0.23, 0.12), "rise": (190, 0.13, 0.06), "slope": (1.20, 0.07, 0.03),
                                   "edge": (0.006, 0.45, 0.20), "iron": (0.025, 0.36, 0.20)}),
}
