"""The command that says what a scene's files hold: describe."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Optional

import numpy as np
import yaml
from rasterio.crs import CRS

from datasets import arrays, polygons
from datasets.description import FileEntry, SceneFile
from datasets.errors import SceneFormatError, SceneNotFoundError
from datasets.formats import read_raster
from datasets.harmonize import warn_of_hot_pixels
from datasets.images import Facts, data_file
from datasets.labels import VOID, as_labels
from datasets.readers import Reading, find_description, read_scene_file
from datasets.scene import Georeference
from model.errors import ConfigError
from model.files import replacing
from model.plain import is_file
from utils.figures import scenes, sheet
from utils.run.flags import Parser

MOST_CLASSES = 200
COLOURS = (640.0, 550.0, 460.0)                         # nm: red, green, blue
NEAR = 40.0                                             # nm: a band that can stand for a colour


def describe_parser() -> Parser:
    parser = Parser("describe", describe.__doc__)
    parser.add_argument("files", nargs="+", help="cubes (GeoTIFF, ENVI, MATLAB, NumPy, HDF5), scene files, or names "
                                                 "of scenes")
    parser.add_argument("--labels", type=Optional[Path], default=None,
                        help="label map or polygons (GeoJSON, GeoPackage, shapefile) of the cube; its classes are "
                             "found")
    parser.add_argument("--key", type=Optional[str], default=None, help="the cube's variable in its file")
    parser.add_argument("--labels_key", type=Optional[str], default=None,
                        help="the label map's variable, or the polygons' column of classes")
    parser.add_argument("--axes", type=Optional[str], default=None,
                        help="order of rows, columns and bands in a file that does not say it, as in brc")
    parser.add_argument("--write", type=Optional[Path], default=None, help="scene file to write; none that is there")
    parser.add_argument("--out", type=Optional[Path], default=None,
                        help="the picture, or a folder for those of several files; default: NAME_scene.png here")
    parser.add_argument("--data_path", type=Optional[str], default=None, help="folder of a scene file's data")
    return parser


def describe(words: list[str]) -> None:
    """Say what cubes and scene files hold, and draw them; --write makes a scene file of a cube and its labels."""
    choice = describe_parser().parse_args(words)
    if choice.write is not None and (len(choice.files) > 1 or _is_description(choice.files[0])):
        raise ConfigError("--write makes the scene file of one cube: name one, and no scene file.")
    if choice.write is not None and choice.write.exists():
        raise ConfigError(f"{choice.write} is there already. Choose another --write, or move it away.")
    for name in choice.files:
        if _is_description(name):
            reading = read_scene_file(find_description(name), choice.data_path)
        else:
            reading = _of_cube(Path(name), choice)
        print("\n".join(_in_words(reading)))
        warn_of_hot_pixels(reading.scene)
        picture = Path(f"{reading.scene.name}_scene.png")
        if choice.out is not None:
            picture = choice.out / picture if len(choice.files) > 1 or choice.out.is_dir() else choice.out
        sheet.save(scenes.plot_scene(reading.scene, reading.scene.name), picture)
        print(f"  picture        {picture}")
    if choice.write is not None:
        _write(choice.write, reading)
        print(f"  scene file     {choice.write}")


def _is_description(name: str) -> bool:
    return Path(name).suffix in (".yaml", ".yml") or not is_file(name) and not Path(name).suffix \
        and not any(sign in name for sign in "*?")


def _of_cube(path: Path, choice) -> Reading:
    """A cube without a scene file: one is made up, as it would be written."""
    pattern = any(sign in path.name for sign in "*?")
    for file in [] if pattern else [path]:
        if not is_file(file):
            raise SceneNotFoundError(f"{file} does not exist. Name a cube, a scene file, or a registered scene.")
    home = choice.write or path.with_name("scene.yaml")
    name = re.sub(r"[^\w.-]+", "_", path.stem.replace("*", "").strip("_. ")) or "scene"
    entry = SceneFile(name, FileEntry(_relative(path, home), choice.key), axes=choice.axes)
    if choice.labels is not None:
        entry.labels = FileEntry(_relative(choice.labels, home), choice.labels_key)
        entry.classes = _classes(choice.labels, entry.labels)
        entry.class_names = list(entry.classes)
    reading = read_scene_file(home, entry=entry)
    scene, chosen = reading.scene, reading.chosen
    entry.rgb_bands = tuple(int(chosen.order[band]) for band in _colours(scene.wavelengths) or scene.rgb_bands)
    object.__setattr__(scene, "rgb_bands", _colours(scene.wavelengths) or scene.rgb_bands)
    return reading


def _relative(path: Path, home: Path) -> str:
    return os.path.relpath(path.resolve(), home.resolve().parent)


def _colours(wavelengths: np.ndarray | None) -> tuple[int, int, int] | None:
    """The bands nearest to red, green and blue; None where there are none near."""
    if wavelengths is None:
        return None
    found = [int(np.abs(wavelengths - colour).argmin()) for colour in COLOURS]
    near = all(abs(wavelengths[band] - colour) <= NEAR for band, colour in zip(found, COLOURS))
    return tuple(found) if near else None


def _classes(path: Path, entry: FileEntry) -> dict[str, int | str]:
    """The classes of a label file: those of the polygons' column, or the ids of a map."""
    if not is_file(path):
        raise SceneNotFoundError(f"{path} does not exist.")
    if path.suffix.lower() in polygons.SUFFIXES:
        found = polygons.read_polygons(path)
        names = sorted(set(found.classes(entry.key, path)) - {""},
                       key=lambda name: (len(name) if name.isdigit() else 0, name))
        made = {f"class {name}" if name.lstrip("-").isdigit() else name: name for name in names}
    else:
        if path.suffix.lower() in arrays.SUFFIXES:
            labels = arrays.read_array(path, entry.key)
        else:
            labels = read_raster(data_file(path), nodata=0)[0]
        ids = np.unique(as_labels(labels, path))
        ids = ids[(ids > 0) & ~((ids == VOID) & (len(ids) < VOID - 1))]
        made = {f"class {number}": int(number) for number in ids[:MOST_CLASSES + 1]}
    if not 0 < len(made) <= MOST_CLASSES:
        raise SceneFormatError(f"{path} holds {len(made) or 'no'} classes{' or more' * (len(made) > MOST_CLASSES)}; "
                               "expected 1 to "
                               f"{MOST_CLASSES}. Is it a label file? Name its variable or column with --labels_key.")
    return made


