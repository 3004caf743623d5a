"""Reading scenes: formats, axes, broken pixels, and what goes wrong."""

import logging
import re
from dataclasses import replace

import h5py
import numpy as np
import pytest
import rasterio
import yaml

from datasets.benchmark import BENCHMARK, check_scene
from datasets.errors import SceneFormatError, SceneNotFoundError
from datasets.formats import read_mat
from datasets.readers import SCENE_CONFIGS, load_scene, read_description
from datasets.writers import write_mat_v5, write_mat_v73
from raster_files import write_tif


@pytest.mark.parametrize("write", [write_mat_v5, write_mat_v73])
@pytest.mark.parametrize("dtype", ["float64", "float32", "uint16", "int16", "uint8"])
def test_both_matlab_formats_keep_axes_and_values(tmp_path, write, dtype):
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(dtype)
    write(tmp_path / "a.mat", {"cube": array})
    np.testing.assert_array_equal(read_mat(tmp_path / "a.mat", "cube"), array)


def test_a_scene_carries_all_that_its_file_says(pair, scenes):
    scene = load_scene(str(pair.source))
    np.testing.assert_array_equal(scene.cube, scenes[0].cube)
    np.testing.assert_array_equal(scene.labels, scenes[0].labels)
    assert scene.class_names == scenes[0].class_names
    np.testing.assert_allclose(scene.wavelengths, scenes[0].wavelengths)
    assert set(scene.sha256) == {"field.mat", "field_gt.mat"} and len(scene.sha256["field.mat"]) == 64


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_broken_pixels_become_unlabelled_zeros(pair, scenes, caplog, bad):
    cube = scenes[0].cube.copy()
    row, col = np.argwhere(scenes[0].labels > 0)[0]
    cube[row, col, 3] = bad
    write_mat_v5(pair.folder / "field.mat", {"ori_data": cube})
    scene = load_scene(str(pair.source))
    assert scene.labels[row, col] == 0 and not scene.cube[row, col].any()
    assert "1 pixels hold NaN or infinite" in caplog.text
    assert (scene.labels > 0).sum() == (scenes[0].labels > 0).sum() - 1


def test_geotiff_keeps_its_place_and_its_missing_pixels(tmp_path):
    cube = np.arange(1, 1 + 4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3)
    cube[1, 2] = -99
    transform = rasterio.transform.from_origin(300000, 3290000, 2.5, 2.5)
    write_tif(tmp_path / "scene.tif", cube, crs="EPSG:32615", transform=transform, nodata=-99)
    labels = np.ones((4, 5), np.uint8)
    write_tif(tmp_path / "labels.tif", labels, crs="EPSG:32615", transform=transform)
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(
        {"name": "mine", "cube": {"file": "scene.tif"}, "labels": {"file": "labels.tif"}, "class_names": ["field"]}))
    scene = load_scene(str(tmp_path / "scene.yaml"))
    assert scene.cube.shape == (4, 5, 3) and scene.cube[0, 0].tolist() == [1, 2, 3]
    assert scene.labels[1, 2] == 0 and scene.labels.sum() == 19 and not scene.cube[1, 2].any()
    assert rasterio.crs.CRS.from_wkt(scene.georeference.crs).to_epsg() == 32615
    assert scene.georeference.transform == tuple(transform)[:6]


def test_zero_as_no_data_keeps_dark_pixels(tmp_path):
    cube = np.ones((3, 4, 2), np.uint16)
    cube[0, 0], cube[1, 1] = 0, (0, 5)
    write_tif(tmp_path / "scene.tif", cube, crs="EPSG:32615", nodata=0,
              transform=rasterio.transform.from_origin(0, 0, 1, 1))
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump({"name": "mine", "cube": {"file": "scene.tif"},
                                                         "class_names": ["a"]}))
    scene = load_scene(str(tmp_path / "scene.yaml"))
    assert scene.cube[1, 1].tolist() == [0, 5] and not scene.cube[0, 0].any()


def test_envi_is_read_too(tmp_path):
    cube = np.random.default_rng(0).random((4, 5, 3)).astype(np.float32)
    with rasterio.open(tmp_path / "scene.img", "w", driver="ENVI", height=4, width=5, count=3, dtype="float32") as file:
        file.write(np.moveaxis(cube, 2, 0))
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(
        {"name": "mine", "cube": {"file": "scene.img"}, "class_names": ["a", "b"]}))
    scene = load_scene(str(tmp_path / "scene.yaml"))
    np.testing.assert_array_equal(scene.cube, cube)
    assert not scene.labels.any()


