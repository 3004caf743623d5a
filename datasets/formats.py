"""Arrays out of files: MATLAB v5 and v7.3, HDF5, GeoTIFF, ENVI, and mosaics of GeoTIFFs (VRT).

A file names no other file that is read for it: no links, no external storage, no network.  What it declares is held
against its size and the free memory before anything is read.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import rasterio
import scipy.io
from rasterio.errors import RasterioError
from scipy.io.matlab import MatReadError, matfile_version

from datasets import hdf5, mat5, vrt
from datasets.errors import SceneFormatError, SceneNotFoundError
from datasets.scene import Georeference
from model.errors import shortened
from model.plain import is_file

MEMINFO = Path("/proc/meminfo")
DEFLATE = 1032                      # bytes that a compressed one can become
LZW = 1365                          # the same; what other ways of packing are held to
LEFT_OUT = 64                       # the same, of files that are not packed: empty blocks need not be stored
ALWAYS_READ = 1 << 26               # bytes
_RATIO = {None: LEFT_OUT, "DEFLATE": DEFLATE}           # by a raster's way of packing
_GZIP = b"\x1f\x8b"
SHOWN_NAMES = 20
_CLASS_BYTES = {"double": 8, "single": 4, "int64": 8, "uint64": 8, "int32": 4, "uint32": 4, "int16": 2, "uint16": 2,
                "int8": 1, "uint8": 1, "logical": 1}
_DAMAGED = (MatReadError, ValueError, TypeError, OSError, EOFError, KeyError, IndexError, NotImplementedError,
            zlib.error, RuntimeError, OverflowError, MemoryError, struct.error)


def read_mat(path: Path, key: str) -> np.ndarray:
    """One array of a MATLAB file, v5 or v7.3, with MATLAB's own axes (v7.3 stores them reversed).

    Raises SceneNotFoundError if the file is missing, SceneFormatError if it is damaged, lacks the key, declares more
    than it can hold, or stores the array elsewhere.
    """
    path = Path(path)
    if not is_file(path):
        raise SceneNotFoundError(f"{path.name} is not in {path.parent}.")
    try:
        return _read_mat_v73(path, key) if h5py.is_hdf5(path) else _read_mat_v5(path, key)
    except _DAMAGED as error:
        raise _damaged(path, error) from error


def _read_mat_v5(path: Path, key: str) -> np.ndarray:
    if level_5 := matfile_version(path)[0] == 1:
        mat5.check_heads(path)
    content = scipy.io.whosmat(path)                    # headers alone: cells in cells would overflow scipy's stack
    if not content:
        raise _damaged(path, "it holds no variable")
    found = [(shape, kind) for name, shape, kind in content if name == key]
    if not found and level_5 and "." in key and (key.split(".")[0], "struct") in [(one[0], one[2]) for one in content]:
        return _field(path, key)
    if not found:
        raise wrong_key(path, key, [name for name, *_ in content])
    if len(found) > 1:
        raise _damaged(path, f"it holds '{key}' twice")
    shape, kind = found[0]
    if kind not in _CLASS_BYTES or 0 in shape:
        raise _no_numbers(path, key, kind, shape)
    check_size(path, shape, _CLASS_BYTES[kind], DEFLATE if level_5 else 1, 1)   # doubles may be stored as bytes
    if level_5:
        mat5.check_numbers(path, key)
    array = scipy.io.loadmat(path, variable_names=[key])[key]
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise _no_numbers(path, key, array.dtype, shape)
    return array


def _field(path: Path, key: str) -> np.ndarray:
    """An array in a MATLAB v5 struct, by struct.field: taken out as a file of its own, and read as that."""
    name, field = key.split(".", 1)
    check_memory(path, DEFLATE * path.stat().st_size if path.stat().st_size < 1 << 20 else 4 * path.stat().st_size, 1)
    content, names = mat5.field(path, name, field)
    if content is None:
        raise wrong_key(path, key, [f"{name}.{one}" for one in names])
    with TemporaryDirectory() as folder:
        alone = Path(folder) / path.name
        alone.write_bytes(content)
        return _read_mat_v5(alone, mat5.ALONE)


def _read_mat_v73(path: Path, key: str) -> np.ndarray:
    with h5py.File(path, "r") as file:
        return np.ascontiguousarray(dataset(file, path, key)[()].T)


def dataset(file: h5py.File, path: Path, key: str) -> h5py.Dataset:
    """An HDF5 file's array of numbers, unread, all that it declares checked.  Raises SceneFormatError."""
    found = _linked(file, path, key)
    if not isinstance(found, h5py.Dataset):
        raise SceneFormatError(f"{path}: '{key}' is not an array. Set the right key in the scene file.")
    if found.is_virtual or found.external:
        raise SceneFormatError(f"{path}: '{key}' is stored in other files. Copy it into this one.")
    if found.dtype.kind not in "biuf" or not found.size or _is_text(found):
        raise _no_numbers(path, key, found.dtype, found.shape)
    for shape in (found.shape, found.chunks or ()):
        check_size(path, shape, found.dtype.itemsize, DEFLATE if hdf5.is_packed(found) else LEFT_OUT)
    hdf5.check_chunks(found)
    return found


