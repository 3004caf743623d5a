"""Label maps, put on the cube's grid: rasters elsewhere or south-up, polygons, ids with gaps."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.warp import reproject

from datasets.errors import SceneFormatError
from datasets.scene import Georeference

log = logging.getLogger(__name__)

NEAR = 0.01                                             # of a pixel: the same grid
FINER = 0.75                                            # of the cube's pixel: the majority is taken
LARGEST_ID = 2 ** 31 - 1
VOID = 255


def as_labels(labels: np.ndarray, path: Path) -> np.ndarray:
    """[H, W] int64.  Raises SceneFormatError for another shape, or values that are not whole numbers."""
    labels = labels[..., 0] if labels.ndim == 3 and labels.shape[2] == 1 else labels
    if labels.ndim != 2:
        raise SceneFormatError(f"{path}: the label map has shape {labels.shape}, expected height × width.")
    if not (np.isfinite(labels).all() and (labels == np.round(labels)).all()):
        raise SceneFormatError(f"{path}: the label map holds values that are not whole numbers.")
    return labels.astype(np.int64)


def on_grid(labels: np.ndarray, place: Georeference | None, shape: tuple[int, int], cube_place: Georeference | None,
            path: Path) -> np.ndarray:
    """Labels [h, w] on the cube's pixels, by where both lie; as they are where one of them has no place.

    Of finer labels a pixel takes the most frequent one, of coarser ones the one at its centre.
    Raises SceneFormatError if no label lies on the cube.
    """
    if not (_placed(place) and _placed(cube_place)):
        return labels
    same_crs = not (place.crs and cube_place.crs) or _same(place.crs, cube_place.crs)
    if same_crs and labels.shape == shape and _distance(place.transform, cube_place.transform, shape) < NEAR:
        return labels
    if labels.min(initial=0) < 0 or labels.max(initial=0) > LARGEST_ID:
        raise SceneFormatError(f"{path}: ids run from {labels.min()} to {labels.max()}; expected 0 to {LARGEST_ID}.")
    theirs, ours = Affine(*place.transform), Affine(*cube_place.transform)
    crs = place.crs or cube_place.crs or "EPSG:3857"                        # of none, any: both are on the same plane
    finer = same_crs and abs(theirs.determinant) < FINER ** 2 * abs(ours.determinant)
    moved = np.zeros(shape, np.int32)
    reproject(labels.astype(np.int32), moved, src_transform=theirs, dst_transform=ours, src_crs=crs,
              dst_crs=crs if same_crs else cube_place.crs, init_dest_nodata=False,
              resampling=Resampling.mode if finer else Resampling.nearest)
    if labels.any() and not moved.any():
        raise SceneFormatError(f"{path}: no label lies on the cube. By their georeference (CRS and transform) the two "
                               "show "
                               "different places. Correct one of them, or take the labels' georeference away.")
    log.warning("%s: the labels lie on another grid than the cube; they are put on the cube's pixels (%d of %d "
                "labelled).",
                path, np.count_nonzero(moved), moved.size)
    return moved.astype(np.int64)


def _placed(place: Georeference | None) -> bool:
    return place is not None and place.transform is not None


def _same(a: str, b: str) -> bool:
    return a == b or CRS.from_wkt(a) == CRS.from_wkt(b)


def _distance(a: tuple[float, ...], b: tuple[float, ...], shape: tuple[int, int]) -> float:
    """How far two transforms put an image's corners apart, in pixels of the second."""
    first, inverse, (height, width) = Affine(*a), ~Affine(*b), shape
    corners = [(0, 0), (width, 0), (0, height), (width, height)]
    return max(np.hypot(*np.subtract(inverse * (first * corner), corner)) for corner in corners)


def renumbered(labels: np.ndarray, ids: dict[str, list[int]]) -> np.ndarray:
    """Labels 1..K from the ids of each class, in order; every other id is unlabelled."""
    found = np.zeros_like(labels)
    for k, numbers in enumerate(ids.values(), 1):
        found[np.isin(labels, numbers)] = k
    rest = np.unique(labels[(found == 0) & (labels != 0)])
    if len(rest):
        log.warning("The ids %s are of no class: unlabelled.", ", ".join(map(str, rest[:10])))
    return found


def without_void(labels: np.ndarray, n_classes: int, path: Path) -> np.ndarray:
    """Labels without 255 as void, where that is the only id beyond the classes."""
    beyond = np.unique(labels[labels > n_classes])
    if beyond.tolist() != [VOID]:
        return labels
    log.warning("%s: 255 is read as unlabelled (%d pixels): only %d classes are named. If so, say labels: "
                "{file: %s, nodata: "
                "255}.", path, (labels == VOID).sum(), n_classes, path.name)
    return np.where(labels == VOID, 0, labels)
