"""Writers: MATLAB v5 and v7.3 files, in the layout that MATLAB itself uses, and class maps as GeoTIFF."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
import rasterio
import scipy.io
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine

from datasets.scene import Georeference, Scene
from model.errors import ConfigError
from model.files import replacing

log = logging.getLogger(__name__)

_HEADER_BYTES = 116       # text part of both file headers (MATLAB "MAT-File Format", level 5)
_V73_BLOCK = 512          # MATLAB puts its header in a user block before the HDF5 data


def write_mat_v5(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as a MATLAB v5 file, atomically; the same arrays give the same bytes."""
    with replacing(path) as file:
        scipy.io.savemat(file, arrays, do_compression=True)
        _stamp(file, "MATLAB 5.0 MAT-file")


def write_mat_v73(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as a MATLAB v7.3 file (HDF5, axes reversed), atomically."""
    with replacing(path) as part:
        stored = io.BytesIO()                # HDF5 itself ends the process where the disk is full
        with h5py.File(stored, "w", userblock_size=_V73_BLOCK) as file:
            for key, array in arrays.items():
                data = file.create_dataset(key, data=np.asarray(array).T, compression="gzip", compression_opts=4)
                kind = {"float64": "double", "float32": "single", "bool": "logical"}.get(str(array.dtype),
                                                                                         str(array.dtype))
                data.attrs["MATLAB_class"] = np.bytes_(kind)
        part.write(stored.getbuffer())
        _stamp(part, "MATLAB 7.3 MAT-file, HDF5 schema 1.00 .", bytes(8) + b"\x00\x02IM")


def write_map(path: Path, prediction: np.ndarray, scene: Scene, class_names: tuple[str, ...]) -> None:
    """Write a class map [H, W] (1..K, 0 = no data) of a scene as GeoTIFF with the scene's georeference and the class names as tags,
    atomically.  Raises ConfigError if it cannot be written."""
    place = scene.georeference
    extra = {} if place is None else _georeferenced(place)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part, rasterio.MemoryFile() as memory:       # GDAL itself says nothing of a full disk
            with memory.open(driver="GTiff", height=prediction.shape[0], width=prediction.shape[1], count=1,
                             dtype=prediction.dtype, nodata=0, compress="deflate", **extra) as file:
                file.write(prediction, 1)
                file.update_tags(**{f"class_{k}": name for k, name in enumerate(class_names, 1)})
            part.write(memory.getbuffer())
    except (OSError, rasterio.errors.RasterioIOError) as error:
        raise ConfigError(f"The map {path} cannot be written ({error}). Choose another --out.") from error


def _georeferenced(place: Georeference) -> dict[str, object]:
    """A georeference as rasterio's arguments; control points stay control points."""
    crs = {"crs": place.crs} if place.crs else {}
    if not place.crs:
        log.warning("The scene has no coordinate reference system; its map has the same transform and none, either. "
                    "Set "
                    "one in QGIS (Layer > Set CRS).")
    if place.transform is None:
        return crs | {"gcps": [GroundControlPoint(*point) for point in place.points]}
    return crs | {"transform": Affine(*place.transform)}


def _stamp(file: BinaryIO, text: str, tail: bytes = b"") -> None:
    """Overwrite the header text (scipy writes the date of the day there)."""
    file.seek(0)
    file.write(text.ljust(_HEADER_BYTES).encode() + tail)