def holds(file: h5py.File, key: str) -> bool:
    """Whether an HDF5 file holds this itself: what a link elsewhere names does not count, and is not opened."""
    try:
        return _linked(file, Path(file.filename), key) is not None
    except SceneFormatError:
        return False


def mat_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The arrays of numbers of a MATLAB v5 file: name -> shape."""
    if matfile_version(path)[0] == 1:
        mat5.check_heads(path)
    return {name: shape for name, shape, kind in scipy.io.whosmat(path) if kind in _CLASS_BYTES}


def _linked(file: h5py.File, path: Path, key: str) -> h5py.HLObject:
    """What a key of an HDF5 file names.  Raises SceneFormatError if the way there is a link to elsewhere."""
    place = file
    for name in filter(None, key.split("/")):
        links = place.id.links if isinstance(place, h5py.Group) else None
        if links is None or not links.exists(name.encode()):
            raise wrong_key(path, key, [name for name in file if not name.startswith("#")])
        if links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            raise SceneFormatError(f"{path}: '{key}' is a link to another place. Name that place in the scene file, or "
                                   "copy the array into this file.")
        place = place[name]
    return place


def _is_text(dataset: h5py.Dataset) -> bool:
    """MATLAB stores letters and empty arrays as numbers, and says so beside them."""
    kind = dataset.attrs.get("MATLAB_class")
    return isinstance(kind, bytes) and kind == b"char" or "MATLAB_empty" in dataset.attrs


def check_size(path: Path, shape: Sequence[int], item_bytes: int, ratio: int,
               stored_bytes: int | None = None) -> None:
    """Raises SceneFormatError if a file cannot hold an array of this shape, or the memory cannot.

    ratio: bytes that one in the file can become.  stored_bytes: of a value before compression, where they differ from
    those in memory.
    """
    count, size = math.prod(shape), path.stat().st_size
    if min(shape, default=0) < 0 or count * (stored_bytes or item_bytes) > ALWAYS_READ + ratio * size:
        raise SceneFormatError(f"{path} declares {' × '.join(map(str, shape))} values, but has only {size:,} bytes. It "
                               "is damaged: copy it again.")
    check_memory(path, count, item_bytes)


def check_memory(path: Path, count: int, item_bytes: int) -> None:
    """Raises SceneFormatError if there is no room for so many values as they are, and as float32."""
    needed, free = count * (item_bytes + 4), free_memory()
    if free is not None and needed > max(free, ALWAYS_READ):
        raise SceneFormatError(f"{path} needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free. Cut "
                               "the scene into parts, or use a larger machine.")


def free_memory() -> int | None:
    """Bytes that a process can still take; None where the system does not tell."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", MEMINFO.read_text(), re.MULTILINE) if MEMINFO.exists() else None
    return 1024 * int(found[1]) if found else None


def _damaged(path: Path, reason: Exception | str) -> SceneFormatError:
    told = " ".join(str(reason).split())[:300] or type(reason).__name__
    return SceneFormatError(f"{path} cannot be read as a MATLAB file ({told}). It may be truncated: compare its size "
                            "with the original and copy it again.")


def _no_numbers(path: Path, key: str, kind: object, shape: object) -> SceneFormatError:
    return SceneFormatError(f"{path}: '{key}' holds {kind} {shape}, expected an array of real numbers.")


def wrong_key(path: Path, key: str, present: Iterable[str]) -> SceneFormatError:
    return SceneFormatError(f"{path} has no variable '{key}'; it holds {listed(present) or 'nothing'}. "
                            "Set the right key in the scene file.")


def listed(names: Iterable[str]) -> str:
    """Names in a file, as one line."""
    names = sorted(names)
    return ", ".join(map(_printable, names[:SHOWN_NAMES])) + ", …" * (len(names) > SHOWN_NAMES)


def _printable(name: str) -> str:
    return shortened(name if name.isprintable() else ascii(name), 40)


