"""Cubes out of raster images: what the file says of its bands, values that are no data, and one float32 copy.

Rows are read in pieces, so that memory holds the float32 cube and one piece.
"""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.transform import Affine
from rasterio.windows import Window

from datasets import formats, vrt
from datasets.errors import SceneFormatError
from datasets.scene import Georeference

log = logging.getLogger(__name__)

PIECE = 1 << 22                                         # bytes of a file's values that are read at a time
FILLS = (-9999., -99999., -32768., -32767., -2147483648., float(np.finfo(np.float32).min), -1e34)    # in any band
WHOLE_FILLS = (-999., -9998., 65535., 1e20, float(np.float32(9.96921e36)), float(np.finfo(np.float32).max))
#                                                         in all bands: a single one may be a measurement
MOST_TILES = 1000
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
        bands = [band for band in file.indexes if file.colorinterp[band - 1] != ColorInterp.alpha]
        facts = overridden(_facts(file, bands), given)
        cube, fills = fill((file.height, file.width, len(bands)), _pieces(file, bands, path), facts)
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
        if (found := path.with_name(path.stem + suffix)).is_file():
            return found
    raise SceneFormatError(f"{path} is an ENVI header, and its data file {path.stem} (.img, .dat, .bsq, .bil, .bip, .raw) "
                           "is not beside it. Put it there.")


def overridden(facts: Facts, given: Facts | None) -> Facts:
    """What a file says, but for what is given."""
    if given is None:
        return facts
    return replace(facts, **{name: value for name, value in vars(given).items() if value is not None})


def _pieces(file: rasterio.DatasetReader, bands: list[int], path: Path
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
        yield slice(top, top + window.height), np.moveaxis(file.read(bands, window=window), 0, 2), valid


def _is_masked(file: rasterio.DatasetReader, path: Path) -> bool:
    """Whether a raster has a mask or an alpha band.  Raises SceneFormatError for a mask file that is no GeoTIFF: GDAL
    would open it by any driver."""
    for beside in (path.with_name(path.name + ".msk"), path.with_name(path.name + ".MSK")):
        if beside.is_file():
            if not vrt.is_geotiff(beside):
                raise SceneFormatError(f"{beside} is no GeoTIFF. A mask file beside an image must be one; convert it.")
            with rasterio.open(beside, driver="GTiff") as mask:
                formats.check_raster(beside, mask)
    if any(kind == ColorInterp.alpha for kind in file.colorinterp):
        return True
    return any(MaskFlags.per_dataset in flags for flags in file.mask_flag_enums)


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


# Tiles

def tiles_of(folder: Path, pattern: str | list[str]) -> list[Path]:
    """The files of a pattern or list, in order.  Raises SceneFormatError if there is none, or they lie elsewhere."""
    names = [pattern] if isinstance(pattern, str) else pattern
    found: list[Path] = []
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts or "**" in name:
            raise SceneFormatError(f"the tiles {name[:200]} must lie in the scene's folder: name them by a plain pattern.")
        found += sorted(Path(one) for one in glob.glob(str(Path(glob.escape(str(folder))) / name)))
    if not found or len(found) > MOST_TILES:
        raise SceneFormatError(f"{folder}: {len(found)} files are called {', '.join(names)[:200]}; expected 1 to "
                               f"{MOST_TILES} tiles.")
    return list(dict.fromkeys(found))


def read_tiles(paths: list[Path], given: Facts | None = None) -> Image:
    """One scene in several GeoTIFFs on one grid, as Image; where two overlap, the later one's data stand.

    Raises SceneFormatError if their CRS, pixels or bands differ.
    """
    frames = [_frame(path) for path in paths]
    first = frames[0]
    for path, frame in zip(paths, frames):
        if frame[0] != first[0] or not np.allclose(frame[1][:2] + frame[1][3:5], first[1][:2] + first[1][3:5]) \
                or frame[4] != first[4]:
            raise SceneFormatError(f"{path} has another CRS, pixel size or number of bands than {paths[0].name}. Tiles "
                                   "of one scene share them: resample them.")
    corners = []
    for path, (_, transform, *_) in zip(paths, frames):
        column, row = ~Affine(*first[1]) * (transform[2], transform[5])
        if max(abs(row - round(row)), abs(column - round(column))) > 0.01:
            raise SceneFormatError(f"{path} lies between the pixels of {paths[0].name}. Resample the tiles to one grid.")
        corners.append((round(row), round(column)))
    top, left = np.min(corners, axis=0)
    height = max(row - top + frame[2] for (row, _), frame in zip(corners, frames))
    width = max(column - left + frame[3] for (_, column), frame in zip(corners, frames))
    if height * width > 16 * sum(frame[2] * frame[3] for frame in frames):
        raise SceneFormatError(f"{paths[0].parent}: the tiles lie far apart ({height} × {width} pixels in all). Map them "
                               "as scenes of their own.")
    formats.check_memory(paths[0], int(height) * int(width) * first[4], 0)
    cube = np.full((height, width, first[4]), np.nan, np.float32)
    fills: dict[float, int] = {}
    for path, (row, column) in zip(paths, corners):
        image = read_image(path, given)
        part = cube[row - top:row - top + image.cube.shape[0], column - left:column - left + image.cube.shape[1]]
        np.copyto(part, image.cube, where=np.isfinite(image.cube))
        fills = {value: fills.get(value, 0) + image.fills.get(value, 0) for value in fills | image.fills}
    transform = Affine(*first[1]) * Affine.translation(int(left), int(top))
    facts = replace(image.facts, place=Georeference(first[0], tuple(transform)[:6]))
    return Image(cube, facts, dead_bands(cube), fills, image.dtype)


def _frame(path: Path) -> tuple[str, tuple[float, ...], int, int, int]:
    """CRS, transform, height, width and bands of a tile."""
    with formats.raster(path) as file:
        place = formats.place_of(file)
        if place is None or place.transform is None:
            raise SceneFormatError(f"{path} has no georeference; tiles are put together by it. Join them first.")
        return place.crs, place.transform, file.height, file.width, file.count
