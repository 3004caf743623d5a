"""Two sensors: the grid that both are brought to, how, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from datasets.classes import matched
from datasets.errors import PairError
from datasets.grid import AS_THEY_ARE, CHOSEN, GAUSSIAN, LINEAR, Grid, grid_of_pair, on_grid, response, way
from datasets.harmonize import Common, unit_spectra
from datasets.scene import Scene

FINE, COARSE = np.linspace(400, 1000, 61), np.linspace(380, 1050, 48)


def scene_of(wavelengths, name="a", fwhm=None, names=("grass", "roof"), slope=True):
    values = np.asarray(wavelengths) if slope else np.random.default_rng(0).uniform(1, 9, len(wavelengths))
    cube = np.broadcast_to(values, (3, 4, len(wavelengths))).astype(np.float32).copy()
    cube[0, 0] = 0
    return Scene(name, cube, np.arange(12).reshape(3, 4) % (len(names) + 1), names, np.asarray(wavelengths), (9, 5, 2),
                 fwhm=fwhm)


def test_the_same_bands_stay_as_they_are():
    one, other = scene_of(FINE), scene_of(FINE + 0.1, "b")
    assert on_grid(other, grid_of_pair(one, other), "a") is other and way(other, Grid.of(one)) == AS_THEY_ARE
    assert Common.of_pair(one, other).bring(one) is one


@pytest.mark.parametrize("turned", [False, True])
def test_both_sensors_come_to_the_coarser_ones_bands_in_the_overlap(turned):
    source, target = scene_of(FINE), scene_of(COARSE, "b")
    grid = grid_of_pair(*((target, source) if turned else (source, target)))
    np.testing.assert_array_equal(grid.wavelengths, COARSE[(COARSE >= 400) & (COARSE <= 1000)])
    assert (way(source, grid), way(target, grid)) == (LINEAR, CHOSEN)
    for scene in (source, target):
        made = on_grid(scene, grid, "x")
        np.testing.assert_allclose(made.cube[1, 1], grid.wavelengths, rtol=1e-6)      # a slope in nm stays that slope
        assert not made.cube[0, 0].any() and made.bands == grid.bands
    np.testing.assert_array_equal(on_grid(target, grid, "x").cube[1], target.cube[1][:, (COARSE >= 400) & (COARSE <= 1000)])
    assert grid_of_pair(source, target, "source").bands == 61


def test_known_widths_make_a_gaussian_response():
    fine = scene_of(np.arange(400, 1001.0), fwhm=np.full(601, 6.0))
    grid = Grid(3, np.array([500.0, 600, 700]), np.full(3, 10.0))                    # 10² - 6² = 8²
    weights = response(fine, grid)
    assert way(fine, grid) == GAUSSIAN
    np.testing.assert_allclose(weights.sum(0), 1, rtol=1e-6)
    assert weights[204, 1] / weights[200, 1] == pytest.approx(0.5, abs=0.02)
    assert (response(replace(fine, fwhm=None), grid)[205, 1] / response(replace(fine, fwhm=None), grid)[200, 1]
            == pytest.approx(0.5, abs=0.02))
    own = response(fine, Grid(601, fine.wavelengths, fine.fwhm))
    np.testing.assert_array_equal(own, np.eye(601, dtype=np.float32))


def test_reversed_bands_are_put_right():
    source = scene_of(FINE, slope=False)
    turned = replace(source, name="b", cube=source.cube[..., ::-1].copy(), wavelengths=FINE[::-1].copy())
    np.testing.assert_array_equal(on_grid(turned, grid_of_pair(source, source), "a").cube, source.cube)


def test_raw_values_are_resampled_before_spectra_are_normalised():
    """Bands that the grid leaves out do not count in the norm."""
    scene = scene_of(COARSE)
    scene.cube[1, 1, 0] = 1e4
    made = on_grid(scene, grid_of_pair(scene, scene_of(FINE, "b")), "x")
    spectrum = unit_spectra(made.cube)[1, 1]
    assert np.linalg.norm(spectrum) == pytest.approx(1) and spectrum.min() > 0.05


@pytest.mark.parametrize("wavelengths, told", [
    (FINE / 1000, "look like micrometres"), (np.linspace(400, 700, 61), "reaches from 400 to 700 nm"),
    (FINE[(FINE < 600) | (FINE > 800)], "has a gap"), (np.linspace(400, 1000, 21), "a band every 30 nm")])
def test_scenes_that_cannot_be_brought_to_a_grid_are_refused(wavelengths, told):
    with pytest.raises(PairError, match=told):
        on_grid(scene_of(wavelengths, "b"), Grid.of(scene_of(FINE)), "a")


@pytest.mark.parametrize("wavelengths, told", [(FINE / 1000, "micrometres"), (FINE + 500, "overlap too little"),
                                               (np.linspace(400, 1000, 7), "only 7 bands")])
def test_pairs_without_enough_in_common_are_refused(wavelengths, told):
    with pytest.raises(PairError, match=told):
        grid_of_pair(scene_of(FINE), scene_of(wavelengths if len(wavelengths) > 9 else np.r_[wavelengths, 1e3 + np.arange(
            1, 4) * 100], "b"))


def test_bands_in_a_gap_of_the_other_sensor_are_left_out_of_the_common_grid():
    grid = grid_of_pair(scene_of(COARSE), scene_of(FINE[(FINE < 600) | (FINE > 800)], "b"))
    assert not ((grid.wavelengths > 600) & (grid.wavelengths < 800)).any() and grid.bands > 20


def test_without_wavelengths_the_numbers_must_agree(caplog):
    bare = replace(scene_of(FINE), wavelengths=None)
    assert on_grid(bare, Grid.of(scene_of(FINE)), "a") is bare and "cannot be compared" in caplog.text
    with pytest.raises(PairError, match="48 bands.*61"):
        on_grid(bare, Grid(48), "a")


def test_classes_are_matched_by_name(caplog):
    scene = scene_of(FINE, names=("ROOF ", "gr ass", "swamp"))
    made = matched(scene, ("grass", "road", "roof"), "a")
    np.testing.assert_array_equal(made.labels, np.array([0, 3, 1, 0])[scene.labels])
    assert made.class_names == ("grass", "road", "roof") and "swamp (3 pixels)" in caplog.text
    assert matched(replace(scene, class_names=(), labels=scene.labels * 0), ("x",), "a").class_names == ("x",)
    with pytest.raises(PairError, match="share no class"):
        matched(scene, ("sea",), "a")
    source = scene_of(FINE, names=("grass", "tree", "roof"))
    common = Common.of_pair(source, scene)
    assert common.class_names == ("grass", "roof") and "tree (3 pixels)" not in caplog.text
    np.testing.assert_array_equal(common.bring(source).labels, np.array([0, 1, 0, 2])[source.labels])
    assert "tree (3 pixels)" in caplog.text
