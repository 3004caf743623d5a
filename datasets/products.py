"""Spaceborne products: EMIT (NetCDF) and PRISMA (HDF-EOS5), by their own layouts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from rasterio.crs import CRS
from rasterio.errors import CRSError

from datasets import formats
from datasets.errors import SceneFormatError
from datasets.images import PIECE, Facts
from datasets.scene import Georeference

PRISMA = "HDFEOS/SWATHS"
POINTS = 5                                              # control points along each side of a swath


@dataclass
class Product:
    """What a product's file says: its facts, and its values' type in the file."""

    facts: Facts
    kind: np.dtype


def read(path: Path) -> tuple[np.ndarray, Product] | None:
    """The cube [H, W, B] float32 as stored, and what the product says; None for a file of another layout.

    Raises SceneFormatError if the file is damaged or lacks a part of its layout.
    """
    try:
        if not h5py.is_hdf5(path):
            return None
        with h5py.File(path, "r") as file:
            if formats.holds(file, "sensor_band_parameters"):
                return _emit(file, path)
            return _prisma(file, path) if formats.holds(file, PRISMA) else None
    except (KeyError, ValueError, OSError, RuntimeError, TypeError, IndexError, CRSError) as error:
        raise SceneFormatError(f"{path} cannot be read as EMIT or PRISMA ({' '.join(str(error).split())[:200]}). It "
                               "may be "
                               "truncated: download it again.") from error


def _emit(file: h5py.File, path: Path) -> tuple[np.ndarray, Product]:
    """EMIT L1B radiance or L2A reflectance, as flown (not orthorectified): rows × columns × bands."""
    key = next((name for name in ("reflectance", "radiance") if formats.holds(file, name)), None)
    if key is None:
        raise SceneFormatError(f"{path} holds neither reflectance nor radiance. Take EMIT's L2A_RFL or L1B_RAD file.")
    values = formats.dataset(file, path, key)
    if values.ndim != 3:
        raise ValueError(f"{key} has {values.ndim} dimensions")
    cube = np.empty(values.shape, np.float32)
    _copy(values, cube)

    def of(name: str) -> np.ndarray | None:
        whole = f"sensor_band_parameters/{name}"
        return np.asarray(formats.dataset(file, path, whole)[()], np.float64) if formats.holds(file, whole) else None

    good = of("good_wavelengths")
    fill = values.attrs.get("_FillValue")
    facts = Facts(of("wavelengths"), "nm", of("fwhm"), None if good is None else good > 0,
                  -9999.0 if fill is None else float(np.ravel(fill)[0]), place=_swath(file, path, values.shape[:2]))
    return cube, Product(facts, values.dtype)


def _swath(file: h5py.File, path: Path, shape: tuple[int, int]) -> Georeference | None:
    """Control points of a swath from the longitude and latitude of its pixels."""
    if not (formats.holds(file, "location/lon") and formats.holds(file, "location/lat")):
        return None
    lon, lat = (formats.dataset(file, path, f"location/{name}") for name in ("lon", "lat"))
    if lon.shape != shape or lat.shape != shape:
        return None
    rows, columns = (np.unique(np.linspace(0, size - 1, POINTS).astype(int)) for size in shape)
    points = [(row + 0.5, column + 0.5, float(lon[row, column]), float(lat[row, column]), 0.0)
              for row in rows for column in columns]
    points = tuple(point for point in points if np.isfinite(point).all() and abs(point[3]) <= 90)
    return Georeference(CRS.from_epsg(4326).to_wkt(), None, points) if len(points) > 2 else None


def _prisma(file: h5py.File, path: Path) -> tuple[np.ndarray, Product]:
    """PRISMA's VNIR and SWIR cubes (rows × bands × columns) as one; bands without a wavelength are bad ones."""
    swath = next((name for name in file[PRISMA] if name.endswith("_HCO")), None)
    if swath is None:
        raise SceneFormatError(f"{path} holds no hyperspectral swath (…_HCO). Take PRISMA's L1, L2C or L2D file.")
    parts = [formats.dataset(file, path, f"{PRISMA}/{swath}/Data Fields/{name}_Cube") for name in ("VNIR", "SWIR")]
    if any(one.ndim != 3 or one.shape[::2] != parts[0].shape[::2] for one in parts):
        raise ValueError(f"its cubes are {parts[0].shape} and {parts[1].shape}")
    cube = np.empty((parts[0].shape[0], parts[0].shape[2], sum(one.shape[1] for one in parts)), np.float32)
    scale, offset, start = [], [], 0
    for name, one in zip(("Vnir", "Swir"), parts):
        count = one.shape[1]
        _copy(one, cube[..., start:start + count].swapaxes(1, 2))
        low, high = (file.attrs.get(f"L2Scale{name}{end}") for end in ("Min", "Max"))
        step, base = (1.0, 0.0) if low is None or high is None else ((float(high) - float(low)) / 65535, float(low))
        scale, offset, start = scale + [step] * count, offset + [base] * count, start + count

    def of(name: str) -> np.ndarray:
        return np.concatenate([np.ravel(file.attrs[f"List_{name}_{part}"]) for part in ("Vnir", "Swir")]).astype(float)

    wavelengths = of("Cw")
    facts = Facts(wavelengths, "nm", of("Fwhm"), wavelengths > 0, 0.0, np.array(scale), np.array(offset),
                  _corner(file, cube.shape[:2]))
    return cube, Product(facts, parts[0].dtype)


def _corner(file: h5py.File, shape: tuple[int, int]) -> Georeference | None:
    """The georeference of an L2D product, by the centres of its corner pixels."""
    said = [file.attrs.get(name) for name in ("Epsg_Code", "Product_ULcorner_easting", "Product_ULcorner_northing",
                                              "Product_LRcorner_easting", "Product_LRcorner_northing")]
    if any(one is None for one in said) or min(shape) < 2:
        return None
    code, left, top, right, bottom = (float(one) for one in said)
    x, y = (right - left) / (shape[1] - 1), (bottom - top) / (shape[0] - 1)
    return Georeference(CRS.from_epsg(int(code)).to_wkt(), (x, 0.0, left - x / 2, 0.0, y, top - y / 2))


def _copy(values: h5py.Dataset, target: np.ndarray) -> None:
    """A dataset into an array of its shape, some rows at a time."""
    chunk = values.chunks[0] if values.chunks else 1
    step = max(1, PIECE // max(1, target[0].nbytes)) // chunk * chunk or chunk
    for start in range(0, len(values), step):
        target[start:start + step] = values[start:start + step]
