"""One set of bands for scenes of different sensors (docs/data.md, "Two sensors").

Wavelengths and widths alone choose it: no pixel and no label is read.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from datasets.errors import PairError
from datasets.scene import Scene

log = logging.getLogger(__name__)

SAME = 0.05               # of the spacing: centres so near each other are one band
EDGE = 0.5                # of the scene's spacing: so far beyond its last band that band stands for another
GAP = 3.0                 # times the scene's spacing: nothing was measured between two bands
COARSER = 1.5             # times the grid's spacing: too coarse to be brought to it
FEWEST = 8                # bands
SHORT = 0.5               # of the narrower range
NODES = np.linspace(-1.5, 1.5, 61)                       # of a Gaussian response, in full widths at half maximum
COMMON, SOURCE = "common", "source"                      # --bands
NOT_COMPARED, AS_THEY_ARE, CHOSEN, GAUSSIAN, LINEAR = "not compared", "as they are", "chosen bands", "Gaussian", "linear"


@dataclass(frozen=True)
class Grid:
    """The bands that a network sees: centres and full widths at half maximum [B] in nm, None where unknown."""

    bands: int
    wavelengths: np.ndarray | None = None
    fwhm: np.ndarray | None = None

    @classmethod
    def of(cls, scene: Scene) -> Grid:
        return cls(scene.bands, scene.wavelengths, scene.fwhm)


def same_bands(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two lists of centres are the same bands in the same order."""
    return len(one) == len(other) and float(np.abs(one - other).max()) <= SAME * spacing(other)


def same_grid(one: Grid, other: Grid) -> bool:
    """Whether two networks see the same bands, as far as is known."""
    if one.wavelengths is None or other.wavelengths is None:
        return one.bands == other.bands
    return same_bands(one.wavelengths, other.wavelengths)


def spacing(wavelengths: np.ndarray) -> float:
    """The usual distance of neighbouring bands in nm; 0 where there is one band."""
    return float(np.median(np.diff(np.sort(wavelengths)))) if len(wavelengths) > 1 else 0.0


def covered(centres: np.ndarray, wavelengths: np.ndarray, edge: float) -> np.ndarray:
    """Which centres a sensor's bands cover: between two of them that are no GAP apart, or at most `edge` times the
    spacing from one.  [B] bool."""
    bands = np.sort(wavelengths)
    usual, above = spacing(bands), np.searchsorted(bands, centres).clip(1, len(bands) - 1)
    low, high = bands[above - 1], bands[above]
    near = np.minimum(np.abs(centres - low), np.abs(centres - high)) <= edge * usual
    return near | ((low <= centres) & (centres <= high) & (high - low <= GAP * usual))


def grid_of_pair(source: Scene, target: Scene | None, choice: str = COMMON) -> Grid:
    """The grid of a pair: the source's bands where both are the same, unknown or `choice` is 'source'; else those of
    the sensor with the wider spacing that lie inside the other's.  Raises PairError for too short an overlap."""
    if target is None or choice == SOURCE or source.wavelengths is None or target.wavelengths is None \
            or same_bands(target.wavelengths, source.wavelengths):
        return Grid.of(source)
    low, high = (end(nm) for end, nm in ((max, [s.wavelengths.min() for s in (source, target)]),
                                         (min, [s.wavelengths.max() for s in (source, target)])))
    inside = {scene.name: scene.wavelengths[(scene.wavelengths >= low) & (scene.wavelengths <= high)]
              for scene in (source, target)}
    narrower = min(np.ptp(source.wavelengths), np.ptp(target.wavelengths))
    if min(map(len, inside.values())) < 2 or high - low < SHORT * narrower:
        raise _short(source, target, "they overlap too little for a common grid")
    coarse, fine = (source, target) if spacing(inside[source.name]) >= spacing(inside[target.name]) else (target, source)
    order = np.argsort(coarse.wavelengths, kind="stable")
    order = order[covered(coarse.wavelengths[order], fine.wavelengths, SAME)]
    if len(order) < FEWEST:
        raise _short(source, target, f"only {len(order)} bands are in both, and {FEWEST} are needed")
    log.info("%s and %s have different bands: both are brought to the %d bands of %s from %.0f to %.0f nm.", source.name,
             target.name, len(order), coarse.name, *coarse.wavelengths[order[[0, -1]]])
    return Grid(len(order), coarse.wavelengths[order], None if coarse.fwhm is None else coarse.fwhm[order])


def way(scene: Scene, grid: Grid) -> str:
    """How a scene comes to the grid, in one of the words above."""
    if grid.wavelengths is None or scene.wavelengths is None:
        return NOT_COMPARED
    if same_bands(scene.wavelengths, grid.wavelengths):
        return AS_THEY_ARE
    weights = response(scene, grid)
    if ((weights == 0) | (weights == 1)).all():
        return CHOSEN
    return GAUSSIAN if _widths(scene, grid).any() else LINEAR


