"""Scene files: small YAML files that say what a scene is made of.

A scene file (see configs/scene and docs/data.md, "Your own scenes"):

    name: Houston13
    folder: Houston                          # the pair's folder under ./datasets, when --data_path is not given
    cube: {file: Houston13.mat, key: ori_data}           # or {files: tile_*.tif}
    labels: {file: Houston13_7gt.mat, key: map}          # left out: an unlabelled scene
    class_names: [grass healthy, grass stressed, ...]    # of the labels 1..K; 0 is unlabelled
    wavelengths: [[380, 1050, 48]]           # nm: [first, last, count] pieces, a plain list, or {file: , key: }
    rgb_bands: [18, 12, 6]

and, each in place of what the file says: wavelength_units, fwhm, nodata, scale, offset, axes, bands, classes.
"""

from __future__ import annotations

import unicodedata
from argparse import ArgumentError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import yaml
from jsonargparse import ArgumentParser

from datasets.bands import check_drop
from datasets.errors import SceneFormatError, SceneNotFoundError
from datasets.scene import check_name
from model.plain import is_file, parse_yaml, settings_in, settings_text

SCENE_CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "scene"
LONGEST_PATH = 4000                     # letters
MOST_BANDS = 100_000


@dataclass
class FileEntry:
    """A file (or a pattern or list of tiles), in it the variable's name or the polygons' column of classes, and the
    value that means no data."""

    file: str = ""
    key: Optional[str] = None
    files: Union[str, list[str], None] = None
    nodata: Optional[float] = None

    @property
    def tiles(self) -> str | list[str] | None:
        """The names of tiles, or a pattern of them; None for a single file."""
        return self.files or (self.file if any(sign in self.file for sign in "*?") else None)


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
    wavelength_units: Optional[str] = None
    fwhm: Union[float, list[float], None] = None
    nodata: Optional[float] = None
    scale: Optional[float] = None
    offset: Optional[float] = None
    axes: Optional[str] = None
    bands: Optional[dict[str, Any]] = None
    classes: Optional[dict[str, Any]] = None

    @property
    def drop(self) -> list:
        """Bands that are left out: numbers from 0, and ranges of wavelength."""
        return (self.bands or {}).get("drop", [])

    @property
    def ids(self) -> dict[str, list] | None:
        """What each class is called in the label file: ids, or names in a column of polygons; None where 1..K."""
        return None if self.classes is None else {name: one if isinstance(one, list) else [one]
                                                  for name, one in self.classes.items()}


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
    text = settings_text(path, SceneFormatError)
    content = parse_yaml(text, Path(path), SceneFormatError)
    free = _taken_out(content, path) if isinstance(content, dict) else {}
    content = settings_in(yaml.safe_dump(content) if free else text, path, SceneFile, SceneFormatError)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SceneFile, skip={"bands", "classes"})
    try:
        entry = SceneFile(**parser.instantiate(parser.parse_object(content)).as_dict())
    except ArgumentError as error:
        raise SceneFormatError(f"{path} is not a scene file (see configs/scene for examples): "
                               f"{' '.join(str(error).split())[:400]}") from error
    _put_back(entry, free)
    _check_names(entry, path)
    if not entry.class_names and entry.labels or len(set(map(_folded, entry.class_names))) < len(entry.class_names):
        raise SceneFormatError(f"{path}: class_names must name at least one class, and no two alike (upper case, "
                               "spaces and "
                               "look-alike letters do not count).")
    if entry.axes is not None and sorted(entry.axes) != ["b", "c", "r"]:
        raise SceneFormatError(f"{path}: axes must hold r (rows), c (columns) and b (bands) once each, in the order "
                               "of the "
                               "file, as in axes: brc.")
    if isinstance(entry.wavelengths, FileEntry) and entry.wavelengths.key is None:
        raise SceneFormatError(f"{path}: wavelengths need the variable's name, as in "
                               f"{{file: scene.mat, key: wavelength}}.")
    if isinstance(entry.fwhm, list) and not np.isfinite(entry.fwhm).all():
        raise SceneFormatError(f"{path}: fwhm must be finite.")
    if isinstance(entry.wavelengths, list):
        _check_wavelengths(entry.wavelengths, path)
    return entry


