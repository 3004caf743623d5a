"""Physical perturbations of held-out source patches, each against a direct computation in numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets import patches, perturb
from datasets.harmonize import preprocess
from datasets.patches import PatchSampler, place
from datasets.perturb import FLIGHTS, SIZES, VIEWS, Perturbations, ShiftedSource, brightness, wavelengths_of
from datasets.simulator.gap import gap_at
from datasets.simulator.land import draw_land_cover
from datasets.simulator.sensor import WAVELENGTHS, gain, sun
from datasets.simulator.simulate import SHAPE, _reflectance
from model.ops import cuda

CPU = torch.device("cpu")
NM = np.array([450.0, 500, 560, 700, 690, 1000])          # two detectors that overlap
MEAN = np.array([0.3, 0.4, 0.5, 0.4, 0.2, 0.1])
FLIGHT = np.arange(11) % FLIGHTS


@pytest.fixture
def radiance():
    """[11, 3, 3, 6], one pixel of it without data."""
    values = np.random.default_rng(0).gamma(2.0, 0.2, (11, 3, 3, 6)).astype(np.float32)
    values[4, 1, 1] = 0
    return values


def see(kind, size, radiance, normals=None):
    normals = np.zeros_like(radiance) if normals is None else normals
    seen = Perturbations(NM, MEAN, CPU).see(kind, size, *map(torch.from_numpy, (radiance, FLIGHT, normals)))
    return seen.numpy()


def unit(values):
    values = np.maximum(values, 0)
    norm = np.linalg.norm(values, axis=-1, keepdims=True)
    return values / np.where(norm > 0, norm, 1)


def each(radiance, change):
    """change(spectrum [B], flight) -> spectrum, for every spectrum that is not zero, scaled to unit length."""
    out = np.zeros(radiance.shape)
    for index in np.ndindex(radiance.shape[:3]):
        if radiance[index].any():
            out[index] = unit(change(radiance[index].astype(float), FLIGHT[index[0]]))
    return out


@pytest.mark.parametrize("kind", SIZES)
def test_nothing_happens_at_strength_zero_and_no_data_stays_no_data(kind, radiance):
    np.testing.assert_allclose(see(kind, 0.0, radiance), unit(radiance), atol=1e-6)
    seen = see(kind, SIZES[kind][1], radiance, np.ones_like(radiance))
    assert not seen[4, 1, 1].any() and np.abs(seen - unit(radiance)).max() > 1e-3
    assert (seen >= 0).all()
    np.testing.assert_allclose(np.delete(np.linalg.norm(seen, axis=-1), 4 * 9 + 4), 1, atol=1e-6)


def test_gain_is_a_smooth_curve_of_each_flight(radiance):
    t = (NM - 450) / 550
    phase = np.random.default_rng(perturb.GAIN_SEED).uniform(0, 2 * np.pi, (FLIGHTS, 3))
    curve = [np.sqrt(2 / (1 + 1 / 4 + 1 / 9)) * sum(np.cos(2 * np.pi * w * t + phase[f, w - 1]) / w for w in (1, 2, 3))
             for f in range(FLIGHTS)]
    np.testing.assert_allclose(see("gain", 0.5, radiance), each(radiance, lambda s, f: s * np.exp(0.5 * curve[f])),
                               atol=1e-6)
    curves = perturb.gain_curves(np.arange(200) / 200)
    np.testing.assert_allclose(curves.mean(1), 0, atol=1e-9)
    np.testing.assert_allclose((curves ** 2).mean(1), 1, rtol=1e-9)


def test_tilt_goes_up_and_down(radiance):
    expected = each(radiance, lambda s, f: s * np.exp((-1) ** (f + 1) * 0.3 * (NM - 450) / 550))
    np.testing.assert_allclose(see("tilt", 0.3, radiance), expected, atol=1e-6)


def test_path_radiance_is_added_and_counts_more_in_dark_pixels(radiance):
    exponent = np.linspace(2, 4, FLIGHTS)
    expected = each(radiance, lambda s, f: s + 0.2 * MEAN * (NM / 550) ** -exponent[f])
    np.testing.assert_allclose(see("path_radiance", 0.2, radiance), expected, atol=1e-6)
    change = [np.abs(see("path_radiance", 0.2, part * radiance) - unit(radiance)).sum() for part in (0.1, 1, 10)]
    assert change[0] > 2 * change[1] > 4 * change[2]


def test_noise_grows_with_the_root_of_the_signal(radiance):
    normals = np.random.default_rng(1).standard_normal(radiance.shape).astype(np.float32)
    expected = unit(radiance + 0.3 * np.sqrt(radiance * MEAN) * normals)
    np.testing.assert_allclose(see("noise", 0.3, radiance, normals), expected, atol=1e-6)


def test_band_shift_interpolates_between_neighbouring_wavelengths(radiance):
    order = np.argsort(NM)
    for size in (3.0, 70.0):              # within a band, and past several
        expected = each(radiance, lambda s, f: np.interp(NM + (-1) ** (f + 1) * size, NM[order], s[order]))
        np.testing.assert_allclose(see("band_shift", size, radiance), expected, atol=1e-6)


def test_the_sizes_are_those_of_the_simulated_gap():
    layout = draw_land_cover(SHAPE, np.random.default_rng([0, 0, 0]))
    reflectance = _reflectance(layout, gap_at(0), np.random.default_rng([0, 0, 2]))
    at_550 = reflectance.mean((0, 1))[np.abs(WAVELENGTHS - 550).argmin()]
    position = np.linspace(0, 1, len(WAVELENGTHS))

    def light(gap):
        sky = gap.sky_light * (550 / WAVELENGTHS) ** 2.5
        return np.log(sun(WAVELENGTHS, gap.water_vapour) * (1 + sky) * gain(gap))

    for index, severity in enumerate((1, 2)):
        gap, source = gap_at(severity), gap_at(0)
        ratio = light(gap) - light(source)
        slope, level = np.polyfit(position, ratio, 1)
        found = {"gain": (ratio - slope * position - level).std(), "tilt": -slope,
                 "path_radiance": (gap.path_radiance - source.path_radiance) / at_550,
                 "noise": np.sqrt(gap.noise ** 2 - source.noise ** 2), "band_shift": gap.band_shift_nm}
        assert {kind: sizes[index] for kind, sizes in SIZES.items()} == pytest.approx(found, rel=0.06)


def test_brightness_is_what_preprocessing_divides_out(scenes):
    cube = scenes[0].cube[:20, :30].copy()
    cube[3, 4] = 0
    plane, mean = brightness(cube)
    unit_spectra = preprocess(cube)
    norm = np.linalg.norm(cube.astype(float), axis=2)
    np.testing.assert_allclose(plane, norm / norm[norm > 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(unit_spectra * plane[..., None], cube / norm[norm > 0].mean(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(mean, cube[norm > 0].mean(0) / norm[norm > 0].mean(), rtol=1e-5)


@pytest.mark.parametrize("fill", [1e30, np.finfo(np.float32).max])
def test_one_value_of_1e30_does_not_darken_the_views(scenes, fill):
    cube = scenes[0].cube.copy()
    row, column = np.argwhere(scenes[0].labels == 0)[0]                 # no patch's centre
    cube[row, column, 5] = fill
    marred, (plane, mean) = replace(scenes[0], cube=cube), brightness(cube)
    expected_plane, expected_mean = brightness(scenes[0].cube)
    there = np.ones(plane.shape, bool)
    there[row, column] = False
    np.testing.assert_allclose(plane[there], expected_plane[there], rtol=1e-2)       # the mean lacks one pixel
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-2)
    assert plane[row, column] == 1
    expected, found = (views_of(ShiftedSource(held_out(scene), scene), 40) for scene in (scenes[0], marred))
    centre = np.s_[:, :, 2, 2]
    for name, (x, _) in expected.items():
        np.testing.assert_allclose(found[name][0][centre], x[centre], atol=1e-3)


def held_out(scene, count=40, patch_size=5, backend="auto"):
    centres = np.argwhere(scene.labels > 0)[:count]
    labels = scene.labels[tuple(centres.T)] - 1
    return PatchSampler(place(preprocess(scene.cube), CPU), centres, labels, patch_size, backend)


def views_of(source, batch_size):
    found = {}
    for name, x, y in source.batches(batch_size):
        found.setdefault(name, []).append((x, y))
    return {name: [torch.cat(part) for part in zip(*pairs)] for name, pairs in found.items()}


def test_ten_views_the_same_in_every_run_and_batch_size(scenes):
    sampler = held_out(scenes[0])
    first, second = (views_of(ShiftedSource(sampler, scenes[0]), size) for size in (7, 40))
    assert list(first) == list(VIEWS) == list(second) and len(VIEWS) == 10
    x, y = next(sampler.in_order(40))
    for name, (seen, labels) in first.items():
        assert seen.shape == x.shape and torch.equal(labels, y)
        assert not torch.equal(seen, x) and torch.equal(seen, second[name][0])
        assert (seen * x).sum(1).min() > 0.9                # still the same materials
    for kind in SIZES:
        weak, strong = (float((first[f"{kind}_{word}"][0] - x).norm()) for word in ("weak", "strong"))
        assert 1.4 * weak < strong < 2.6 * weak


def test_every_backend_gathers_the_same_views(scenes, on_host, monkeypatch):
    def views(backend):
        return views_of(ShiftedSource(held_out(scenes[0], backend=backend), scenes[0]), 40)

    expected = views("reference")
    found = [views("auto")]
    monkeypatch.setattr(patches, "resolve_backend", lambda *_: "cupy")
    monkeypatch.setattr(cuda, "gather_patches", cuda.launch_gather)
    found.append(views("reference"))
    assert len(on_host) == 2                # the CUDA kernel gathered spectra and brightness
    for name, (x, _) in expected.items():
        for each_backend in found:
            torch.testing.assert_close(each_backend[name][0], x, rtol=0, atol=1e-6)


def test_a_view_is_that_of_the_radiance_around_each_pixel(scenes):
    scene = scenes[0]
    plane, mean = brightness(scene.cube)
    radiance = preprocess(scene.cube) * plane[..., None]
    sampler = held_out(scene)
    seen = views_of(ShiftedSource(sampler, scene), 16)["path_radiance_strong"][0].numpy()
    exponent = np.linspace(2, 4, FLIGHTS)
    for number in (0, 13, 39):
        row, column = sampler.centres[number].tolist()
        around = radiance[row - 2:row + 3, column - 2:column + 3]
        if around.shape[:2] == (5, 5):
            haze = SIZES["path_radiance"][1] * mean * (scene.wavelengths / 550) ** -exponent[number % FLIGHTS]
            np.testing.assert_allclose(seen[number].transpose(1, 2, 0), unit(around + haze), atol=1e-5)


def test_at_most_so_many_pixels_evenly_spread(scenes, monkeypatch):
    monkeypatch.setattr(perturb, "MOST_PIXELS", 9)
    sampler = held_out(scenes[0], count=41)
    source = ShiftedSource(sampler, scenes[0])
    assert len(source) == 9 and torch.equal(source.spectra.centres, sampler.centres[::5])


@pytest.mark.parametrize("bands", [1, 2])
def test_scenes_of_few_bands_and_unknown_wavelengths(scenes, bands):
    scene = replace(scenes[0], cube=scenes[0].cube[..., :bands], wavelengths=None, rgb_bands=(0, 0, 0))
    np.testing.assert_allclose(wavelengths_of(scene), [400, 1000][:bands])
    for x, _ in views_of(ShiftedSource(held_out(scene), scene), 40).values():
        assert x.isfinite().all()


def test_wavelengths_in_another_unit_are_not_believed(scenes, caplog):
    scene = replace(scenes[0], wavelengths=scenes[0].wavelengths / 1000)
    np.testing.assert_allclose(wavelengths_of(scene), np.linspace(400, 1000, 48))
    assert "cannot be nm" in caplog.text
    np.testing.assert_array_equal(wavelengths_of(scenes[0]), scenes[0].wavelengths)
