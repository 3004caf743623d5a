"""Maps and confusion matrices: the same whichever way pixels are classified, and the cheaper way is taken."""

import numpy as np
import pytest
import torch

import utils.run.predict
from conftest import build
from datasets.patches import PatchSampler, place
from model.methods import Task
from model.methods.erm import ERM
from model.scan.scanner import Region
from utils.run.predict import can_scan, classify, confusion_of, map_scene, plan

CPU = torch.device("cpu")
PATCH = 5


class OwnPredict(ERM):
    """Predicts in a way of its own."""

    def predict(self, x):
        return -super().predict(x)


@pytest.fixture
def method():
    made = build(bands=6, n_classes=3, patch_size=PATCH, method="erm")
    with torch.no_grad():
        for parameter in made.discriminator.parameters():
            parameter.mul_(1.5)                       # spreads the predictions over the classes
    return made


@pytest.fixture
def own(method):
    made = OwnPredict(Task(6, 3, PATCH), method.settings, method.streams)
    made.load_state_dict(method.state_dict())
    return made


def cube(height, width, seed=0):
    return np.random.default_rng(seed).random((height, width, 6), dtype=np.float32)


def sampler_of(scene, centres, seed=0):
    labels = np.random.default_rng(seed).integers(0, 3, len(centres))
    return PatchSampler(place(scene, CPU), centres, labels, PATCH)


def every_pixel(height, width):
    return np.argwhere(np.ones((height, width), bool))


def by_patches(method, sampler):
    return torch.cat([method.predict(x).argmax(1) for x, _ in sampler.in_order(64)])


def forbid(monkeypatch, name):
    def forbidden(*_):
        raise AssertionError(f"{name} was not expected")
    monkeypatch.setattr(utils.run.predict, name, forbidden)


@pytest.mark.parametrize("height, width", [(9, 14), (3, 20)])
def test_map_is_that_of_patches(method, monkeypatch, height, width):
    scene = cube(height, width)
    expected = by_patches(method, sampler_of(scene, every_pixel(height, width))).view(height, width)
    assert len(expected.unique()) > 1
    forbid(monkeypatch, "_patchwise")
    found = map_scene(method, scene, PATCH, CPU, "auto", progress=False)
    assert found.dtype == np.uint8 and np.array_equal(found, expected.numpy() + 1)


def test_map_of_a_method_with_its_own_prediction(own, monkeypatch):
    forbid(monkeypatch, "Scanner")
    scene = cube(9, 14)
    found = map_scene(own, scene, PATCH, CPU, "auto", progress=False)
    expected = by_patches(own, sampler_of(scene, every_pixel(9, 14)))
    assert np.array_equal(found.ravel(), expected.numpy() + 1)
    assert np.array_equal(classify(own, sampler_of(scene, every_pixel(9, 14))).numpy(), expected.numpy())


@pytest.mark.parametrize("name, scanned", [("erm", True), ("l2d", True), ("mran", False), ("htcnn", False),
                                           ("svm", False)])
def test_what_a_scan_would_not_answer_alike_is_not_scanned(name, scanned):
    assert can_scan(build(method=name)) is scanned


def test_map_with_more_classes_than_a_byte_holds():
    method = build(bands=6, n_classes=300, patch_size=PATCH, method="erm")
    assert map_scene(method, cube(4, 4), PATCH, CPU, "auto", progress=False).dtype == np.uint16


def test_map_shows_its_progress(method, capfd):
    map_scene(method, cube(4, 25), PATCH, CPU, "auto", progress=True)
    assert "100/100" in capfd.readouterr().err


def test_classes_of_dense_and_scattered_pixels(method, monkeypatch):
    """A dense block is scanned, pixels far from it go patch by patch, and each gets its own answer."""
    wanted = np.concatenate([every_pixel(30, 30) + [2, 5], [[90, 3], [50, 88], [99, 99]]])
    wanted = np.random.default_rng(0).permutation(wanted)
    sampler = sampler_of(cube(100, 100), wanted)
    regions = plan(wanted, PATCH)
    assert [region for region, _ in regions] == [Region(2, 5, 30, 30)] and len(regions[0][1]) == 900
    expected = by_patches(method, sampler)
    assert torch.equal(classify(method, sampler), expected)
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (sampler.labels.numpy(), expected.numpy()), 1)
    assert np.array_equal(confusion_of(method, sampler, 3), confusion)
    forbid(monkeypatch, "Scanner")
    with pytest.raises(AssertionError, match="Scanner"):
        classify(method, sampler)


def test_no_pixels(method):
    assert plan(np.zeros((0, 2), np.int64), PATCH) == []
    assert len(classify(method, sampler_of(cube(9, 9), np.zeros((0, 2), np.int64)))) == 0


@pytest.mark.parametrize("patch_size, density", [(5, 0.42), (9, 0.18), (13, 0.10)])
def test_break_even(patch_size, density):
    """Evenly spread pixels are scanned above the break-even density, and go patch by patch below it."""
    pixels = every_pixel(500, 500)
    random = np.random.default_rng(0).random(len(pixels))
    above, below = (plan(pixels[random < factor * density], patch_size) for factor in (1.3, 0.8))
    assert len(above) == 1 and not below


@pytest.mark.parametrize("patch_size", (3, 5, 13))
def test_plan_serves_each_pixel_in_its_region_at_most_once(patch_size):
    random = np.random.default_rng(0)
    fields = [random.integers(0, 600, 2) + random.integers(0, 80, (14000, 2)) for _ in range(6)]      # 89 % dense
    wanted = np.unique(np.concatenate([*fields, random.integers(0, 680, (300, 2))]), axis=0)
    regions = plan(wanted, patch_size)
    served = np.concatenate([index for _, index in regions])
    assert len(regions) > 1 and len(np.unique(served)) == len(served) < len(wanted)
    for region, index in regions:
        inside = wanted[index] - [region.row, region.column]
        assert (inside >= 0).all() and (inside < [region.height, region.width]).all()