def _in_words(reading: Reading) -> list[str]:
    """What a scene's files hold, and what is done to it."""
    scene, image, chosen = reading.scene, reading.image, reading.chosen
    there = scene.cube.any(axis=2)
    values = scene.cube[there] if there.any() else np.zeros((1, 1))
    rows = [("size", f"{reading.stored[0]} × {reading.stored[1]} pixels, {reading.stored[2]} bands, {image.dtype}"),
            ("values", f"{values.min():g} to {values.max():g}, median {np.median(values):g}" + _scaled(image.facts)),
            ("wavelengths", _wavelengths(reading)), ("no data", f"{100 * reading.broken:.2f} % of the pixels")]
    if image.fills:
        rows.append(("fill values", ", ".join(f"{value:g} (undeclared, {pixels:,} pixels)"
                                              for value, pixels in image.fills.items())))
    rows.append(("place", _place(image.facts.place)))
    for reason in sorted(set(chosen.dropped.values())):
        bands = [band for band, why in chosen.dropped.items() if why == reason]
        rows.append(("left out", f"{len(bands)} bands, {reason}: {_runs(bands)}"))
    if (np.diff(chosen.order) < 0).any():
        rows.append(("reordered", "bands are put in order of wavelength"))
    rows.append(("as a scene", f"{scene.shape[0]} × {scene.shape[1]} × {scene.bands}; {(~there).sum():,} pixels are "
                               "zero and "
                 "never labelled"))
    counts = scene.class_counts()
    rows += [("class", f"{k} {name}: {count:,} pixels")
             for k, (name, count) in enumerate(zip(scene.class_names, counts), 1)]
    if not counts.sum():
        rows.append(("labels", "none"))
    return [scene.name, *(f"  {name:<14} {said}" for name, said in rows)]


