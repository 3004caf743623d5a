"""Which bands of a file a scene keeps, in which order, and their wavelengths in nm."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

import numpy as np

from datasets.errors import SceneFormatError
from datasets.images import Facts

log = logging.getLogger(__name__)

TO_NM = {"nm": 1.0, "nanometer": 1.0, "nanometers": 1.0, "nanometre": 1.0, "nanometres": 1.0, "um": 1e3, "µm": 1e3,
         "μm": 1e3, "micron": 1e3, "microns": 1e3, "micrometer": 1e3, "micrometers": 1e3, "micrometre": 1e3,
         "micrometres": 1e3, "angstrom": 0.1, "angstroms": 0.1, "mm": 1e6, "m": 1e9}
UNKNOWN = {"", "unknown", "index", "none"}
RANGE = (100.0, 20_000.0)                               # nm: outside these no imaging spectrometer measures
SMALLEST_NM = 50.0                                      # all below: micrometres, where no unit is given
_LENGTH = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(\S*)\s*")


@dataclass(frozen=True)
class Chosen:
    """The bands of a file that a scene keeps.

    order        their places in the file, in the order of the scene's bands
    wavelengths  [B] nm, or None
    fwhm         [B] nm, or None
    dropped      place in the file -> why it is left out
    """

    order: np.ndarray
    wavelengths: np.ndarray | None
    fwhm: np.ndarray | None
    dropped: dict[int, str]


def in_nm(values: np.ndarray | None, units: str | None, where: str
          ) -> tuple[np.ndarray | None, float]:
    """Wavelengths in nm, and the factor.  Raises SceneFormatError for a unit that is unknown."""
    if values is None:
        return None, 1.0
    word = (units or "").strip().lower()
    if word in UNKNOWN:
        factor = 1e3 if len(values) and max(values) < SMALLEST_NM else 1.0
        if factor != 1:
            log.info("%s: no unit is given for the wavelengths %g to %g: read as micrometres.", where, min(values),
                     max(values))
    elif word in TO_NM:
        factor = TO_NM[word]
    else:
        raise SceneFormatError(f"{where}: the unit of its wavelengths, {units[:40]}, is not known. Give "
                               "wavelength_units: nm "
                               "or um in the scene file, and the wavelengths in it.")
    return np.asarray(values, np.float64) * factor, factor


def choose(bands: int, dead: np.ndarray, facts: Facts, drop: list, where: str) -> Chosen:
    """Which of a file's bands are kept: all but dead ones, those of its bad-band list, and those to `drop`.

    Raises SceneFormatError if none is left, or wavelengths do not fit the bands.
    """
    dropped = {band: "no data in every pixel" for band in np.flatnonzero(dead)}
    if facts.good is not None:
        dropped |= {band: "bad by the file's list" for band in np.flatnonzero(~facts.good) if band not in dropped}
    nm, factor = in_nm(facts.wavelengths, facts.units, where)
    fwhm = None if facts.fwhm is None else facts.fwhm * factor
    if nm is not None and len(nm) == bands - len(dropped) != bands:         # given for the kept ones alone
        nm = _spread(nm, bands, dropped)
        fwhm = _spread(fwhm, bands, dropped) if fwhm is not None and len(fwhm) == len(nm) - len(dropped) else fwhm
    for name, values in (("wavelengths", nm), ("widths (fwhm)", fwhm)):
        if values is not None and len(values) != bands:
            raise SceneFormatError(f"{where}: {len(values)} {name} for {bands} bands.")
    dropped |= {band: "dropped by the scene file" for band in _given(drop, bands, nm, where) if band not in dropped}
    order = np.array([band for band in range(bands) if band not in dropped], int)
    if not len(order):
        raise SceneFormatError(f"{where}: all {bands} bands are dropped (dead, bad, or by the scene file). Keep some.")
    if nm is not None:
        nm = _checked(nm, order, where)
    if nm is not None and (np.diff(nm[order]) < 0).any():
        order = order[np.argsort(nm[order], kind="stable")]
        log.info("%s: its bands are put in order of wavelength.", where)
    return Chosen(order, None if nm is None else nm[order], None if fwhm is None else fwhm[order], dropped)


def _spread(values: np.ndarray, bands: int, dropped: dict[int, str]) -> np.ndarray:
    whole = np.full(bands, np.nan)
    whole[[band for band in range(bands) if band not in dropped]] = values
    return whole


def _checked(nm: np.ndarray, order: np.ndarray, where: str) -> np.ndarray | None:
    """Wavelengths; None, with a warning, for those that cannot be."""
    kept = nm[order]
    if np.isfinite(kept).all() and kept.min() >= RANGE[0] and kept.max() <= RANGE[1]:
        return nm
    log.warning("%s: its wavelengths run from %g to %g nm, which no imaging spectrometer measures; they are ignored. "
                "Give "
                "wavelengths and wavelength_units in the scene file.", where, kept.min(), kept.max())
    return None


def check_drop(drop: object, where: str) -> list:
    """The scene file's list of bands to drop.  Raises SceneFormatError for another form."""
    pieces = drop if isinstance(drop, list) else [drop]
    for piece in pieces:
        ends = piece if isinstance(piece, list) else None
        if ends is not None and len(ends) == 2 and all(_nm(end) is not None for end in ends):
            continue
        if ends is None and isinstance(piece, int) and not isinstance(piece, bool) and piece >= 0:
            continue
        raise SceneFormatError(f"{where}: bands: drop must list bands, counted from 0, and ranges of wavelength, as in "
                               "bands: {drop: [[1320, 1469 nm], 7]}.")
    return pieces


def _given(drop: list, bands: int, nm: np.ndarray | None, where: str) -> list[int]:
    """The bands that a scene file drops."""
    found: list[int] = []
    for piece in drop:
        if not isinstance(piece, list):
            if piece >= bands:
                raise SceneFormatError(f"{where}: bands: drop names band {piece}; there are 0 to {bands - 1}.")
            found.append(piece)
            continue
        if nm is None:
            raise SceneFormatError(f"{where}: bands: drop names a range of wavelengths, and they are unknown. Give "
                                   "wavelengths, or drop bands by number.")
        units = [_LENGTH.fullmatch(str(end))[2] for end in piece]
        low, high = sorted(_nm(end, units[1]) for end in piece)
        found += np.flatnonzero((nm >= low) & (nm <= high)).tolist()
    return found


def _nm(value: object, default: str = "nm") -> float | None:
    """A length such as 1320, '1469 nm' or '1.4 um' in nm."""
    match = _LENGTH.fullmatch(str(value)) if isinstance(value, (int, float, str)) else None
    factor = TO_NM.get((match[2] or default or "nm").lower()) if match else None
    return None if factor is None else float(match[1]) * factor


def keep(cube: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Bands of a contiguous cube [H, W, B], within its own memory: [H, W, len(order)]."""
    height, width, bands = cube.shape
    if np.array_equal(order, np.arange(bands)):
        return cube
    flat, step = cube.reshape(-1), width * len(order)
    for row in range(height):
        flat[row * step:(row + 1) * step] = cube[row][:, order].reshape(-1)      # behind what is still to be read
    return flat[:height * step].reshape(height, width, len(order))
