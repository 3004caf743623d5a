"""Make two scenes fit one network: load the pair, check it, bring both cubes to the same footing."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.classes import matched, shared_classes
from datasets.correction import NONE, Reference, corrected, reference_of
from datasets.errors import PairError
from datasets.grid import COMMON, Grid, grid_of_pair, on_grid
from datasets.scene import Scene

log = logging.getLogger(__name__)

NORMAL = 126              # float32 holds 2^-126 to 2^126 without loss
MOST = 0.999              # share of the pixels that a healthy scene's maximum is compared with
FAR = 100.0               # times above them: worth a warning
BEYOND = 1e3              # times above them: no measurement
RANGE = 1e6               # times above the median: more than a detector's 16 bits


@dataclass(frozen=True)
class Common:
    """What all scenes of a run are brought to: bands and classes.  name: whose they are, for messages."""

    grid: Grid
    class_names: tuple[str, ...]
    name: str = "the trained weights"

    @classmethod
    def of_pair(cls, source: Scene, target: Scene | None, bands: str = COMMON) -> Common:
        """Reads no pixel and no label.  Raises PairError if the two have too few bands or no class in common."""
        return cls(grid_of_pair(source, target, bands), shared_classes(source, target), source.name)

    def entries(self) -> dict[str, Any]:
        """The same as plain values, for records; wavelengths (nm) and widths only where they are known."""
        nm = {name: [float(value) for value in values] for name, values in (
            ("wavelengths", self.grid.wavelengths), ("fwhm", self.grid.fwhm)) if values is not None}
        return {"bands": self.grid.bands, "class_names": list(self.class_names), **nm}

    def bring(self, scene: Scene) -> Scene:
        """The scene with these bands and classes, before any preprocessing; itself where it has them.  Raises PairError
        if that cannot be."""
        return on_grid(matched(scene, self.class_names, self.name), self.grid, self.name)


def check_learnable(scene: Scene) -> None:
    """Raise PairError if a scene to train on shows one class alone, or has one band: its unit spectra are constant."""
    if np.count_nonzero(scene.class_counts()) == 1:
        raise PairError(f"{scene.name} has labelled pixels of one class alone; one class cannot be learnt. Label "
                        "another one.")
    if scene.bands == 1:
        raise PairError(f"{scene.name} has one band. Spectra are scaled to length 1, and of one band all are the same "
                        "then. "
                        "Use a scene of several bands.")


def check_patch(scene: Scene, patch_size: int) -> None:
    """Raise PairError if a patch reaches further beyond the scene's edge than the scene can be mirrored there."""
    if patch_size // 2 > min(scene.shape):
        raise PairError(f"{scene.name} ({scene.shape[0]}×{scene.shape[1]}) cannot be mirrored {patch_size // 2} pixels "
                        f"beyond its edge. Choose a --patch_size of at most {2 * min(scene.shape) + 1}.")


def preprocess(cube: np.ndarray, correction: str = NONE, reference: Reference | None = None) -> np.ndarray:
    """Divide by the scene's maximum, L2-normalise each pixel's spectrum, then see it against the scene's reference (or
    the one given) where there is a scene correction; a zero spectrum stays zero.

    [H, W, B] -> [H, W, B] float32.  Uses this scene's own values only (docs/data.md, "Preprocessing").
    """
    cube = unit_spectra(cube)
    return cube if correction == NONE else corrected(cube, correction, reference or reference_of(cube))


def unit_spectra(cube: np.ndarray) -> np.ndarray:
    """Divide by the scene's maximum, then L2-normalise each pixel's spectrum; a zero spectrum stays zero.

    [H, W, B] -> [H, W, B] float32.

    Only the mantissa of the maximum is divided by, and a power of two brings every spectrum to order 1.  Powers of two
    cancel without rounding: the result is that of the plain quotient, but no maximum makes a square underflow.
    """
    cube = np.asarray(cube, np.float32)
    peak = cube.max()
    if peak <= 0:
        raise PairError("The scene's maximum is not positive; there is nothing to normalise.")
    _, exponent = np.frexp(peaks(cube)[..., None])
    scaled = cube * np.ldexp(np.float32(1), -np.clip(exponent, -NORMAL, NORMAL))
    scaled /= np.frexp(peak)[0]
    norm = np.linalg.norm(scaled, axis=2, keepdims=True)
    return np.divide(scaled, norm, out=scaled, where=norm > 0)


def peaks(cube: np.ndarray) -> np.ndarray:
    """[H, W, B] -> [H, W], the largest absolute value of each spectrum."""
    return np.maximum(cube.max(axis=2), -cube.min(axis=2))


def hot(levels: np.ndarray) -> np.ndarray:
    """Which spectra are too bright to be measured, by their levels [H, W] (peaks or norms): [H, W] bool.

    Hot is what lies BEYOND times above MOST of the spectra that are not zero, or RANGE times above their median (a fill
    value may cover more than a few).
    """
    there = levels[levels > 0]
    if not there.size:
        return np.zeros(levels.shape, bool)
    most, median = np.quantile(there, (MOST, 0.5), method="lower")
    return levels > min(BEYOND * float(most), RANGE * float(median))


def warn_of_hot_pixels(scene: Scene) -> None:
    """Warn of values that lie far above all others: broken detector elements, or a fill value that nobody declared."""
    levels = peaks(scene.cube)
    there = levels[levels > 0]
    if not there.size:
        return
    most, median = np.quantile(there, (MOST, 0.5), method="lower")
    row, column = np.unravel_index(levels.argmax(), levels.shape)
    if there.max() > FAR * float(most) or hot(levels).any():
        log.warning("%s: row %d, column %d holds %g, while half of the pixels stay below %g. If that is a fill value, "
                    "declare it as the raster's no-data value, or set those pixels to NaN.", scene.name, row, column,
                    there.max(), median)
