"""Labelled polygons: GeoJSON, GeoPackage, shapefile.  A pixel gets the class that covers at least half of it."""

from __future__ import annotations

import logging
import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.features import rasterize
from rasterio.transform import Affine
from rasterio.warp import transform_geom
from shapely.errors import ShapelyError
from shapely.geometry import mapping

from datasets import formats
from datasets.errors import SceneFormatError
from datasets.scene import Georeference
from model.plain import read_json

log = logging.getLogger(__name__)

SUFFIXES = {".geojson", ".json", ".gpkg", ".shp"}
FINE = 10                                               # subpixels along a pixel's side
LARGEST = 1 << 28                                       # bytes of a file of polygons
MOST_CORNERS = 10_000_000
COLUMNS = ("class", "class_name", "classname", "label", "name", "category", "klasse", "type", "id", "class_id")
_ID = re.compile(r"-?\d+(\.0*)?")


@dataclass
class Polygons:
    """Geometries (GeoJSON's form), their coordinate reference system, and their table: column -> values."""

    geometries: list[dict[str, Any]]
    crs: str
    columns: dict[str, list[str]]

    def classes(self, column: str | None, path: Path) -> list[str]:
        """The class of every polygon.  Raises SceneFormatError that names the columns if none is given or found."""
        known = {name.lower(): name for name in self.columns}
        wanted = [column.lower()] if column else COLUMNS
        found = next((known[name] for name in wanted if name in known), None)
        if found is None and column is None and len(known) == 1:
            found = next(iter(self.columns))
        if found is None:
            raise SceneFormatError(f"{path}: no column of classes is {'called ' + column if column else 'found'}; it "
                                   "has "
                                   f"{', '.join(list(self.columns)[:20]) or 'none'}. Name one: labels: "
                                   f"{{file: {path.name}, "
                                   "key: COLUMN}.")
        return self.columns[found]


def read_polygons(path: Path) -> Polygons:
    """Polygons of a file.  Raises SceneFormatError if it is damaged, too large, or would lead to other files."""
    if path.stat().st_size > LARGEST:
        raise SceneFormatError(f"{path} has {path.stat().st_size:,} bytes; polygons have at most {LARGEST:,}.")
    try:
        found = _geojson(path) if path.suffix.lower() in (".geojson", ".json") else _by_gdal(path)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, sqlite3.Error, ShapelyError, RasterioError,
            pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pyogrio.errors.FeatureError) as error:
        raise SceneFormatError(f"{path} cannot be read as polygons ({' '.join(str(error).split())[:200]}).") from error
    if not found.geometries:
        raise SceneFormatError(f"{path} holds no polygon.")
    return found


def _geojson(path: Path) -> Polygons:
    content = read_json(path, SceneFormatError)
    features = [one for one in content["features"] if (one.get("geometry") or {}).get("type", "").endswith("Polygon")]
    geometries = [mapping(shapely.geometry.shape(one["geometry"])) for one in features]
    names = list(dict.fromkeys(name for one in features for name in one.get("properties") or {}))
    columns = {name: [_text((one.get("properties") or {}).get(name)) for one in features] for name in names}
    crs = ((content.get("crs") or {}).get("properties") or {}).get("name", "OGC:CRS84")
    return Polygons(geometries, CRS.from_user_input("EPSG:4326" if "CRS84" in crs else crs).to_wkt(), columns)


def _by_gdal(path: Path) -> Polygons:
    """A GeoPackage or shapefile, known by its first bytes: GDAL opens it as nothing else."""
    with open(path, "rb") as file:
        head = file.read(16)
    if path.suffix.lower() == ".gpkg" and head == b"SQLite format 3\0":
        _check_tables(path)
    elif path.suffix.lower() != ".shp" or head[:4] != b"\x00\x00\x27\x0a":
        raise SceneFormatError(f"{path} is neither a GeoPackage nor a shapefile by its first bytes.")
    meta, _, geometries, fields = pyogrio.raw.read(path, force_2d=True)
    shapes = shapely.from_wkb(geometries)
    there = [place for place, one in enumerate(shapes) if one is not None and one.geom_type.endswith("Polygon")]
    if shapely.get_num_coordinates(shapes).sum() > MOST_CORNERS:
        raise SceneFormatError(f"{path} has more than {MOST_CORNERS:,} corners. Simplify its polygons.")
    columns = {str(name): [_text(values[place]) for place in there] for name, values in zip(meta["fields"], fields)}
    crs = CRS.from_user_input(meta["crs"]).to_wkt() if meta["crs"] else ""
    return Polygons([mapping(shapes[place]) for place in there], crs, columns)


