"""The simulated pair: plausible scenes, a gap of known size, files that read back, the same bytes every time."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import lru_cache

import h5py
import numpy as np
import pytest
import scipy.io
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, cohen_kappa_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from datasets.readers import load_scene
from datasets.simulator.canvas import CLASS_NAMES
from datasets.simulator.gap import FIXED, DomainGap, gap_at
from datasets.simulator.land import annotate, draw_land_cover
from datasets.simulator.materials import MATERIALS
from datasets.simulator.sensor import WAVELENGTHS
from datasets.simulator.simulate import SHAPE, simulate_pair, simulate_scene, write_pair
from model.errors import ConfigError

SEEDS = (0, 1, 2)
RADIOMETRY = ("path_radiance", "haze_exponent", "sky_light", "water_vapour", "gain_tilt", "gain_ripple",
              "band_shift_nm", "noise")

pair = lru_cache(maxsize=None)(simulate_pair)


def band(wavelength: float) -> int:
    return int(np.abs(WAVELENGTHS - wavelength).argmin())


def labelled_spectra(scene):
    """[N, B] unit spectra (cube / maximum, then L2 norm) and [N] labels of the labelled pixels."""
    spectra = scene.cube[scene.labels > 0].astype(np.float64) / scene.cube.max()
    return spectra / np.linalg.norm(spectra, axis=1, keepdims=True), scene.labels[scene.labels > 0]


@lru_cache(maxsize=None)
def source_classifier(seed: int):
    """A logistic regression of single pixels, and its accuracy on held-out pixels of the source."""
    x, y = labelled_spectra(pair(1.0, seed)[0])
    x_train, x_test, y_train, y_test = train_test_split(x, y, train_size=0.8, stratify=y, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with threadpool_limits(1):              # products of thin matrices: threads cost far more than they bring
        model.fit(x_train, y_train)
    return model, model.score(x_test, y_test)


def scores(scene, seed: int) -> tuple[float, float]:
    """Overall accuracy and kappa of that classifier on another scene."""
    x, y = labelled_spectra(scene)
    predicted = source_classifier(seed)[0].predict(x)
    return accuracy_score(y, predicted), cohen_kappa_score(y, predicted)


def target_scores(severity: float, seed: int) -> tuple[float, float]:
    return scores(pair(severity, seed)[1], seed)


@pytest.mark.slow_but("0-SimSource")
@pytest.mark.parametrize("index, name", [(0, "SimSource"), (1, "SimTarget")])
def test_a_scene_has_the_shape_bands_and_classes_of_its_description(index, name):
    scene = pair(1.0, 0)[index]
    assert scene.name == name
    assert scene.cube.shape == (150, 250, 48) and scene.cube.dtype == np.float32
    assert scene.labels.dtype == np.int64
    assert scene.class_names == CLASS_NAMES and scene.n_classes == 7
    np.testing.assert_array_equal(scene.wavelengths, np.linspace(380, 1050, 48))
    assert scene.rgb_bands == (band(640), band(550), band(460))


def test_digital_numbers_are_integers_of_sixteen_bits():
    for scene in pair(3.0, 0):
        np.testing.assert_array_equal(scene.cube, np.rint(scene.cube))
        assert scene.cube.min() >= 0
        assert 1000 < scene.cube.max() < 65535          # neither empty nor saturated


@pytest.mark.slow_but("0")
@pytest.mark.parametrize("seed", range(6))
def test_labels_are_unbalanced_leave_a_background_and_miss_no_class(seed):
    for scene_index in (0, 1):
        layout = draw_land_cover(SHAPE, np.random.default_rng([seed, scene_index, 0]))
        counts = np.bincount(annotate(layout, np.random.default_rng(seed)).ravel(), minlength=8)
        assert counts[1:].min() >= 150
        assert counts[1:].max() > 3 * counts[1:].min()
        assert 0.4 < counts[0] / counts.sum() < 0.7


def test_labelled_pixels_touch_no_other_class():
    layout = draw_land_cover(SHAPE, np.random.default_rng(5))
    labels = annotate(layout, np.random.default_rng(6))
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        neighbour = np.roll(layout.classes, step, axis)
        interior = labels[1:-1, 1:-1] > 0
        assert (labels[1:-1, 1:-1][interior] == neighbour[1:-1, 1:-1][interior]).all()
    assert not (labels > 0)[layout.shadow].any()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_pair_and_another_seed_another():
    first, again, other = pair(1.0, 0), simulate_pair(1.0, 0), pair(1.0, 1)
    for a, b, c in zip(first, again, other):
        np.testing.assert_array_equal(a.cube, b.cube)
        np.testing.assert_array_equal(a.labels, b.labels)
        assert (a.labels != c.labels).mean() > 0.1


@pytest.mark.slow
def test_severity_changes_the_target_only_and_neither_its_layout():
    (source, target), (source_2, target_2) = pair(1.0, 0), pair(2.0, 0)
    np.testing.assert_array_equal(source.cube, source_2.cube)
    np.testing.assert_array_equal(source.labels, source_2.labels)
    np.testing.assert_array_equal(target.labels, target_2.labels)
    assert not np.array_equal(target.cube, target_2.cube)
    assert (source.labels != target.labels).mean() > 0.1


@pytest.mark.slow
def test_global_random_state_plays_no_part():
    state = np.random.get_state()[1].copy()
    simulate_pair(0.5, 3)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_the_gap_grows_linearly_from_the_source_values():
    assert gap_at(0) == DomainGap()
    nominal, one, two = (asdict(gap_at(severity)) for severity in (0, 1, 2))
    for name in FIXED:
        assert one[name] != nominal[name], name
        assert two[name] - one[name] == pytest.approx(one[name] - nominal[name]), name
    assert {name for name in nominal if two[name] != nominal[name]} == FIXED.keys()


@pytest.mark.parametrize("severity", [-0.1, 3.5, float("nan")])
def test_a_severity_out_of_range_is_refused(severity, tmp_path):
    with pytest.raises(ConfigError, match="severity"):
        write_pair(tmp_path / "pair", severity)
    assert not (tmp_path / "pair").exists()


def test_a_negative_seed_is_refused():
    with pytest.raises(ConfigError, match="seed"):
        simulate_pair(1.0, -1)


@pytest.mark.parametrize("severity", [0.0, 1.0, 3.0])
def test_material_shares_stay_shares(severity):
    gap = gap_at(severity)
    for name in ("water_vapour", "chlorophyll_loss", "canopy_dryness", "litter", "roof_dust", "road_wear"):
        assert 0 <= getattr(gap, name) < 1, name
    assert gap.haze_exponent > 0 and gap.gain_tilt > -1


def test_reflectance_of_every_material_is_physical():
    for name, material in MATERIALS.items():
        medians = {key: np.array([[median]]) for key, (median, _, _) in material.parameters.items()}
        spectrum = material.model(WAVELENGTHS, **medians)
        assert spectrum.shape == (1, 48), name
        assert 0 < spectrum.min() and spectrum.max() < 0.8, name


def test_grass_has_a_red_edge_and_water_is_dark_in_the_infrared():
    source = pair(1.0, 0)[0]
    red, infrared = band(670), band(780)
    means = {name: source.cube[source.labels == k].mean(axis=0) for k, name in enumerate(CLASS_NAMES, start=1)}

    def ndvi(name):
        return (means[name][infrared] - means[name][red]) / (means[name][infrared] + means[name][red])

    assert ndvi("grass healthy") > 0.3
    assert ndvi("grass healthy") > ndvi("grass stressed") > ndvi("road")
    assert means["water"][infrared] < 0.2 * min(means[name][infrared] for name in CLASS_NAMES if name != "water")


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_gap_the_target_is_as_easy_as_the_source(seed):
    assert source_classifier(seed)[1] >= 0.95
    assert target_scores(0.0, seed)[0] >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_default_gap_costs_a_pixel_classifier_much_but_not_all(seed):
    accuracy, kappa = target_scores(1.0, seed)
    assert 0.5 <= accuracy <= 0.75
    assert kappa > 0.35


@pytest.mark.slow
def test_accuracy_falls_with_severity():
    means = [np.mean([target_scores(severity, seed)[0] for seed in SEEDS]) for severity in (0.0, 0.5, 1.0, 2.0)]
    assert (np.diff(means) < -0.03).all()
    assert 0.25 < means[-1] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["radiometry", "materials"])
def test_the_gap_is_more_than_one_trick(kept):
    gap = asdict(gap_at(1.0))
    part = replace(DomainGap(), **{name: gap[name] for name in gap if (name in RADIOMETRY) == (kept == "radiometry")})
    accuracy = np.mean([scores(simulate_scene("part", part, seed, 1), seed)[0] for seed in SEEDS])
    assert 0.55 < accuracy < 0.85


@pytest.mark.slow
def test_files_hold_the_scenes_in_both_matlab_formats(tmp_path):
    write_pair(tmp_path / "made" / "here", 1.0, 0)
    folder, (source, target) = tmp_path / "made" / "here", pair(1.0, 0)
    with h5py.File(folder / "SimSource.mat") as file, h5py.File(folder / "SimSource_7gt.mat") as truth:
        assert file["ori_data"].dtype == np.uint16
        np.testing.assert_array_equal(file["ori_data"][()].T, source.cube)
        np.testing.assert_array_equal(truth["map"][()].T, source.labels)
    cube = scipy.io.loadmat(folder / "SimTarget.mat")["ori_data"]
    assert cube.dtype == np.uint16
    np.testing.assert_array_equal(cube, target.cube)
    np.testing.assert_array_equal(scipy.io.loadmat(folder / "SimTarget_7gt.mat")["map"], target.labels)
    assert len(list(folder.iterdir())) == 4


@pytest.mark.slow
def test_the_scene_files_describe_what_is_written(tmp_path):
    write_pair(tmp_path, 1.0, 0)
    for made in pair(1.0, 0):
        read = load_scene(made.name, str(tmp_path))
        np.testing.assert_array_equal(read.cube, made.cube)
        np.testing.assert_array_equal(read.labels, made.labels)
        np.testing.assert_allclose(read.wavelengths, made.wavelengths)
        assert (read.class_names, read.rgb_bands) == (made.class_names, made.rgb_bands)


@pytest.mark.slow
def test_the_same_arguments_write_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        write_pair(tmp_path / folder, 0.5, 4)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
