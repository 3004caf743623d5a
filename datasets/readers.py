"""From files (formats.py) to a Scene, described by a small YAML file.

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
from argparse import ArgumentError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Union

import numpy as np
from jsonargparse import ArgumentParser

from datasets.benchmark import BENCHMARK, check_scene
from datasets.errors import SceneFormatError, SceneNotFoundError
from datasets.formats import read_mat, read_raster
from datasets.scene import Georeference, Scene, check_name
from model.plain import is_file, read_settings

log = logging.getLogger(__name__)

SCENE_CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "scene"
DATA_ROOT = Path("datasets")
LONGEST_PATH = 4000                     # letters
MOST_BANDS = 100_000


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
    class_names: list[str] = field(default_factory=list)
    folder: Optional[str] = None
    labels: Optional[FileEntry] = None
    wavelengths: Union[FileEntry, list[float], list[tuple[float, float, int]], None] = None
    rgb_bands: Optional[tuple[int, int, int]] = None
    simulated: bool = False


def find_description(name: str) -> Path:
    """The scene file of a registered name (configs/scene/NAME.yaml) or of a path to a user's own."""
    registered = SCENE_CONFIGS / f"{name}.yaml"
    if is_file(registered):
        return registered
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and is_file(path):
        return path
    known = ", ".join(sorted(file.stem for file in SCENE_CONFIGS.glob("*.yaml")))
    raise SceneNotFoundError(f"'{name}' is neither a registered scene ({known}) nor a path to a scene file "
                             "(docs/data.md, \"Your own scenes\").")


def read_description(path: Path) -> SceneFile:
    """A scene file, every key and type checked.  Raises SceneFormatError that names what is wrong."""
    content = read_settings(path, SceneFile, SceneFormatError)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SceneFile)
    try:
        entry = SceneFile(**parser.instantiate(parser.parse_object(content)).as_dict())
    except ArgumentError as error:
        raise SceneFormatError(f"{path} is not a scene file (see configs/scene for examples): "
                               f"{' '.join(str(error).split())[:400]}") from error
    _check_names(entry, path)
    if not entry.class_names and entry.labels or len(set(entry.class_names)) < len(entry.class_names):
        raise SceneFormatError(f"{path}: class_names must name at least one class, and no two alike.")
    if isinstance(entry.wavelengths, FileEntry) and entry.wavelengths.key is None:
        raise SceneFormatError(f"{path}: wavelengths need the variable's name, as in {{file: scene.mat, key: wavelength}}.")
    if isinstance(entry.wavelengths, list):
        _check_wavelengths(entry.wavelengths, path)
    return entry


def _check_wavelengths(given: list, path: Path) -> None:
    values = [value for one in given for value in (one[:2] if isinstance(one, (tuple, list)) else [one])]
    counts = [one[2] for one in given if isinstance(one, (tuple, list))]
    if not (np.isfinite(values).all() and all(0 < count <= MOST_BANDS for count in counts)):
        raise SceneFormatError(f"{path}: wavelengths must be finite, and the count of a piece lie between 1 and "
                               f"{MOST_BANDS}.")


def _check_names(entry: SceneFile, path: Path) -> None:
    """Raises SceneFormatError for names that no file, table or figure can show."""
    parts = [part for part in (entry.cube, entry.labels, entry.wavelengths) if isinstance(part, FileEntry)]
    try:
        for name in (entry.name, *entry.class_names, entry.folder or ""):
            check_name(name)
        for name in (name for part in parts for name in (part.file, part.key or "")):
            check_name(name, longest=LONGEST_PATH)
    except SceneFormatError as error:
        raise SceneFormatError(f"{path}: {error}") from error


def data_folder(entry: SceneFile, path: Path, data_path: str | None) -> Path:
    """Where a scene's files are: beside a user's own scene file; else --data_path (or the pair's folder in it); else
    ./datasets/<pair>."""
    own = path.parent != SCENE_CONFIGS
    if own and is_file(path.parent / entry.cube.file):
        return path.parent
    if data_path is not None:
        given = Path(data_path)
        nested = given / entry.folder if entry.folder else given
        return nested if not is_file(given / entry.cube.file) and nested.is_dir() else given
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
    if not is_file(path):
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
