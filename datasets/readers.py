"""From files to a Scene: MATLAB v5 and v7.3, GeoTIFF and ENVI, described by a small YAML file.

A scene file (see configs/scene):

    name: Houston13
    folder: Houston                          # the pair's folder under ./datasets, when --data_path is not given
    cube: {file: Houston13.mat, key: ori_data}
    labels: {file: Houston13_7gt.mat, key: map}          # left out: an unlabelled scene
    class_names: [grass healthy, grass stressed, ...]    # of the labels 1..K; 0 is unlabelled
    wavelengths: [[380, 1050, 48]]           # nm: [first, last, count] pieces, a plain list, or {file: , key: }
    rgb_bands: [18, 12, 6]
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from argparse import ArgumentError
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import h5py
import numpy as np
import rasterio
import scipy.io
import yaml
from jsonargparse import ArgumentParser
from rasterio.errors import RasterioIOError
from scipy.io.matlab import MatReadError

from datasets.benchmark import BENCHMARK, check_scene
from datasets.errors import SceneFormatError, SceneNotFoundError
from datasets.scene import Georeference, Scene

log = logging.getLogger(__name__)

SCENE_CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "scene"
DATA_ROOT = Path("datasets")
_DAMAGED = (MatReadError, ValueError, TypeError, OSError, EOFError, KeyError, IndexError, NotImplementedError, zlib.error)


@dataclass
class FileEntry:
    """A file, and in it the variable's name where it is a MATLAB file."""

    file: str
    key: Optional[str] = None


@dataclass
class SceneFile:
    """What a scene file may hold; see the module's first lines."""

    name: str
    cube: FileEntry
    class_names: list[str]
    folder: Optional[str] = None
    labels: Optional[FileEntry] = None
    wavelengths: Union[FileEntry, list[float], list[tuple[float, float, int]], None] = None
    rgb_bands: Optional[tuple[int, int, int]] = None
    simulated: bool = False


def read_mat(path: Path, key: str) -> np.ndarray:
    """One array of a MATLAB file, v5 or v7.3, with MATLAB's own axes (v7.3 stores them reversed).

    Raises SceneNotFoundError if the file is missing, SceneFormatError where it is damaged or lacks the key.
    """
    path = Path(path)
    if not path.is_file():
        raise SceneNotFoundError(f"{path.name} is not in {path.parent}.")
    if h5py.is_hdf5(path):
        return _read_mat_v73(path, key)
    try:
        content = {name: value for name, value in scipy.io.loadmat(path).items() if not name.startswith("__")}
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    if not content:
        raise _damaged(path, "it holds no variable")
    if key not in content:
        raise _wrong_key(path, key, content)
    return _numbers(path, key, content[key])


def _read_mat_v73(path: Path, key: str) -> np.ndarray:
    try:
        with h5py.File(path, "r") as file:
            if key not in file:
                raise _wrong_key(path, key, [name for name in file if not name.startswith("#")])
            if not isinstance(file[key], h5py.Dataset):
                raise SceneFormatError(f"{path}: '{key}' is not an array. Set the right key in the scene file.")
            return _numbers(path, key, np.ascontiguousarray(file[key][()].T))
    except (OSError, RuntimeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, reason: Exception | str) -> SceneFormatError:
    return SceneFormatError(f"{path} cannot be read as a MATLAB file ({reason}). It may be truncated: compare its size "
                            "with the original and copy it again.")


