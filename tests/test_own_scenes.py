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

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (tests/requirements.txt)")
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


def answers(path, cube):
    """The map [H, W] that another program makes with the ONNX file: patches of the values in the scene's file, and the
    mean and standard deviation of its unit spectra."""
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["patches", "mean", "deviation"]
    padded = np.pad(cube, ((3, 3), (3, 3), (0, 0)), "symmetric")
    patches = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), (0, 1)).reshape(-1, cube.shape[2], 7, 7)
    spectra = cube[cube.any(axis=2)]
    unit = spectra / np.linalg.norm(spectra, axis=1, keepdims=True)
    inputs = {"patches": np.ascontiguousarray(1000 * patches), "mean": unit.mean(0), "deviation": unit.std(0)}   # any unit
    found = session.run(["logits"], inputs)[0].argmax(1).reshape(cube.shape[:2]) + 1
    return np.where(cube.any(axis=2), found, 0)


def test_every_command_of_the_page_runs_as_written(folder, scenes):
    commands = [command for command in commands_of(PAGE.read_text("utf-8")) if len(command.split()) > 1]
    assert [command.split()[0] for command in commands] == [
        "describe", "describe", "--preset", "trust", "predict", "evaluate", "export"]
    for command in commands:
        words = shlex.split(command)
        if words[0] == "evaluate":                                 # the page: with a labelled airport
            continue
        assert main.main([*words, *(SHORT if words[0] == "--preset" else [])]) == 0, command
    with rasterio.open(folder / "airport_map.tif") as file:
        assert file.crs.to_epsg() == 32633 and file.transform == PLACE
        mapped = file.read(1)
    np.testing.assert_array_equal(answers(folder / "runs" / "campus" / "classifier.onnx", scenes[1].cube), mapped)
    classes = json.loads((folder / "runs" / "campus" / "run.json").read_text())["classes"]
    assert sorted(classes) == sorted(set(scenes[0].class_names))
    assert (folder / "campus_scene.png").exists() and (folder / "runs" / "campus" / "trust_airport.md").exists()
