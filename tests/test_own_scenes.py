"""docs/own-scenes.md, from two files to a map: every command of it, as written, in a folder with two rasters."""

import json
import shlex

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from rasterio.features import shapes
from rasterio.transform import from_origin
from test_docs import ROOT, commands_of

import main

pytestmark = pytest.mark.slow

PLACE = from_origin(366000, 5806000, 30, 30)
PAGE = ROOT / "docs" / "own-scenes.md"
SHORT = ["--steps", "6", "--pro_dim", "8", "--gpu", "-1"]          # the page's run, at a size for a test


@pytest.fixture
def folder(tmp_path, scenes, monkeypatch):
    """campus.tif, campus.gpkg and airport.tif, as the page begins with them."""
    for scene, name in zip(scenes, ("campus", "airport")):
        with rasterio.open(tmp_path / f"{name}.tif", "w", driver="GTiff", height=scene.shape[0], width=scene.shape[1],
                           count=scene.bands, dtype="float32", crs="EPSG:32633", transform=PLACE) as file:
            file.write(np.moveaxis(scene.cube, 2, 0))
            for band, wavelength in enumerate(scene.wavelengths, 1):
                file.update_tags(band, wavelength=f"{wavelength:.2f}", wavelength_units="nm")
    labels = scenes[0].labels.astype("int16")
    found = [(shapely.geometry.shape(outline), scenes[0].class_names[int(k) - 1])
             for outline, k in shapes(labels, mask=labels > 0, transform=PLACE)]
    pyogrio.raw.write(tmp_path / "campus.gpkg", np.array(shapely.to_wkb([outline for outline, _ in found])),
                      [np.array([name for _, name in found], dtype=object)], ["class"], geometry_type="Polygon",
                      crs="EPSG:32633", driver="GPKG")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_page_runs_as_written(folder, scenes):
    commands = [command for command in commands_of(PAGE.read_text("utf-8")) if len(command.split()) > 1]
    assert [command.split()[0] for command in commands] == [
        "describe", "describe", "--preset", "trust", "predict", "evaluate", "export"]
    for command in commands:
        words = shlex.split(command)
        if words[0] == "evaluate":                                 # the page: with a labelled airport
            continue
        if words[0] == "export":
            pytest.importorskip("onnxruntime", reason="needs onnxruntime (tests/requirements.txt)")
        assert main.main([*words, *(SHORT if words[0] == "--preset" else [])]) == 0, command
    with rasterio.open(folder / "airport_map.tif") as file:
        assert file.crs.to_epsg() == 32633 and file.transform == PLACE
        assert set(np.unique(file.read(1))) <= set(range(8))
    classes = json.loads((folder / "runs" / "campus" / "run.json").read_text())["classes"]
    assert sorted(classes) == sorted(set(scenes[0].class_names))
    assert (folder / "campus_scene.png").exists() and (folder / "runs" / "campus" / "trust_airport.md").exists()
