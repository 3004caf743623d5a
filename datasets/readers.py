"""From files to a Scene, as its scene file says (description.py)."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets import arrays, polygons
from datasets.bands import Chosen, choose, keep
from datasets.benchmark import BENCHMARK, check_scene
from datasets.description import SCENE_CONFIGS, FileEntry, SceneFile, find_description, read_description
from datasets.errors import SceneFormatError, SceneNotFoundError
from datasets.formats import read_raster
from datasets.images import Facts, Image, data_file, read_image
from datasets.labels import as_labels, on_grid, renumbered, without_void
from datasets.polygons import Polygons, burnt, read_polygons
from datasets.scene import Georeference, Scene
from datasets.tiles import read_tiles, tiles_of
from model.plain import is_file

log = logging.getLogger(__name__)

DATA_ROOT = Path("datasets")


def data_folder(entry: SceneFile, path: Path, data_path: str | None) -> Path:
    """Where a scene's files are: beside a user's own scene file; else --data_path (or the pair's folder in it); else
    ./datasets/<pair>."""
    own = path.parent != SCENE_CONFIGS
    if own and (entry.cube.tiles or is_file(path.parent / entry.cube.file)):
        return path.parent
    if data_path is not None:
        given = Path(data_path)
        nested = given / entry.folder if entry.folder else given
        return nested if not is_file(given / entry.cube.file) and nested.is_dir() else given
    return DATA_ROOT / entry.folder if entry.folder else path.parent


def load_scene(name: str, data_path: str | None = None) -> Scene:
    """Read a scene by registered name or by the path of its scene file.

    Broken pixels (no data, NaN or infinite in any band that is kept) become zero spectra without a label.
    Raises SceneNotFoundError or SceneFormatError with what to do.
    """
    return read_scene_file(find_description(name), data_path).scene


@dataclass
class Reading:
    """A scene, and what was found on the way: the image's facts, the bands kept, the share of broken pixels, the scene
    file's content, and the shape of the cube in the file."""

    scene: Scene
    image: Image
    chosen: Chosen
    broken: float
    entry: SceneFile
    stored: tuple[int, int, int]


def read_scene_file(path: Path, data_path: str | None = None, entry: SceneFile | None = None) -> Reading:
    """A scene and what was found, from its scene file (or its content).  Raises as `load_scene`."""
    entry = entry or read_description(path)
    folder = data_folder(entry, path, data_path)
    files = _files(entry, folder)
    given = Facts(_wavelengths(entry.wavelengths, folder), entry.wavelength_units, nodata=entry.nodata,
                  scale=entry.scale, offset=entry.offset)
    labels = None if entry.labels is None else _read_labels(entry, folder)
    size = labels[0].shape if labels and isinstance(labels[0], np.ndarray) else None
    image = _read_cube(entry, folder, given, size)
    stored, where = image.cube.shape, str(folder / (entry.cube.file or "the cube"))
    if entry.fwhm is not None:
        image.facts.fwhm = np.broadcast_to(np.asarray(entry.fwhm, np.float64), np.size(entry.fwhm) if
                                           isinstance(entry.fwhm, list) else stored[2])
    _tell_fills(entry.name, image)
    chosen = choose(stored[2], image.dead, image.facts, entry.drop, where)
    if chosen.dropped:
        log.warning("%s: %d of %d bands are left out (%s).", entry.name, len(chosen.dropped), stored[2],
                    "; ".join(sorted(set(chosen.dropped.values()))))
    cube = image.cube = keep(image.cube, chosen.order)
    on_cube = np.zeros(cube.shape[:2], np.int64) if labels is None else _on_cube(entry, folder, labels, image)
    cube, on_cube, broken = _drop_broken(entry.name, cube, on_cube)
    digests = {name: sha256(folder / name) for name in files}
    scene = Scene(entry.name, cube, on_cube, tuple(entry.class_names), chosen.wavelengths,
                  _rgb(entry, chosen, cube.shape[2]), image.facts.place, digests, chosen.fwhm)
    if scene.name in BENCHMARK:
        for difference in check_scene(scene.name, scene.cube.shape, scene.class_counts().tolist()):
            log.warning("%s (other variants of these files circulate; numbers may differ)", difference)
    return Reading(scene, image, chosen, broken, entry, stored)


def scene_digests(name: str, data_path: str | None = None) -> dict[str, str]:
    """What `load_scene` would give as the scene's sha256, without reading the scene.  Raises SceneNotFoundError."""
    path = find_description(name)
    entry = read_description(path)
    folder = data_folder(entry, path, data_path)
    return {name: sha256(folder / name) for name in _files(entry, folder)}


def _files(entry: SceneFile, folder: Path) -> list[str]:
    """The files that a scene is read from, relative to its folder.  Raises SceneNotFoundError if one is missing."""
    names = [str(path.relative_to(folder)) for path in tiles_of(folder, entry.cube.tiles)] if entry.cube.tiles else \
        [entry.cube.file]
    names += [entry.labels.file] if entry.labels else []
    for name in names:
        _existing(entry, name, folder)
    return names


def _existing(entry: SceneFile, name: str, folder: Path) -> Path:
    path = folder / name
    if not is_file(path):
        raise SceneNotFoundError(_where_to_get(entry, path))
    return path


def _read_cube(entry: SceneFile, folder: Path, given: Facts, labels: tuple[int, int] | None) -> Image:
    if entry.cube.tiles:
        return read_tiles(tiles_of(folder, entry.cube.tiles), given)
    path = _existing(entry, entry.cube.file, folder)
    if path.suffix.lower() in arrays.SUFFIXES:
        bands = None if given.wavelengths is None else len(given.wavelengths)
        return arrays.read_cube(path, entry.cube.key, entry.axes, given, labels, bands)
    if entry.axes not in (None, "rcb"):
        raise SceneFormatError(f"{path}: axes is for MATLAB, NumPy and HDF5 files; an image says itself which axis is "
                               "which.")
    return read_image(path, given)


def _read_labels(entry: SceneFile, folder: Path) -> tuple[np.ndarray | Polygons, Georeference | None]:
    """Labels as their file holds them: [h, w] int64 with a place, or polygons."""
    path = _existing(entry, entry.labels.file, folder)
    if path.suffix.lower() in polygons.SUFFIXES:
        return read_polygons(path), None
    if path.suffix.lower() in arrays.SUFFIXES:
        array, place = arrays.read_array(path, entry.labels.key), None
    else:
        array, place = read_raster(data_file(path), nodata=0)
    if entry.labels.nodata is not None:
        array = np.where(array == entry.labels.nodata, 0, array)
    return as_labels(array, path), place


def _on_cube(entry: SceneFile, folder: Path, read: tuple, image: Image) -> np.ndarray:
    """Labels [H, W] int64, 1..K, on the cube's pixels."""
    (found, place), path, shape = read, folder / entry.labels.file, image.cube.shape[:2]
    if isinstance(found, Polygons):
        names = {name: [str(one) for one in entry.ids[name]] if entry.ids else [name] for name in entry.class_names}
        return burnt(found, found.classes(entry.labels.key, path), names, shape, image.facts.place, path)
    if entry.ids is not None:
        if not all(isinstance(one, int) for listed in entry.ids.values() for one in listed):
            raise SceneFormatError(f"{path}: classes must give ids (whole numbers) for a label map; names are for "
                                   "polygons.")
        found = renumbered(found, entry.ids)
    else:
        found = without_void(found, len(entry.class_names), path)
    return on_grid(found, place, shape, image.facts.place, path)


def _tell_fills(name: str, image: Image) -> None:
    for value, pixels in image.fills.items():
        log.warning("%s: %d pixels hold %g, a fill value that the file does not declare; they count as no data. If "
                    "so, say "
                    "nodata: %g in the scene file.", name, pixels, value, value)


def _rgb(entry: SceneFile, chosen: Chosen, bands: int) -> tuple[int, int, int]:
    """Bands of false colour.  The scene file counts those of the file; the nearest stands for one left out."""
    if entry.rgb_bands is None:
        return _default_rgb(bands)
    most = chosen.order.max() + len(chosen.dropped)
    if not all(0 <= band <= most for band in entry.rgb_bands):
        return tuple(entry.rgb_bands)                   # Scene.verify refuses them
    return tuple(int(np.abs(chosen.order - band).argmin()) for band in entry.rgb_bands)


def _where_to_get(entry: SceneFile, path: Path) -> str:
    message = f"{path.name} is not in {path.parent}. "
    if entry.name in BENCHMARK:
        return message + (f"Put the {entry.folder} pair there (python main.py prepare {entry.folder.lower()}; "
                          "docs/data.md, \"Originals\"), say where it is with --data_path, or try "
                          "--config configs/simulated.yaml.")
    return message + ("Say with --data_path where the scene's files are, or correct the file name in its scene file; "
                      "--config configs/simulated.yaml runs without any download.")


def _drop_broken(name: str, cube: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Broken pixels as zero spectra without a label, in place, and their share."""
    broken = np.array([~np.isfinite(row).all(axis=1) for row in cube])
    if not broken.any():
        return cube, labels, 0.0
    log.warning("%s: %d pixels hold NaN or infinite values, or no data; they become zero spectra without a label", name,
                broken.sum())
    cube[broken] = 0
    if labels.shape == broken.shape:          # otherwise Scene.verify reports the shapes
        labels = np.where(broken, 0, labels)
    return cube, labels, float(broken.mean())


def _wavelengths(entry: FileEntry | list | None, folder: Path) -> np.ndarray | None:
    if not entry:
        return None
    if isinstance(entry, FileEntry):
        return arrays.read_array(folder / entry.file, entry.key).ravel().astype(np.float64)
    if isinstance(entry[0], (tuple, list)):
        return np.concatenate([np.linspace(first, last, count) for first, last, count in entry])
    return np.asarray(entry, np.float64)


def _default_rgb(bands: int) -> tuple[int, int, int]:
    return (3 * (bands - 1)) // 4, (bands - 1) // 2, (bands - 1) // 4


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