def _check_tables(path: Path) -> None:
    """Raises SceneFormatError for a GeoPackage whose layers are views or virtual tables, or are several."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as data:
        layers = [name for name, in data.execute("SELECT table_name FROM gpkg_geometry_columns")]
        kinds = dict(data.execute("SELECT name, type || ' ' || coalesce(upper(sql), '') FROM sqlite_master"))
    if len(layers) != 1:
        raise SceneFormatError(f"{path} has {len(layers)} layers of geometries; expected one. Save the layer of "
                               "labels as a "
                               "file of its own.")
    if not kinds.get(layers[0], "").startswith("table CREATE TABLE"):
        raise SceneFormatError(f"{path}: its layer is no plain table. Save it as a new GeoPackage.")


def _text(value: Any) -> str:
    """A class as text; 2.0 is 2, nothing is ''."""
    if value is None or isinstance(value, float) and np.isnan(value):
        return ""
    text = str(value).strip()
    return text.split(".")[0] if _ID.fullmatch(text) else text


def burnt(polygons: Polygons, classes: list[str], names: dict[str, list[str]], shape: tuple[int, int],
          place: Georeference | None, path: Path) -> np.ndarray:
    """Labels [H, W] int64, 1..K by `names` (class -> its names in the column); 0 where no class covers half a pixel.

    Raises SceneFormatError if the cube has no place, or no polygon lies on it.
    """
    if place is None or place.transform is None or not place.crs and polygons.crs:
        raise SceneFormatError(f"{path}: polygons need a cube with a georeference (CRS and transform). Save the cube "
                               "with one, "
                               "or give the labels as a raster of the cube's size.")
    number = {name: k for k, listed in enumerate(names.values(), 1) for name in listed}
    if unknown := sorted(set(classes) - set(number) - {""}):
        log.warning("%s: polygons of %s are of no class: unlabelled.", path, ", ".join(unknown[:10]))
    formats.check_memory(path, shape[0] * shape[1], 4 * FINE)
    by_class: dict[int, list] = {}
    for geometry, name in zip(polygons.geometries, classes):
        if name in number:
            by_class.setdefault(number[name], []).append(
                transform_geom(polygons.crs, place.crs, geometry) if polygons.crs and place.crs else geometry)
    labels, best = np.zeros(shape, np.int64), np.full(shape, FINE * FINE / 2 - 0.5)
    for k, geometries in sorted(by_class.items()):
        cover = _cover(geometries, shape, Affine(*place.transform))
        labels[cover > best], best = k, np.maximum(best, cover)
    if not labels.any():
        raise SceneFormatError(f"{path}: no polygon of a class covers half a pixel of the cube. Check that both show "
                               "one "
                               "place, and the classes' names.")
    return labels


def _cover(geometries: list, shape: tuple[int, int], transform: Affine) -> np.ndarray:
    """[H, W] subpixels, of FINE², of each pixel under polygons; a few rows at a time."""
    height, width = shape
    cover, rows = np.zeros(shape), max(1, (1 << 24) // (FINE * FINE * width))
    for top in range(0, height, rows):
        count = min(rows, height - top)
        fine = rasterize(geometries, (count * FINE, width * FINE), dtype="uint8",
                         transform=transform * Affine.translation(0, top) * Affine.scale(1 / FINE))
        cover[top:top + count] = fine.reshape(count, FINE, width, FINE).sum((1, 3), dtype=np.int64)
    return cover