def _taken_out(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The keys of a scene file that hold lists in dictionaries, taken out of it and checked here."""
    found = {name: content.pop(name) for name in ("bands", "classes") if content.get(name) is not None}
    if (bands := found.get("bands")) is not None:
        if not isinstance(bands, dict) or set(bands) != {"drop"}:
            raise SceneFormatError(f"{path}: bands must be {{drop: [...]}}, the bands to leave out.")
        found["bands"] = {"drop": check_drop(bands["drop"], str(path))}
    if (classes := found.get("classes")) is not None:
        _check_classes(classes, content.get("class_names"), path)
        content.setdefault("class_names", list(classes))
    cube = content.get("cube")
    if isinstance(cube, dict) and isinstance(cube.get("files"), list):
        if not cube["files"] or not all(isinstance(one, str) for one in cube["files"]):
            raise SceneFormatError(f"{path}: cube: files must be a pattern or a list of file names.")
        found["files"] = cube.pop("files")
    if isinstance(cube, dict) and not (cube.get("file") or cube.get("files") or found.get("files")):
        raise SceneFormatError(f"{path}: cube must name its file, as in cube: {{file: scene.tif}}.")
    return found


def _put_back(entry: SceneFile, free: dict[str, Any]) -> None:
    entry.bands, entry.classes = free.get("bands"), free.get("classes")
    if "files" in free:
        entry.cube.files = free["files"]


def _check_classes(classes: Any, names: Any, path: Path) -> None:
    """Raises SceneFormatError if classes holds no ids and no names, or differs from class_names."""
    def fits(value: Any) -> bool:
        return isinstance(value, (int, str)) and not isinstance(value, bool)

    if not isinstance(classes, dict) or not classes or not all(
            fits(one) or isinstance(one, list) and one and all(map(fits, one)) for one in classes.values()):
        raise SceneFormatError(f"{path}: classes must say what each class is called in the label file: its ids, as in "
                               "classes: "
                               "{road: [2, 7]}, or its names in a column of polygons, as in classes: {road: asphalt}.")
    if names is not None and names != list(classes):
        raise SceneFormatError(f"{path}: class_names and classes name other classes, or in another order. Leave "
                               "class_names "
                               "out.")
    every = [str(value) for one in classes.values() for value in (one if isinstance(one, list) else [one])]
    if len(set(every)) < len(every):
        raise SceneFormatError(f"{path}: classes gives one id or name to two classes.")


def _folded(name: str) -> str:
    """A name without what the eye does not tell apart."""
    return " ".join(unicodedata.normalize("NFKC", str(name)).casefold().split())


def _check_wavelengths(given: list, path: Path) -> None:
    values = [value for one in given for value in (one[:2] if isinstance(one, (tuple, list)) else [one])]
    counts = [one[2] for one in given if isinstance(one, (tuple, list))]
    if not (np.isfinite(values).all() and all(0 < count <= MOST_BANDS for count in counts)):
        raise SceneFormatError(f"{path}: wavelengths must be finite, and the count of a piece lie between 1 and "
                               f"{MOST_BANDS}.")


def _listed(files: str | list[str] | None) -> list[str]:
    return files if isinstance(files, list) else [files or ""]


def _check_names(entry: SceneFile, path: Path) -> None:
    """Raises SceneFormatError for names that no file, table or figure can show."""
    parts = [part for part in (entry.cube, entry.labels, entry.wavelengths) if isinstance(part, FileEntry)]
    try:
        for name in (entry.name, *entry.class_names, entry.folder or ""):
            check_name(name)
        for name in (name for part in parts for name in (part.file, part.key or "", *_listed(part.files))):
            check_name(name, longest=LONGEST_PATH)
    except SceneFormatError as error:
        raise SceneFormatError(f"{path}: {error}") from error
