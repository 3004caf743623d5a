"""One scene in several GeoTIFF tiles on one grid."""

from __future__ import annotations

import glob
from dataclasses import replace
from pathlib import Path

import numpy as np
from rasterio.transform import Affine

from datasets import formats
from datasets.errors import SceneFormatError
from datasets.images import Facts, Image, dead_bands, read_image
from datasets.scene import Georeference

MOST_TILES = 1000


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
    corners = _corners(paths, frames)
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


def _corners(paths: list[Path], frames: list[tuple]) -> list[tuple[int, int]]:
    """Row and column of each tile's corner, on the first one's grid."""
    corners, first = [], frames[0]
    for path, (_, transform, *_) in zip(paths, frames):
        column, row = ~Affine(*first[1]) * (transform[2], transform[5])
        if max(abs(row - round(row)), abs(column - round(column))) > 0.01:
            raise SceneFormatError(f"{path} lies between the pixels of {paths[0].name}. Resample the tiles to one grid.")
        corners.append((round(row), round(column)))
    return corners


def _frame(path: Path) -> tuple[str, tuple[float, ...], int, int, int]:
    """CRS, transform, height, width and bands of a tile."""
    with formats.raster(path) as file:
        place = formats.place_of(file)
        if place is None or place.transform is None:
            raise SceneFormatError(f"{path} has no georeference; tiles are put together by it. Join them first.")
        return place.crs, place.transform, file.height, file.width, file.count