def read_raster(path: Path, nodata: float) -> tuple[np.ndarray, Georeference | None]:
    """A GeoTIFF, ENVI image or VRT as ([H, W, B], georeference), the file's own no-data value replaced by `nodata`.

    Raises as `read_mat`.
    """
    with raster(path) as file:
        array = np.moveaxis(file.read(), 0, 2)
        if file.nodata is not None:
            missing = np.isnan(array) if np.isnan(file.nodata) else array == file.nodata
            # 0 may also be a dark pixel's value in single bands
            missing = missing.all(axis=2) if file.nodata == 0 else missing.any(axis=2)
            array = array.astype(np.float32)
            array[missing] = nodata
        return array, place_of(file)


@contextmanager
def raster(path: Path) -> Iterator[rasterio.DatasetReader]:
    """A raster image, open, its size checked.  What GDAL says of damage becomes SceneFormatError."""
    if not is_file(path):
        raise SceneNotFoundError(f"{path.name} is not in {path.parent}.")
    try:
        with _opened(path) as file:
            check_raster(path, file)
            yield file
    except (RasterioError, OSError, ValueError, OverflowError, MemoryError) as error:
        told = " ".join(str(error).split())[:300]
        raise SceneFormatError(f"{path} cannot be read as a GeoTIFF or ENVI image, or as a .vrt of GeoTIFFs "
                               f"({told}).") from error


def place_of(file: rasterio.DatasetReader) -> Georeference | None:
    """Where a raster lies: by CRS and transform, a transform alone, or ground control points."""
    points, crs = file.gcps
    if points and file.transform.is_identity:
        return Georeference(crs.to_wkt() if crs else "", None,
                            tuple((one.row, one.col, one.x, one.y, one.z or 0.0) for one in points))
    if not file.crs and file.transform.is_identity:
        return None
    return Georeference(file.crs.to_wkt() if file.crs else "", tuple(file.transform)[:6])


@contextmanager
def _opened(path: Path) -> Iterator[rasterio.DatasetReader]:
    """A raster image, opened by no driver that would read what the file only names."""
    if path.suffix.lower() != ".vrt":
        with rasterio.open(path, driver="GTiff" if vrt.is_geotiff(path) else "ENVI") as file:
            yield file
        return
    text, held = vrt.local(path), 0
    for source in vrt.sources(text):
        with rasterio.open(source, driver="GTiff") as file:
            held += check_raster(source, file)
    with rasterio.MemoryFile(text, ext=".vrt") as memory, memory.open(driver="VRT") as file:
        if _bytes(path, file) > ALWAYS_READ + LEFT_OUT * held:
            raise SceneFormatError(f"{path} declares {file.height} × {file.width} × {file.count} values, far more than "
                                   "its sources hold. Correct it, or make it a GeoTIFF (gdal_translate).")
        yield file


def check_raster(path: Path, file: rasterio.DatasetReader) -> int:
    """The bytes of a raster's values.  Raises SceneFormatError if they are no real numbers, or more than can be."""
    total, shape = _bytes(path, file), (file.height, file.width, file.count)
    size = total // math.prod(shape)
    if file.driver == "VRT":
        check_memory(path, math.prod(shape), size)
        return total
    with open(path, "rb") as plain:
        packed = plain.read(len(_GZIP)) == _GZIP        # as ENVI's images may be
    _check_length(path, file, packed)
    ratio = DEFLATE if packed else _RATIO.get(file.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION"), LZW)
    for shape in (shape, *((*block, file.count) for block in set(file.block_shapes))):
        check_size(path, shape, size, ratio)
    return total


def _check_length(path: Path, file: rasterio.DatasetReader, packed: bool) -> None:
    """Raises SceneFormatError if an ENVI image is shorter than its header says: GDAL would read zeros."""
    header = file.tags(ns="ENVI")
    if file.driver != "ENVI" or packed or header.get("file_compression", "0").strip() == "1":
        return
    offset = header.get("header_offset", "0").strip()
    needed = _bytes(path, file) + (int(offset) if offset.isdecimal() else 0)
    if path.stat().st_size < needed:
        raise SceneFormatError(f"{path} has {path.stat().st_size:,} bytes, its header says {needed:,}. It is a "
                               "truncated "
                               "copy, or the header belongs to another file: copy it again.")


def _bytes(path: Path, file: rasterio.DatasetReader) -> int:
    kinds = [np.dtype(name) for name in file.dtypes]
    if any(kind.kind not in "biuf" for kind in kinds):
        raise SceneFormatError(f"{path} holds {file.dtypes[0]} values, expected real numbers.")
    return max(kind.itemsize for kind in kinds) * file.height * file.width * file.count
