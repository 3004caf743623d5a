"""Preprocessing and the checks of a pair."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from datasets.errors import PairError
from datasets.harmonize import check_patch, hot, peaks, preprocess, warn_of_hot_pixels
from datasets.simulator import cache
from datasets.simulator.cache import load_scene_or_simulate
from model.errors import ConfigError


def test_preprocessing_gives_unit_spectra_and_leaves_zero_ones():
    cube = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32) * 1000
    cube[2, 3] = 0
    ready = preprocess(cube)
    norms = np.linalg.norm(ready, axis=2)
    assert norms[2, 3] == 0 and np.allclose(np.delete(norms.ravel(), 13), 1, atol=1e-6)
    np.testing.assert_allclose(ready[0, 0], cube[0, 0] / np.linalg.norm(cube[0, 0]), rtol=1e-5)
    assert ready.dtype == np.float32 and cube.max() > 1          # the input is left alone


def test_a_dark_scene_is_refused():
    with pytest.raises(PairError, match="not positive"):
        preprocess(np.zeros((2, 2, 3), np.float32))


def plain_quotient(cube):
    """Preprocessing by its definition, in float32, with no care for the scale."""
    scaled = cube / cube.max()
    norm = np.linalg.norm(scaled, axis=2, keepdims=True)
    return np.divide(scaled, norm, out=scaled, where=norm > 0)


@pytest.mark.slow_but("1.0")
@pytest.mark.parametrize("span", [1e-3, 1.0, 4095.0, 65535.0])
def test_preprocessing_is_the_plain_quotient_bit_by_bit(scenes, span):
    rng = np.random.default_rng(1)
    cubes = [scene.cube * np.float32(span) for scene in scenes]
    cubes += [(span * rng.random((20, 30, 48)) ** power).astype(np.float32) for power in (1, 8)]
    cubes.append((span * rng.standard_normal((20, 30, 48))).astype(np.float32))
    for cube in cubes:
        cube[3, 4] = 0
        np.testing.assert_array_equal(preprocess(cube), plain_quotient(cube))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_come_out_as_ever(broken):
    cube = np.random.default_rng(2).random((5, 6, 7)).astype(np.float32)
    cube[1, 2, 3] = broken
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(preprocess(cube), plain_quotient(cube))


@pytest.mark.parametrize("fill", [1e30, np.finfo(np.float32).max])
@pytest.mark.parametrize("span", [1e-3, 4095.0])
def test_one_value_of_1e30_leaves_the_other_spectra_alone(fill, span):
    cube = (span * np.random.default_rng(3).random((5, 6, 7))).astype(np.float32)
    healthy = preprocess(cube)
    cube[1, 2, 3] = fill
    ready = preprocess(cube)
    elsewhere = np.ones((5, 6), bool)
    elsewhere[1, 2] = False
    np.testing.assert_allclose(ready[elsewhere], healthy[elsewhere], rtol=3e-7)      # was 0, or as small as 1e-27
    assert ready[1, 2, 3] == 1 and np.isfinite(ready).all()


def test_spectra_near_the_smallest_numbers_get_unit_norm():
    assert np.allclose(np.linalg.norm(preprocess(np.full((2, 2, 6), 1e-42, np.float32)), axis=2), 1)


@pytest.mark.parametrize("pixels", [1, 300])
def test_hot_pixels_are_warned_of(scenes, caplog, pixels):
    warn_of_hot_pixels(scenes[0])
    assert not caplog.text and not hot(peaks(scenes[0].cube)).any()
    cube = scenes[0].cube.copy()
    cube.reshape(-1, cube.shape[2])[100:100 + pixels, 7] = 1e30
    warn_of_hot_pixels(replace(scenes[0], cube=cube))
    assert "row 1, column 40 holds 1e+30" in caplog.text and "no-data value" in caplog.text
    assert hot(peaks(cube)).sum() == pixels


def test_patches_beyond_the_mirrored_edge_are_refused(scenes):
    source, target = scenes
    narrow = replace(source, cube=source.cube[:, :6], labels=source.labels[:, :6])
    check_patch(narrow, 13)                                   # 6 pixels beyond the edge are all there are
    with pytest.raises(PairError, match="cannot be mirrored 7 pixels beyond its edge. Choose a --patch_size of at most 13"):
        check_patch(narrow, 15)


@pytest.mark.slow
def test_the_simulated_pair_is_written_once_and_whole(tmp_path, monkeypatch):
    scene = load_scene_or_simulate("SimSource", str(tmp_path), 1.0, 0)
    folder, = tmp_path.iterdir()
    written = (folder / "SimSource.mat").stat().st_mtime_ns
    load_scene_or_simulate("SimTarget", str(tmp_path), 1.0, 0)
    assert (folder / "SimSource.mat").stat().st_mtime_ns == written

    def interrupted(path, *_):
        path.mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache, "write_pair", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_scene_or_simulate("SimSource", str(tmp_path), 2.0, 0)
    assert list(tmp_path.iterdir()) == [folder]
    again = load_scene_or_simulate("SimSource", str(tmp_path / "b"), 1.0, 0)
    assert again.sha256 == scene.sha256


@pytest.mark.slow
def test_several_processes_may_write_the_simulated_pair(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        scenes = list(pool.map(lambda _: load_scene_or_simulate("SimSource", str(tmp_path), 1.0, 1), range(3)))
    assert len(list(tmp_path.iterdir())) == 1 and len({str(scene.sha256) for scene in scenes}) == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        load_scene_or_simulate("SimSource", str(tmp_path / "file"), 1.0, 0)