def on_grid(scene: Scene, grid: Grid, whose: str) -> Scene:
    """The scene with the grid's bands, its raw values resampled; the scene itself where it has them, or where
    wavelengths are unknown.  Pixels without data stay zero.

    whose: what has the grid, for messages.  Raises PairError if the scene does not reach over the grid, has a gap in
    it, is sampled too coarsely, or has another number of bands of unknown wavelengths.
    """
    how = way(scene, grid)
    if how == NOT_COMPARED:
        if scene.bands != grid.bands:
            raise PairError(f"{whose}: {grid.bands} bands; {scene.name}: {scene.bands} bands, and wavelengths are not "
                            "known of both. Add `wavelengths` to the scene files (docs/data.md), or resample one.")
        log.info("%s: its bands cannot be compared with those of %s (wavelengths are unknown); they are as many.",
                 scene.name, whose)
        return scene
    if how == AS_THEY_ARE:
        return scene
    check_reach(scene, grid, whose)
    log.info("%s: %d bands are brought to the %d of %s (%s).", scene.name, scene.bands, grid.bands, whose, how)
    shown = tuple(int(np.abs(grid.wavelengths - scene.wavelengths[band]).argmin()) for band in scene.rgb_bands)
    return replace(scene, cube=scene.cube @ response(scene, grid), wavelengths=grid.wavelengths, fwhm=grid.fwhm,
                   rgb_bands=shown)


def check_reach(scene: Scene, grid: Grid, whose: str) -> None:
    """Raise PairError if a scene's bands cannot stand for the grid's."""
    own, wanted = scene.wavelengths, grid.wavelengths
    if len(own) < 2:
        raise PairError(f"{scene.name} has one band; {whose} needs {grid.bands}.")
    missing = wanted[~covered(wanted, own, EDGE)]
    if len(missing):
        where = f"{len(missing)} of its {grid.bands} bands, from {missing.min():.5g} to {missing.max():.5g} nm"
        outside = missing.min() < own.min() or missing.max() > own.max()
        why = f"reaches from {own.min():.5g} to {own.max():.5g} nm" if outside else "has a gap there"
        raise PairError(f"{scene.name} has nothing for {where}, that {whose} needs: it {why}.{_units(own)} {_REMEDY}")
    between = own[(own >= wanted.min()) & (own <= wanted.max())]
    if spacing(between) > COARSER * spacing(wanted) or len(between) < 2:
        raise PairError(f"{scene.name} has a band every {spacing(own):.3g} nm, {whose} every {spacing(wanted):.3g} nm: what "
                        f"it did not measure cannot be made. {_REMEDY}")


_REMEDY = "Train a run with it as the target (--bands common): both then get the bands that they share."


def response(scene: Scene, grid: Grid) -> np.ndarray:
    """What each band of the scene gives to each of the grid's: [B scene, B grid] float32, columns that sum to 1.

    A Gaussian over the linearly interpolated spectrum, as wide as the grid's band less the scene's own (in squares),
    where the grid's widths are known; else the interpolated value at the centre.
    """
    order = np.argsort(scene.wavelengths, kind="stable")
    weights, widths = np.zeros((scene.bands, grid.bands)), _widths(scene, grid)
    nodes = grid.wavelengths[:, None] + widths[:, None] * NODES                                       # [B, nodes]
    share = np.exp(-4 * np.log(2) * NODES ** 2)
    nodes, share = (nodes, share / share.sum()) if widths.any() else (grid.wavelengths[:, None], np.ones(1))
    for place, band in enumerate(order):
        hat = np.zeros(scene.bands)
        hat[place] = 1
        weights[band] = np.interp(nodes, scene.wavelengths[order], hat) @ share
    at_once = widths == 0                                    # no rounding where the centre alone counts
    if widths.any() and at_once.any():
        weights[:, at_once] = response(scene, Grid(int(at_once.sum()), grid.wavelengths[at_once]))
    return weights.astype(np.float32)


def _widths(scene: Scene, grid: Grid) -> np.ndarray:
    """[B] full widths at half maximum of the Gaussians, 0 where the centre alone counts."""
    if grid.fwhm is None:
        return np.zeros(grid.bands)
    order = np.argsort(scene.wavelengths, kind="stable")
    own = 0.0 if scene.fwhm is None else np.interp(grid.wavelengths, scene.wavelengths[order], scene.fwhm[order])
    return np.sqrt(np.clip(np.square(grid.fwhm) - np.square(own), 0, None))


def _short(source: Scene, target: Scene, why: str) -> PairError:
    ranges = " and ".join(f"{scene.name} ({scene.wavelengths.min():.5g} to {scene.wavelengths.max():.5g} nm)"
                          for scene in (source, target))
    return PairError(f"{ranges}: {why}.{_units(source.wavelengths) or _units(target.wavelengths)} Correct the wavelengths "
                     "of the scene files, or choose another pair.")


def _units(wavelengths: np.ndarray) -> str:
    return " Its wavelengths look like micrometres; they count as nm." if wavelengths.max() < 100 else ""
