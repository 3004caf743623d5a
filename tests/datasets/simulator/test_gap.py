"""Gaps that pairs draw: the same for a seed, from documented ranges, wider with severity, with valid scenes; and the
fixed gap's pairs as they always were."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from datasets.harmonize import preprocess
from datasets.readers import load_scene
from datasets.simulator import simulate
from datasets.simulator.canvas import CLASS_NAMES, RESIDENTIAL, ROAD
from datasets.simulator.gap import MISSABLE, MIXED, RANGES, SOURCE_FWHM_NM, DomainGap, drawn_gap, gap_at, target_gap
from datasets.simulator.land import annotate, draw_land_cover
from datasets.simulator.materials import MATERIALS, bell
from datasets.simulator.sensor import WAVELENGTHS, block_mean, gain, observe, response, sun, surroundings
from datasets.simulator.simulate import SHAPE, simulate_scene, write_pair
from model.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
SEEDS = range(20)
FIXED_PAIRS = {         # severity, seed -> digests of the digital numbers (uint16) and labels (uint8) of both scenes
    (1.0, 0): {"SimSource": ("1a8496ac8254c698", "f0e1ec92492bcb3e"),
               "SimTarget": ("146e546127ba6988", "98b739abf9a1cef2")},
    (2.0, 3): {"SimSource": ("5006a1afe88708c7", "df742a6068d4a8a7"),
               "SimTarget": ("2b2eae3406998dcd", "33f780bb9e528669")}}


def digest(values: np.ndarray, kind: type) -> str:
    return hashlib.sha256(np.ascontiguousarray(values.astype(kind)).tobytes()).hexdigest()[:16]


def land_of(gap: DomainGap, seed: int = 0, step: float = 1.0, samples: int = 1):
    shape = tuple(side * samples for side in SHAPE)
    return draw_land_cover(shape, np.random.default_rng([seed, 1, 0]), gap, step)


def class_means(scene) -> dict[int, np.ndarray]:
    """Mean unit spectrum [B] of every class that has labels."""
    spectra = preprocess(scene.cube)
    return {k: spectra[scene.labels == k].mean(axis=0) for k, n in enumerate(scene.class_counts(), 1) if n}


@pytest.mark.parametrize("severity, seed", FIXED_PAIRS)
def test_files_of_a_fixed_gap_hold_what_they_always_held(severity, seed, tmp_path):
    write_pair(tmp_path, severity, seed)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}{kind}.mat" for name in ("SimSource", "SimTarget") for kind in ("", "_7gt"))
    for name, expected in FIXED_PAIRS[severity, seed].items():
        scene = load_scene(name, str(tmp_path))
        assert (digest(scene.cube, np.uint16), digest(scene.labels, np.uint8)) == expected, name


@pytest.mark.parametrize("seed", [*SEEDS, 12345])
def test_without_severity_a_drawn_gap_is_none(seed):
    assert drawn_gap(0, seed) == gap_at(0) == DomainGap()


def test_a_drawn_pair_is_the_same_every_time_and_says_its_parameters(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "SHAPE", (60, 100))
    state = np.random.get_state()[1].copy()
    for folder, severity, seed, kind in (("a", 2.0, 5, "drawn"), ("b", 2.0, 5, "drawn"), ("c", 2.0, 6, "drawn"),
                                         ("fixed", 0.0, 5, "fixed")):
        write_pair(tmp_path / folder, severity, seed, kind)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    files = {folder: {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} for folder in
             ("a", "b", "c", "fixed")}
    assert files["a"] == files["b"]
    assert all(files["a"][name] != files["c"][name] for name in files["a"])
    assert files["a"]["SimSource.mat"] == files["fixed"]["SimSource.mat"]
    values = yaml.safe_load(files["a"]["gap.yaml"])
    assert DomainGap(**values | {"missing": tuple(values["missing"])}) == drawn_gap(2.0, 5)
    assert load_scene("SimTarget", str(tmp_path / "a")).class_names == CLASS_NAMES


def test_a_gap_that_cannot_be_is_refused():
    for kind, severity, seed, said in (("drawn", 3.5, 0, "severity"), ("drawn", float("nan"), 0, "severity"),
                                       ("drawn", 1, -1, "seed"), ("free", 1, 0, "fixed or drawn")):
        with pytest.raises(ConfigError, match=said):
            target_gap(kind, severity, seed)


@pytest.mark.parametrize("name", RANGES)
def test_parameters_stay_in_their_range_cover_it_and_follow_the_severity(name):
    one, source = RANGES[name], getattr(DomainGap(), name)
    low, high = {"add": (source + one.low, source + one.high), "times": (source * one.low, source * one.high),
                 "any": (one.low, one.high)}[one.kind]
    values = {severity: np.array([getattr(drawn_gap(severity, seed), name) for seed in SEEDS]) for severity in (1, 2, 3)}
    at_one = values[1]
    assert (at_one >= max(low, one.least)).all() and (at_one <= min(high, one.most)).all()
    assert all(one.least <= value <= one.most for of_severity in values.values() for value in of_severity)
    inside = (low > one.least) & (high < one.most)
    for ten in (at_one[:10], at_one[10:]):
        place = (np.log(ten / low) / np.log(high / low) if one.kind == "times" else (ten - low) / (high - low))
        assert sorted((place * 10).astype(int)) == list(range(10)) or not inside
    if one.kind == "any":
        np.testing.assert_array_equal(values[1], values[3])
    else:
        moved = {severity: np.log(values[severity] / source) if one.kind == "times" else values[severity] - source
                 for severity in values}
        free = (values[2] > one.least) & (values[2] < one.most)
        np.testing.assert_allclose(moved[2][free], 2 * moved[1][free])
        assert (np.sign(moved[3]) == np.sign(moved[1])).all() and (np.abs(moved[3]) >= np.abs(moved[2])).all()


def test_the_page_has_the_table_of_the_ranges():
    def number(value):
        return f"{value:g}".replace("-", "−")

    def text(one):
        if one.kind == "add":
            return f"{number(one.low)} to +{number(one.high)}"
        return f"× {number(one.low)} to {number(one.high)}" if one.kind == "times" else \
            f"{number(one.low)} to {number(one.high)} at any severity"

    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in
            (ROOT / "docs" / "data.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    table = {row[0]: row[1:4] for row in rows if row[0] in RANGES}
    assert table == {name: [number(getattr(DomainGap(), name)), text(one), f"{number(one.least)} to {number(one.most)}"]
                     for name, one in RANGES.items()}


def test_missing_surfaces_are_two_at_most_of_different_groups_and_stay_missing():
    found = {severity: [drawn_gap(severity, seed).missing for seed in range(100)] for severity in (0.2, 1, 2, 3)}
    group_of = {name: group for group, names in enumerate(MISSABLE) for name in names}
    assert not any(found[0.2]) and {*map(len, found[1])} == {0, 1} and {*map(len, found[2])} == {1, 2}
    for weaker, stronger in ((1, 2), (2, 3)):
        assert all(more[:len(less)] == less for less, more in zip(found[weaker], found[stronger]))
    assert all(len({group_of[name] for name in names}) == len(names) for names in found[3])
    assert {name for names in found[3] for name in names} == {*group_of}


def test_materials_and_shares_differ_from_pair_to_pair():
    one, other = drawn_gap(1, 0), drawn_gap(1, 1)
    assert one.medians.keys() == {f"{name} {key}" for name, model in MATERIALS.items() for key in model.parameters}
    assert one.shares.keys() == {*MIXED} and one.medians != other.medians and one.shares != other.shares
    for values in (one.medians, one.shares):
        assert min(values.values()) < 0.9 and max(values.values()) > 1.1


@pytest.mark.parametrize("missing, classes, materials", [
    ("water", ["water"], ["water"]), ("tree", ["trees"], ["tree"]), ("asphalt", [], ["asphalt"]),
    ("residential", ["residential buildings"], ["shingle", "tile"]),
    ("commercial", ["non-residential buildings"], ["membrane", "gravel"]), ("tile", [], ["tile"]),
    ("healthy grass", ["grass healthy"], ["healthy grass"]), ("stressed grass", ["grass stressed"], ["stressed grass"])])
def test_a_scene_lacks_what_is_missing_and_nothing_else(missing, classes, materials):
    land = land_of(DomainGap(missing=(missing,)))
    labels = annotate(land, np.random.default_rng(0))
    names = list(MATERIALS)
    assert {names[index] for index in np.unique(land.material)} == {*MATERIALS} - {*materials}
    assert {CLASS_NAMES[k - 1] for k in np.unique(labels) if k} == {*CLASS_NAMES} - {*classes}


def test_two_missing_surfaces_of_which_one_would_stand_for_the_other():
    land = land_of(DomainGap(missing=("water", "healthy grass")))
    assert not {"water", "healthy grass"} & {list(MATERIALS)[index] for index in np.unique(land.material)}
    assert {CLASS_NAMES[k - 1] for k in np.unique(land.classes) if k} == {*CLASS_NAMES} - {"water", "grass healthy"}


def test_shares_change_how_often_things_stand_in_a_scene():
    def share(gap, **of):
        land = land_of(gap)
        return np.mean(land.material == list(MATERIALS).index(of["material"]) if "material" in of
                       else land.classes == of["label"])

    few, many = DomainGap(shares={"residential": 0.3, "tile": 0.2}), DomainGap(shares={"residential": 3.0, "tile": 5.0})
    assert share(few, label=RESIDENTIAL) < 0.6 * share(DomainGap(), label=RESIDENTIAL) < share(many, label=RESIDENTIAL)
    tiles = [share(gap, material="tile") / share(gap, label=RESIDENTIAL) for gap in (few, DomainGap(), many)]
    assert tiles[0] < 0.6 * tiles[1] < 0.6 * tiles[2]


def test_objects_look_larger_in_smaller_pixels_and_roads_are_as_frequent():
    sizes, roads = [], []
    for step in (0.5, 1.0, 2.0):
        land = land_of(DomainGap(), step=step)
        _, pixels = np.unique(land.objects[land.classes == RESIDENTIAL], return_counts=True)
        sizes.append(np.median(pixels) * step ** 2)
        roads.append(np.mean(land.classes == ROAD))
    assert np.ptp(sizes) < 0.2 * sizes[1] and np.ptp(roads) < 0.35 * roads[1]


def test_a_larger_pixel_is_the_mean_of_its_points_and_labelled_where_they_agree():
    values = np.random.default_rng(0).random((6, 8, 3))
    np.testing.assert_allclose(block_mean(values, 2)[1, 2], values[2:4, 4:6].mean(axis=(0, 1)))
    land = land_of(DomainGap(), samples=2)
    labels = annotate(land, np.random.default_rng(0), 2)
    assert labels.shape == SHAPE and len(np.unique(labels)) == 8
    for row, column in np.argwhere(labels):
        window = np.s_[max(2 * row - 1, 0):2 * row + 3, max(2 * column - 1, 0):2 * column + 3]
        assert (land.classes[window] == labels[row, column]).all()


def test_surroundings_brighten_what_is_dark_beside_the_bright_and_keep_the_mean():
    radiance = np.zeros((60, 80, 2))
    radiance[:, 40:] = 1
    seen = surroundings(radiance, 6.0)
    np.testing.assert_allclose(seen.mean(axis=(0, 1)), 0.5, rtol=1e-6)
    np.testing.assert_allclose(seen[30, 46], 0.857, atol=0.02)            # the normal distribution at 6.5 / 6
    np.testing.assert_allclose(surroundings(np.ones((20, 30, 2)), 15.0), 1)
    surface, light = np.full((60, 80, len(WAVELENGTHS)), 0.02), np.ones((60, 80))
    surface[:, 40:] = 0.5
    plain, hazy = (observe(surface, light, DomainGap(adjacency=share, noise=0.0), np.random.default_rng(0))
                   for share in (0.0, 0.2))
    assert (hazy[30, 30] > 1.5 * plain[30, 30])[:24].all() and (hazy[30, 60] < plain[30, 60]).all()
    assert hazy[30, 30, 2] / plain[30, 30, 2] > hazy[30, 30, 40] / plain[30, 30, 40]


def test_a_wider_response_makes_narrow_absorptions_shallower_and_a_narrower_one_deeper():
    np.testing.assert_allclose(response(SOURCE_FWHM_NM), np.eye(len(WAVELENGTHS)), atol=1e-12)
    narrow, wide = response(10.0), response(30.0)
    for changed in (narrow, wide):
        np.testing.assert_allclose(changed.sum(axis=1), 1)
    oxygen = int(np.abs(WAVELENGTHS - 762).argmin())
    depths = [1 - 2 * (light := sun(WAVELENGTHS, 0.35) @ changed)[oxygen] / (light[oxygen - 1] + light[oxygen + 1])
              for changed in (narrow, np.eye(len(WAVELENGTHS)), wide)]
    assert depths[0] > depths[1] + 0.01 and depths[1] > 2 * depths[2]
    widened = bell(WAVELENGTHS, 700, 30) @ wide
    spread = np.sqrt(30 ** 2 + (30 ** 2 - SOURCE_FWHM_NM ** 2) / (8 * np.log(2)))
    np.testing.assert_allclose(widened, 30 / spread * bell(WAVELENGTHS, 700, spread), atol=0.01)


def test_the_gain_ripples_as_often_as_drawn():
    ripple = gain(DomainGap(gain_ripple=0.05, ripple_waves=2.0, ripple_phase=0.25)) / gain(DomainGap())
    np.testing.assert_allclose(ripple, 1 + 0.05 * np.cos(4 * np.pi * np.linspace(0, 1, len(WAVELENGTHS))))


def test_a_drawn_median_changes_its_material_alone():
    def asphalt_and_rest(gap):
        land = land_of(gap)
        cube = simulate._reflectance(land, gap, np.random.default_rng(0))
        asphalt = land.material == list(MATERIALS).index("asphalt")
        return cube[asphalt], cube[~asphalt]

    (plain, rest), (bright, same) = map(asphalt_and_rest, (
        DomainGap(road_wear=0.0), DomainGap(road_wear=0.0, medians={"asphalt level": 2.0, "asphalt edge": 2.0})))
    np.testing.assert_array_equal(rest, same)
    np.testing.assert_allclose(bright, 2 * plain)


@pytest.mark.slow
def test_every_pair_has_five_classes_at_least_at_every_severity():
    for seed in SEEDS:
        for severity in (1, 2, 3):                  # severity 0 is the fixed gap's: test_simulate
            gap = drawn_gap(severity, seed)
            samples = max(1, round(gap.pixel_size))
            land = land_of(gap, seed, gap.pixel_size / samples, samples)
            counts = np.bincount(annotate(land, np.random.default_rng([seed, 1, 1]), samples).ravel(), minlength=8)[1:]
            assert np.count_nonzero(counts >= 30) >= 5, (seed, severity, counts)


@pytest.mark.slow_but("5")
@pytest.mark.parametrize("seed", [5, 18])
def test_classes_move_further_with_severity_and_scenes_stay_valid(seed):
    source = class_means(simulate_scene("SimSource", DomainGap(), seed, 0))
    moved = []
    for severity in (0, 1, 2, 3):
        scene = simulate_scene("SimTarget", drawn_gap(severity, seed), seed, 1)
        assert scene.cube.shape == (*SHAPE, len(WAVELENGTHS)) and scene.class_names == CLASS_NAMES
        assert scene.cube.min() >= 0 and 1000 < scene.cube.max() < 65535
        assert np.count_nonzero(scene.class_counts() >= 30) >= 5
        means = class_means(scene)
        moved.append(np.mean([np.linalg.norm(means[k] - source[k]) for k in means.keys() & source.keys()]))
    assert (np.diff(moved) > 0).all()


@pytest.mark.parametrize("name", ["path_radiance", "haze_exponent", "sky_light", "water_vapour", "gain_tilt", "noise",
                                  "band_shift_nm", "chlorophyll_loss", "canopy_dryness", "litter", "turbidity",
                                  "roof_dust", "road_wear", "fwhm_nm", "adjacency", "pixel_size"])
def test_every_parameter_changes_the_scene(name, monkeypatch):
    monkeypatch.setattr(simulate, "SHAPE", (60, 100))
    gap = replace(DomainGap(), **{name: asdict(drawn_gap(1, 2))[name]})
    plain, changed = (simulate_scene("SimTarget", one, 2, 1) for one in (DomainGap(), gap))
    assert not np.array_equal(plain.cube, changed.cube)