def _numbers(path: Path, key: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biuf" or array.size == 0:
        raise SceneFormatError(f"{path}: '{key}' holds {array.dtype} {array.shape}, expected an array of real numbers.")
    return array


def _wrong_key(path: Path, key: str, present: Iterable[str]) -> SceneFormatError:
    return SceneFormatError(f"{path} has no variable '{key}'; it holds {', '.join(sorted(present)) or 'nothing'}. "
                            "Set the right key in the scene file.")


def read_raster(path: Path, nodata: float) -> tuple[np.ndarray, Georeference | None]:
    """A GeoTIFF or ENVI image as ([H, W, B], georeference), the file's own no-data value replaced by `nodata`.

    Raises as `read_mat`.
    """
    if not path.is_file():
        raise SceneNotFoundError(f"{path.name} is not in {path.parent}.")
    try:
        with rasterio.open(path) as file:
            array = np.moveaxis(file.read(), 0, 2)
            if file.nodata is not None:
                missing = np.isnan(array) if np.isnan(file.nodata) else array == file.nodata
                # 0 may also be a dark pixel's value in single bands
                missing = missing.all(axis=2) if file.nodata == 0 else missing.any(axis=2)
                array = array.astype(np.float32)
                array[missing] = nodata
            place = Georeference(file.crs.to_wkt(), tuple(file.transform)[:6]) if file.crs else None
    except RasterioIOError as error:
        raise SceneFormatError(f"{path} cannot be read as a raster image ({error}).") from error
    return array, place


def find_description(name: str) -> Path:
    """The scene file of a registered name (configs/scene/NAME.yaml) or of a path to a user's own."""
    registered = SCENE_CONFIGS / f"{name}.yaml"
    if registered.is_file():
        return registered
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    known = ", ".join(sorted(file.stem for file in SCENE_CONFIGS.glob("*.yaml")))
    raise SceneNotFoundError(f"'{name}' is neither a registered scene ({known}) nor a path to a scene file "
                             "(docs/data.md, \"Your own scenes\").")


def read_description(path: Path) -> SceneFile:
    """A scene file, every key and type checked.  Raises SceneFormatError that names what is wrong."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SceneFormatError(f"{path} is not a valid YAML text file: {error}") from error
    if not isinstance(content, dict):
        raise SceneFormatError(f"{path} must hold key: value pairs (see configs/scene for examples).")
    for part in ("cube", "labels"):
        if part in content and not isinstance(content[part], dict):
            raise SceneFormatError(f"{path}: {part} must name a file, as in {part}: {{file: scene.mat, key: map}}.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SceneFile)
    try:
        entry = SceneFile(**parser.instantiate(parser.parse_object(content)).as_dict())
    except ArgumentError as error:
        raise SceneFormatError(f"{path} is not a scene file (see configs/scene for examples): {error}") from error
    if not entry.class_names or len(set(entry.class_names)) < len(entry.class_names):
        raise SceneFormatError(f"{path}: class_names must name at least one class, and no two alike.")
    if isinstance(entry.wavelengths, FileEntry) and entry.wavelengths.key is None:
        raise SceneFormatError(f"{path}: wavelengths need the variable's name, as in {{file: scene.mat, key: wavelength}}.")
    return entry


def data_folder(entry: SceneFile, path: Path, data_path: str | None) -> Path:
    """Where a scene's files are: beside a user's own scene file; else --data_path (or the pair's folder in it); else
    ./datasets/<pair>."""
    own = path.parent != SCENE_CONFIGS
    if own and (path.parent / entry.cube.file).exists():
        return path.parent
    if data_path is not None:
        given = Path(data_path)
        nested = given / entry.folder if entry.folder else given
        return nested if not (given / entry.cube.file).exists() and nested.is_dir() else given
    return DATA_ROOT / entry.folder if entry.folder else path.parent


def load_scene(name: str, data_path: str | None = None) -> Scene:
    """Read a scene by registered name or by the path of its scene file.

    Broken pixels (NaN or infinite in any band) become zero spectra without a label.
    Raises SceneNotFoundError or SceneFormatError with what to do.
    """
    path = find_description(name)
    entry = read_description(path)
    folder = data_folder(entry, path, data_path)
    digests: dict[str, str] = {}
    cube, place = _read_part(entry, "cube", folder, digests)
    if cube.ndim != 3:
        raise SceneFormatError(f"{folder / entry.cube.file}: the cube has {cube.ndim} dimensions "
                               f"{cube.shape}, expected height × width × bands. Check its key in {path}.")
    if entry.labels is not None:
        labels = _as_labels(_read_part(entry, "labels", folder, digests)[0], folder / entry.labels.file)
    else:
        labels = np.zeros(cube.shape[:2], np.int64)
    cube, labels = _drop_broken(entry.name, cube, labels)
    scene = Scene(entry.name, cube, labels, tuple(entry.class_names), _wavelengths(entry.wavelengths, folder),
                  tuple(entry.rgb_bands or _default_rgb(cube.shape[2])), place, digests)
    if scene.name in BENCHMARK:
        for difference in check_scene(scene.name, scene.cube.shape, scene.class_counts().tolist()):
            log.warning("%s (other variants of these files circulate; numbers may differ)", difference)
    return scene


def scene_digests(name: str, data_path: str | None = None) -> dict[str, str]:
    """What `load_scene` would give as the scene's sha256, without reading the scene.  Raises SceneNotFoundError."""
    path = find_description(name)
    entry = read_description(path)
    folder = data_folder(entry, path, data_path)
    return {part.file: sha256(_existing(entry, part, folder)) for part in (entry.cube, entry.labels) if part}


def _existing(entry: SceneFile, part: FileEntry, folder: Path) -> Path:
    path = folder / part.file
    if not path.is_file():
        raise SceneNotFoundError(_where_to_get(entry, path))
    return path


def _read_part(entry: SceneFile, part: str, folder: Path, digests: dict[str, str]
               ) -> tuple[np.ndarray, Georeference | None]:
    source: FileEntry = getattr(entry, part)
    path = _existing(entry, source, folder)
    if path.suffix.lower() == ".mat":
        if source.key is None:
            raise SceneFormatError(f"{entry.name}: '{part}' needs the variable's name in {path.name}, as in "
                                   f"{part}: {{file: {path.name}, key: ori_data}}.")
        array, place = read_mat(path, source.key), None
    else:
        array, place = read_raster(path, nodata=np.nan if part == "cube" else 0)
    digests[source.file] = sha256(path)
    return array, place


def _where_to_get(entry: SceneFile, path: Path) -> str:
    message = f"{path.name} is not in {path.parent}. "
    if entry.name in BENCHMARK:
        return message + (f"Put the {entry.folder} pair there (python main.py prepare {entry.folder.lower()}; "
                          "docs/data.md, \"Originals\"), say where it is with --data_path, or try "
                          "--config configs/simulated.yaml.")
    return message + ("Say with --data_path where the scene's files are, or correct the file name in its scene file; "
                      "--config configs/simulated.yaml runs without any download.")


def _as_labels(labels: np.ndarray, path: Path) -> np.ndarray:
    labels = labels[..., 0] if labels.ndim == 3 and labels.shape[2] == 1 else labels
    if labels.ndim != 2:
        raise SceneFormatError(f"{path}: the label map has shape {labels.shape}, expected height × width.")
    if not (np.isfinite(labels).all() and (labels == np.round(labels)).all()):
        raise SceneFormatError(f"{path}: the label map holds values that are not whole numbers.")
    return labels.astype(np.int64)


def _drop_broken(name: str, cube: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cube = np.ascontiguousarray(cube, dtype=np.float32)
    broken = ~np.isfinite(cube).all(axis=2)
    if not broken.any():
        return cube, labels
    log.warning("%s: %d pixels hold NaN or infinite values; they become zero spectra without a label", name,
                broken.sum())
    cube[broken] = 0
    if labels.shape == broken.shape:          # otherwise Scene.verify reports the shapes
        labels = np.where(broken, 0, labels)
    return cube, labels


def _wavelengths(entry: FileEntry | list | None, folder: Path) -> np.ndarray | None:
    if not entry:
        return None
    if isinstance(entry, FileEntry):
        return read_mat(folder / entry.file, entry.key).ravel().astype(np.float64)
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