def test_every_registered_scene_file_is_sound():
    for path in SCENE_CONFIGS.glob("*.yaml"):
        content = read_description(path)
        assert content.name == path.stem
        if path.stem in BENCHMARK:
            expected = BENCHMARK[path.stem]
            assert tuple(content.class_names) == expected.class_names
            assert content.cube.file == expected.cube_file and content.labels.file == expected.labels_file
            assert sum(count for *_, count in content.wavelengths) == expected.shape[2]


def test_the_benchmark_check_names_each_difference():
    scene = BENCHMARK["paviaU"]
    assert check_scene("paviaU", scene.shape, scene.class_counts) == []
    found = check_scene("paviaU", (610, 340, 103), (3065, *scene.class_counts[1:]))
    assert len(found) == 2 and "103" in found[0] and "3065" in found[1] and "tree" in found[1]
    assert check_scene("paviaU", scene.shape, scene.class_counts[1:]) == [
        "paviaU has 6 classes, the benchmark's has 7"]


def test_a_benchmark_scene_of_another_size_is_a_warning(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    write_mat_v5(tmp_path / "paviaU.mat", {"ori_data": np.ones((6, 7, 102))})
    write_mat_v5(tmp_path / "paviaU_7gt.mat", {"map": np.arange(42).reshape(6, 7) % 8})
    load_scene("paviaU", str(tmp_path))
    assert "paviaU is 6×7×102" in caplog.text


def test_data_path_may_hold_the_pair_or_the_folders_of_pairs(tmp_path):
    (tmp_path / "Pavia").mkdir()
    write_mat_v5(tmp_path / "Pavia" / "paviaU.mat", {"ori_data": np.ones((6, 7, 102))})
    write_mat_v5(tmp_path / "Pavia" / "paviaU_7gt.mat", {"map": np.ones((6, 7))})
    for folder in (tmp_path, tmp_path / "Pavia"):
        assert load_scene("paviaU", str(folder)).bands == 102


def test_errors_of_files_say_what_to_do(pair, tmp_path):
    with pytest.raises(SceneNotFoundError, match=r"Houston13.mat is not in .*prepare houston.*simulated.yaml"):
        load_scene("Houston13", str(tmp_path))
    with pytest.raises(SceneNotFoundError, match="neither a registered scene"):
        load_scene("Atlantis")
    pair.change(pair.source, cube={"file": "field.mat", "key": "img"})
    with pytest.raises(SceneFormatError, match="no variable 'img'; it holds ori_data"):
        load_scene(str(pair.source))
    cube = read_mat(pair.folder / "field.mat", "ori_data")
    write_mat_v5(pair.folder / "two.mat", {"ori_data": cube, "raw": cube})
    pair.change(pair.source, cube={"file": "two.mat"})
    with pytest.raises(SceneFormatError, match="needs the variable's name"):
        load_scene(str(pair.source))
    pair.change(pair.source, cube={"file": "field_gt.mat", "key": "map"})
    with pytest.raises(SceneFormatError, match="2 dimensions"):
        load_scene(str(pair.source))


@pytest.mark.parametrize("entry", [
    {"colour": "blue"}, {"class_names": 3}, {"class_names": "xy"}, {"class_names": None}, {"class_names": []},
    {"class_names": ["a", "a"]}, {"name": None}, {"rgb_bands": 3}, {"rgb_bands": [1, 2]}, {"rgb_bands": [0.5, 1, 2]},
    {"rgb_bands": ["a", "b", "c"]}, {"wavelengths": 400}, {"wavelengths": [[400, 500]]}, {"wavelengths": ["a"]},
    {"wavelengths": {"file": "field.mat"}}, {"folder": 3}, {"cube": {"file": 3}}, {"cube": {"file": "a.mat", "kye": "b"}},
    {"cube": None}, {"cube": "field.mat"}, {"labels": "field.yaml"}])
def test_a_scene_file_of_another_form_is_named(pair, entry):
    pair.change(pair.source, **entry)
    with pytest.raises(SceneFormatError, match="field.yaml.*" + next(iter(entry))):
        load_scene(str(pair.source))


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "a\x00", "a\u2028b", "\u202eabc", "a\x85", "n" * 300])
def test_names_that_cannot_be_shown_are_refused(pair, scenes, name):
    for entry in ({"name": name}, {"class_names": [name]}, {"folder": name},
                  {"cube": {"file": f"{name}.mat", "key": "a"}}, {"cube": {"file": "a.mat", "key": name}}):
        whole = pair.source.read_text()
        pair.change(pair.source, **entry)
        with pytest.raises((SceneFormatError, SceneNotFoundError)) as error:
            load_scene(str(pair.source))
        assert "\n" not in str(error.value) and str(error.value).isprintable()
        pair.source.write_text(whole)
    with pytest.raises(SceneFormatError, match="the name"):
        replace(scenes[0], class_names=(name, *scenes[0].class_names[1:]))


