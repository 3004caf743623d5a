"""GeoTIFFs for tests."""

from pathlib import Path

import numpy as np
import rasterio


def write_tif(path: Path, array: np.ndarray, **profile) -> None:
    """An array [H, W] or [H, W, B] as GeoTIFF."""
    array = np.atleast_3d(array)
    with rasterio.open(path, "w", driver="GTiff", height=array.shape[0], width=array.shape[1], count=array.shape[2],
                       dtype=array.dtype, **profile) as file:
        file.write(np.moveaxis(array, 2, 0))