def _scaled(facts: Facts) -> str:
    said = [f"{name} {np.ravel(value)[0]:g}{' …' if np.ptp(value) else ''}"
            for name, value in (("scale", facts.scale), ("offset", facts.offset)) if value is not None]
    return f" (with {' and '.join(said)})" if said else ""


def _wavelengths(reading: Reading) -> str:
    facts, chosen = reading.image.facts, reading.chosen
    if facts.wavelengths is None:
        return "unknown (give wavelengths in the scene file)"
    if chosen.wavelengths is None:
        return f"{np.min(facts.wavelengths):g} to {np.max(facts.wavelengths):g}: ignored"
    steps = np.diff(facts.wavelengths)
    order = "ascending" if (steps > 0).all() else "descending" if (steps < 0).all() else "not in order"
    width = "" if chosen.fwhm is None else f", fwhm {np.nanmedian(chosen.fwhm):.3g} nm"
    return (f"{chosen.wavelengths.min():.1f} to {chosen.wavelengths.max():.1f} nm (in the file: "
            f"{facts.units or 'no unit'}, {order}){width}")


def _place(place: Georeference | None) -> str:
    if place is None:
        return "unknown"
    crs = "no CRS"
    if place.crs:
        found = CRS.from_wkt(place.crs)
        crs = f"EPSG:{found.to_epsg()}" if found.to_epsg() else found.to_wkt().split('"')[1]
    if place.transform is None:
        return f"{crs}, {len(place.points)} ground control points"
    a, b, left, d, e, top = place.transform
    return f"{crs}, pixels of {np.hypot(a, d):g} × {np.hypot(b, e):g}, corner at {left:.10g}, {top:.10g}"


def _runs(bands: list[int]) -> str:
    """0, 1, 2, 5 -> 0–2, 5."""
    bands, said = sorted(map(int, bands)), []
    while bands:
        length = next((n for n in range(1, len(bands)) if bands[n] != bands[0] + n), len(bands))
        said.append(f"{bands[0]}" if length == 1 else f"{bands[0]}–{bands[length - 1]}")
        bands = bands[length:]
    return ", ".join(said)


def _write(path: Path, reading: Reading) -> None:
    """The scene file of a cube, with what was found; atomically."""
    entry, facts = reading.entry, reading.image.facts
    content = {"name": entry.name, "cube": _part(entry.cube)}
    if entry.labels is not None:
        content |= {"labels": _part(entry.labels), "classes": entry.classes}
    else:
        content["class_names"] = []
    content |= {"rgb_bands": [int(band) for band in entry.rgb_bands]}
    content |= {"axes": entry.axes} if entry.axes else {}
    if len(reading.image.fills) == 1 and facts.nodata is None:
        content["nodata"] = float(next(iter(reading.image.fills)))
    known = ""
    if facts.wavelengths is None:
        known = (f"# wavelengths: [[400, 1000, {reading.stored[2]}]]        # nm: the file does not say them; correct "
                 "these and take the first # away\n")
    told = "".join(f"# {line}\n" for line in _in_words(reading)[1:] if not line.lstrip().startswith("class"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write((told + yaml.safe_dump(content, sort_keys=False, allow_unicode=True) + known).encode())


def _part(entry: FileEntry) -> dict[str, str]:
    return {"file": entry.file} | ({"key": entry.key} if entry.key else {})
