"""Source patches as a sensor with another ground sampling distance would see them.

A pixel f times as large sees what lies around it under a wider point spread: the scene blurred by a Gaussian, every
f-th pixel of it.  A pixel that is smaller shows the same pixel of the source more than once.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

STEP = 2 ** 0.5           # between two distances that are drawn
SPREAD = 0.42             # standard deviation of a pixel's point spread, in pixels: full width at half maximum of one


def factors(largest: float) -> list[float]:
    """The distances from 1/largest to largest in steps of STEP, relative to the source's."""
    steps = int(np.log(largest) / np.log(STEP) + 1e-6)
    return [float(STEP ** step) for step in range(-steps, steps + 1)]


def blurred(cube: np.ndarray, factor: float) -> np.ndarray:
    """A cube [H, W, B] under the point spread of pixels `factor` times as large; without change for 1 and below.

    Pixels without data (zero spectra) stay so, and are not seen by others.
    """
    if factor <= 1:
        return cube
    there = cube.any(axis=2)
    spread = SPREAD * np.sqrt(factor ** 2 - 1)
    weight = ndimage.gaussian_filter(there.astype(np.float32), spread, mode="nearest")
    seen = np.empty_like(cube)
    for band in range(cube.shape[2]):
        ndimage.gaussian_filter(cube[..., band], spread, mode="nearest", output=seen[..., band])
    seen /= np.maximum(weight, np.finfo(np.float32).tiny)[..., None]
    seen[~there] = 0
    return seen
