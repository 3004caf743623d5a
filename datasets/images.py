"""Cubes out of raster images: what the file says of its bands, values that are no data, and one float32 copy.

Rows are read in pieces, so that memory holds the float32 cube and one piece.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from datasets import formats, vrt
from datasets.errors import SceneFormatError
from datasets.scene import Georeference
from model.plain import is_file

log = logging.getLogger(__name__)

PIECE = 1 << 22                                         # bytes of a file's values that are read at a time
FILLS = (-9999., -99999., -32768., -32767., -2147483648., float(np.finfo(np.float32).min), -1e34)    # in any band
WHOLE_FILLS = (-999., -9998., 65535., 1e20, float(np.float32(9.96921e36)), float(np.finfo(np.float32).max))
#                                                         in all bands: a single one may be a measurement
_DATA_SUFFIXES = ("", ".img", ".dat", ".bsq", ".bil", ".bip", ".raw")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass
class Facts:
    """What a file says of its bands and values; None or empty where it says nothing.

    wavelengths, fwhm  [B] in the unit `units`
    good               [B] bool, the bad-band list
    nodata             the value that means no data, one for all bands or one (or None) for each
    scale, offset      physical value = scale · stored + offset, one for all bands or one for each
    place              georeference
    """

    wavelengths: np.ndarray | None = None
    units: str | None = None
    fwhm: np.ndarray | None = None
    good: np.ndarray | None = None
    nodata: list[float | None] | float | None = None
    scale: np.ndarray | float | None = None
    offset: np.ndarray | float | None = None
    place: Georeference | None = None


@dataclass
class Image:
    """A cube [H, W, B] float32 as stored in physical units, no data = NaN, and what is known of it.

    dead   [B] bool, bands without a single value
    fills  value that the file does not declare -> pixels that held it
    dtype  of the values in the file
    """

    cube: np.ndarray
    facts: Facts
    dead: np.ndarray
    fills: dict[float, int] = field(default_factory=dict)
    dtype: str = "float32"


def fill(shape: tuple[int, int, int], pieces: Iterator[tuple[slice, np.ndarray, np.ndarray | None]], facts: Facts,
         cube: np.ndarray | None = None) -> tuple[np.ndarray, dict[float, int]]:
    """The float32 cube of rows that come piece by piece: (rows, values [h, W, B], valid [h, W] or None).

    No data becomes NaN: a band's own no-data value (0 only where all bands hold it, since it may be a dark pixel's),
    masked pixels, and fill values that nobody declared, which are counted.  Scale and offset come last.
    """
    cube = np.empty(shape, np.float32) if cube is None else cube
    fills: dict[float, int] = {}
    for rows, values, valid in pieces:
        missing = _declared(values, facts.nodata)
        for value, found in _undeclared(values, missing).items():
            missing = found if missing is None else missing | found
            fills[value] = fills.get(value, 0) + int(found.any(axis=2).sum())
        part = cube[rows]
        part[...] = values
        if facts.scale is not None:
            part *= np.asarray(facts.scale, np.float32)
        if facts.offset is not None:
            part += np.asarray(facts.offset, np.float32)
        if missing is not None:
            part[missing] = np.nan
        if valid is not None:
            part[~valid] = np.nan
    return cube, fills


def _declared(values: np.ndarray, nodata: list[float | None] | float | None) -> np.ndarray | None:
    """Where values [h, W, B] are no data by what the file or the scene file says; None = nowhere."""
    if nodata is None or isinstance(nodata, list) and not any(one is not None for one in nodata):
        return None
    if not isinstance(nodata, list):
        nodata = [nodata] * values.shape[2]
    missing = np.zeros(values.shape, bool)
    for value in set(nodata):
        bands = [band for band, one in enumerate(nodata) if one == value or one is value]
        if value is None:
            continue
        part = values[..., bands]
        found = np.isnan(part) if np.isnan(value) else part == value
        missing[..., bands] = found if value else found.all(axis=2, keepdims=True)
    return missing


def _undeclared(values: np.ndarray, missing: np.ndarray | None) -> dict[float, np.ndarray]:
    """Fill value -> where it stands in values [h, W, B], of those that are not declared."""
    with np.errstate(invalid="ignore"):
        low, high = np.nanmin(values, initial=0), np.nanmax(values, initial=0)
    if low > -999 and high < 65535:
        return {}
    found = {}
    for value in (*FILLS, *WHOLE_FILLS):
        if not low <= value <= high:
            continue
        where = values == values.dtype.type(value) if values.dtype.kind == "f" else values == value
        if value in WHOLE_FILLS and (value < 0 or values.shape[2] > 1):
            where &= where.all(axis=2, keepdims=True)
        elif value in WHOLE_FILLS:
            continue
        if missing is not None:
            where &= ~missing
        if where.any():
            found[value] = where
    return found


def read_image(path: Path, given: Facts | None = None) -> Image:
    """A GeoTIFF, ENVI image or VRT as Image.  `given` overrides what the file says.

    Raises SceneNotFoundError if the file is missing, SceneFormatError if it is damaged, shorter than it says, or
    declares more than it can hold.
    """
    path = data_file(path)
    with formats.raster(path) as file:
        alpha = _alpha(file, path)
        bands = [band for band in file.indexes if band != alpha]
        facts = overridden(_facts(file, bands), given)
        cube, fills = fill((file.height, file.width, len(bands)), _pieces(file, bands, alpha, path), facts)
        return Image(cube, facts, dead_bands(cube), fills, file.dtypes[0])


def dead_bands(cube: np.ndarray) -> np.ndarray:
    """[B] bool: bands without a value, if there are pixels with one."""
    alive = np.zeros(cube.shape[2], bool)
    for row in cube:
        alive |= np.isfinite(row).any(axis=0)
        if alive.all():
            break
    return ~alive if alive.any() else np.zeros(len(alive), bool)


def data_file(path: Path) -> Path:
    """The data file of an ENVI header that is named in its place."""
    if path.suffix.lower() != ".hdr":
        return path
    for suffix in _DATA_SUFFIXES:
        if is_file(found := path.with_name(path.stem + suffix)):
            return found
    raise SceneFormatError(f"{path} is an ENVI header, and its data file {path.stem} (.img, .dat, .bsq, .bil, .bip, "
                           ".raw) "
                           "is not beside it. Put it there.")


def overridden(facts: Facts, given: Facts | None) -> Facts:
    """What a file says, but for what is given."""
    if given is None:
        return facts
    return replace(facts, **{name: value for name, value in vars(given).items() if value is not None})


def _alpha(file: rasterio.DatasetReader, path: Path) -> int | None:
    """The alpha band, where it marks no data.  GDAL calls the fourth band of any picture of bytes so: one that holds
    more than nothing and all is a measurement."""
    alphas = [band for band in file.indexes if file.colorinterp[band - 1] == ColorInterp.alpha]
    if len(alphas) != 1 or file.count == 1:
        return None
    values = file.read(alphas[0])
    if (((values == 0) | (values == values.max())).all()) and values.max() > 0:
        return alphas[0]
    log.warning("%s: band %d is marked as alpha, but holds more than two values: it is read as a measurement.", path,
                alphas[0] - 1)
    return None


def _pieces(file: rasterio.DatasetReader, bands: list[int], alpha: int | None, path: Path
            ) -> Iterator[tuple[slice, np.ndarray, np.ndarray | None]]:
    """Rows of a raster, a piece at a time, whole blocks where they are not too large."""
    masked = _is_masked(file, path)
    block = max(shape[0] for shape in file.block_shapes)
    size = np.dtype(file.dtypes[0]).itemsize * file.width * len(bands)
    height = max(1, PIECE // size)
    height = height // block * block or height
    for top in range(0, file.height, height):
        window = Window(0, top, file.width, min(height, file.height - top))
        valid = file.dataset_mask(window=window) > 0 if masked else None
        if alpha is not None:
            valid = file.read(alpha, window=window) > 0
        yield slice(top, top + window.height), np.moveaxis(file.read(bands, window=window), 0, 2), valid


def _is_masked(file: rasterio.DatasetReader, path: Path) -> bool:
    """Whether a raster has a mask.  Raises SceneFormatError for a mask file that is no GeoTIFF: GDAL
    would open it by any driver."""
    for beside in (path.with_name(path.name + ".msk"), path.with_name(path.name + ".MSK")):
        if is_file(beside):
            if not vrt.is_geotiff(beside):
                raise SceneFormatError(f"{beside} is no GeoTIFF. A mask file beside an image must be one; convert it.")
            with rasterio.open(beside, driver="GTiff") as mask:
                formats.check_raster(beside, mask)
    return any(MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags for flags in file.mask_flag_enums)


def _facts(file: rasterio.DatasetReader, bands: list[int]) -> Facts:
    """What a raster's tags, ENVI header or descriptions say."""
    whole = {name.lower().replace(" ", "_"): value for name, value in (file.tags() | file.tags(ns="ENVI")).items()}
    tags = [{name.lower(): value for name, value in file.tags(band).items()} for band in bands]
    imagery = [file.tags(band, ns="IMAGERY") for band in bands]
    wavelengths, units = _listed(whole, tags, "wavelength"), _unit(whole, tags)
    if wavelengths is None and all("CENTRAL_WAVELENGTH_UM" in one for one in imagery):
        wavelengths, units = _numbers([one["CENTRAL_WAVELENGTH_UM"] for one in imagery]), "um"
    fwhm, good = _listed(whole, tags, "fwhm"), _listed(whole, tags, "bbl")
    picked = np.array(bands) - 1
    scale, offset = np.array(file.scales)[picked], np.array(file.offsets)[picked]
    factor = _numbers([whole.get("reflectance_scale_factor", "")])
    if (scale == 1).all() and factor is not None and factor[0] > 0:
        scale = scale / factor[0]
    nodata = [file.nodatavals[band - 1] for band in bands]
    return Facts(wavelengths, units, fwhm, None if good is None else good > 0,
                 nodata[0] if len(set(nodata)) == 1 else nodata, None if (scale == 1).all() else scale,
                 None if (offset == 0).all() else offset, formats.place_of(file))


def _listed(whole: dict[str, str], tags: list[dict[str, str]], name: str) -> np.ndarray | None:
    """[B] numbers of a band tag, or of a list for all bands, if every band has one."""
    if all(name in one for one in tags):
        return _numbers([one[name] for one in tags])
    found = _numbers(whole.get(name, "").strip("{} \n").split(","))
    return found if found is not None and len(found) == len(tags) else None


def _numbers(words: list[str]) -> np.ndarray | None:
    """Numbers at the beginning of words; None if one has none."""
    found = [_NUMBER.match(word.strip()) for word in words]
    return np.array([float(one[0]) for one in found]) if found and all(found) else None


def _unit(whole: dict[str, str], tags: list[dict[str, str]]) -> str | None:
    return tags[0].get("wavelength_units") or tags[0].get("wavelength_unit") or whole.get("wavelength_units")
