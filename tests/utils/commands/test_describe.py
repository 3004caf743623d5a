"""describe: what cubes and scene files hold, a picture of it, and the scene file that it writes."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from rasterio.transform import from_origin

import main
from datasets.readers import load_scene
from raster_files import write_tif

LABELS = np.repeat(np.arange(3, dtype="u1"), 4)[:, None] * np.ones(10, "u1")               # [12, 10], 0 to 2
CUBE = (LABELS[..., None] * 100 + 50 + np.arange(6)).astype("i2")
PLACE = {"crs": "EPSG:32633", "transform": from_origin(500000, 5800000, 2, 2)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cube = np.concatenate([CUBE, np.full((12, 10, 1), -1, "i2")], 2)
    cube[11, 9] = -9999
    write_tif(tmp_path / "campus.tif", cube, nodata=-1, **PLACE)
    ring = [[500000, 5800000 - 2 * 4], [500020, 5800000 - 2 * 4], [500020, 5800000 - 2 * 8], [500000, 5800000 - 2 * 8]]
    other = [[x, y - 8] for x, y in ring]
    features = [{"type": "Feature", "properties": {"class": name}, "geometry": {"type": "Polygon", "coordinates": [one]}}
                for name, one in (("roof", [*ring, ring[0]]), ("lawn", [*other, other[0]]))]
    (tmp_path / "campus.geojson").write_text(json.dumps({
        "type": "FeatureCollection", "features": features,
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}}))
    return tmp_path


def test_a_scene_file_is_written_that_trains(folder, capsys):
    (folder / "scenes").mkdir()
    words = ["describe", "campus.tif", "--labels", "campus.geojson", "--write", "scenes/campus.yaml", "--out", "a.png"]
    assert main.main(words) == 0
    said = capsys.readouterr().out
    for part in ("12 × 10 pixels, 7 bands, int16", "EPSG:32633, pixels of 2 × 2", "1 bands, no data in every pixel: 6",
                 "-9999 (undeclared, 1 pixels)", "0.83 % of the pixels", "1 lawn: 39 pixels", "2 roof: 40 pixels",
                 "wavelengths    unknown"):
        assert part in said
    assert Image.open("a.png").width > 300
    content = yaml.safe_load((folder / "scenes" / "campus.yaml").read_text())
    assert content["cube"] == {"file": "../campus.tif"} and content["classes"] == {"lawn": "lawn", "roof": "roof"}
    scene = load_scene("scenes/campus.yaml")
    expected = np.where(LABELS == 2, 1, np.where(LABELS == 1, 2, 0))
    expected[11, 9] = 0
    np.testing.assert_array_equal(scene.labels, expected)
    assert main.main(["describe", "scenes/campus.yaml"]) == 0 and (folder / "campus_scene.png").exists()


def test_nothing_that_is_there_is_overwritten(folder, capsys):
    (folder / "campus.yaml").write_text("mine")
    assert main.main(["describe", "campus.tif", "--write", "campus.yaml"]) != 0
    assert "is there already" in capsys.readouterr().err and (folder / "campus.yaml").read_text() == "mine"


def test_files_whose_axes_are_ambiguous_are_named(folder, capsys):
    np.savez("a.npz", first=CUBE, second=CUBE)
    assert main.main(["describe", "a.npz"]) != 0
    assert "needs the variable's name: it holds first, second" in capsys.readouterr().err
    assert main.main(["describe", "a.npz", "--key", "second", "--write", "a.yaml"]) == 0
    assert load_scene("a.yaml").cube.shape == CUBE.shape
    assert main.main(["describe", "none.tif"]) != 0 and "none.tif" in capsys.readouterr().err


def test_ids_of_a_label_map_become_classes(folder, capsys):
    write_tif(folder / "labels.tif", np.where(LABELS == 2, 7, LABELS), **PLACE)
    assert main.main(["describe", "campus.tif", "--labels", "labels.tif", "--write", "b.yaml"]) == 0
    assert yaml.safe_load((folder / "b.yaml").read_text())["classes"] == {"class 1": 1, "class 7": 7}
    assert load_scene("b.yaml").class_counts().tolist() == [40, 39]