@pytest.mark.parametrize("entry", [[[400, 500, 10 ** 12]], [[400, 500, -1]], [[400, 500, 0]], [[float("nan"), 500, 48]],
                                   [float("inf")] * 48])
def test_wavelengths_that_cannot_be_are_refused(pair, entry):
    pair.change(pair.source, wavelengths=entry)
    with pytest.raises(SceneFormatError, match="field.yaml: wavelengths must be finite"):
        load_scene(str(pair.source))


def test_letters_of_other_scripts_are_names(pair):
    names = ["گندم\u200cزار", "水田", "forêt | <dense>", "a\u00a0b", "$\\frac$", "é" * 100, "g"]
    pair.change(pair.source, class_names=names)
    assert load_scene(str(pair.source)).class_names == tuple(names)


def test_scene_files_that_are_no_text_are_named(pair):
    for content in (b"\xff\xfe\x00", b"[1, 2", b"just words"):
        pair.source.write_bytes(content)
        with pytest.raises(SceneFormatError, match="field.yaml"):
            load_scene(str(pair.source))


def test_variables_that_are_no_numbers_are_named(pair, tmp_path):
    with h5py.File(pair.folder / "field.mat", "a") as file:
        file.create_group("group")
        file["complex"] = np.ones((2, 2, 2), complex)
    write_mat_v5(pair.folder / "coast.mat", {"text": np.array(["abc"]), "empty": np.zeros((0, 3, 2))})
    for scene, key in ((pair.source, "group"), (pair.source, "complex"), (pair.target, "text"), (pair.target, "empty")):
        pair.change(scene, cube={"file": f"{scene.stem}.mat", "key": key})
        with pytest.raises(SceneFormatError, match=key):
            load_scene(str(scene))


def test_a_users_own_scene_is_read_from_beside_its_file_whatever_data_path_says(pair, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    assert load_scene(str(pair.source), str(tmp_path / "elsewhere")).bands == 48


@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 300, 513, 2000, 0.5, 0.99])
@pytest.mark.parametrize("name", ["field.mat", "coast.mat"])
def test_truncated_files_are_named(pair, name, size):
    path = pair.folder / name
    path.write_bytes(path.read_bytes()[:size if isinstance(size, int) else int(size * path.stat().st_size)])
    scene = pair.source if name.startswith("field") else pair.target
    with pytest.raises(SceneFormatError, match=rf"{re.escape(str(path))} cannot be read.*truncated"):
        load_scene(str(scene))


def test_labels_that_do_not_fit_are_refused(pair, scenes):
    for labels, message in ((scenes[0].labels[:-1], "label map is"), (scenes[0].labels + 0.5, "whole numbers"),
                            (np.where(scenes[0].labels > 0, 9, 0), "7 class names"),
                            (np.stack([scenes[0].labels] * 2, 2), r"shape \(50, 60, 2\), expected height × width")):
        write_mat_v5(pair.folder / "field_gt.mat", {"map": labels})
        with pytest.raises(SceneFormatError, match=message):
            load_scene(str(pair.source))


def test_parts_of_a_scene_that_do_not_fit_each_other_are_refused(scenes):
    for parts, message in (({"cube": scenes[0].cube[..., 0]}, "the cube has 2 dimensions"),
                           ({"wavelengths": np.arange(3.0)}, f"3 wavelengths for {scenes[0].bands} bands"),
                           ({"rgb_bands": (0, 1, scenes[0].bands)}, "are outside 0"),
                           ({"rgb_bands": (-1, 0, 1)}, "are outside 0")):
        with pytest.raises(SceneFormatError, match=message):
            replace(scenes[0], **parts)


def test_wavelengths_may_be_a_variable_of_a_file(pair, scenes):
    write_mat_v5(pair.folder / "bands.mat", {"nm": scenes[0].wavelengths[:, None]})
    pair.change(pair.source, wavelengths={"file": "bands.mat", "key": "nm"})
    np.testing.assert_array_equal(load_scene(str(pair.source)).wavelengths, scenes[0].wavelengths)


def test_writers_give_the_same_bytes_for_the_same_arrays(tmp_path):
    for write in (write_mat_v5, write_mat_v73):
        digests = []
        for name in ("a", "b"):
            write(tmp_path / name, {"x": np.arange(12.0).reshape(3, 4)})
            digests.append((tmp_path / name).read_bytes())
        assert digests[0] == digests[1] and not list(tmp_path.glob("*.part"))
