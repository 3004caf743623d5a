"""The patch sampler: order, repetition, augmentation, no copies of the scene."""

import numpy as np
import pytest
import torch

from datasets.patches import Augmentation, PatchSampler, flip, mixture_noise, place, radiation_noise, source_repeat

OFF = Augmentation(False, False, False)


@pytest.fixture
def sampler():
    rng = np.random.default_rng(0)
    cube = rng.random((12, 10, 4)).astype(np.float32)
    centres = np.argwhere(np.ones((12, 10), bool))[::3]
    return PatchSampler(place(cube, torch.device("cpu")), centres, np.arange(len(centres)) % 3, 5)


def generators(seed=0):
    return torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)


def test_in_order_gives_the_centres_in_order(sampler):
    x, y = zip(*sampler.in_order(7))
    x, y = torch.cat(x), torch.cat(y)
    assert torch.equal(y, sampler.labels)
    for i, (row, col) in enumerate(sampler.centres.tolist()):
        assert torch.equal(x[i, :, 2, 2], sampler.cube[:, row, col])
    assert sum(len(part) for part, _ in sampler.in_order(7, most=10)) == 10


def test_an_epoch_holds_every_sample_repeat_times_and_the_last_batch_is_smaller(sampler):
    sampler.repeat = 3
    batches = [y for _, y in sampler.batches(50, *generators(), OFF)]
    assert [len(y) for y in batches] == [50, 50, 20]
    assert len(batches) == sampler.epoch_length(50)
    assert torch.equal(torch.bincount(torch.cat(batches)), 3 * torch.bincount(sampler.labels))


def test_batches_follow_the_seed(sampler):
    def epoch(seed):
        return torch.cat([x for x, _ in sampler.batches(16, *generators(seed), Augmentation(True, True, True))])
    assert torch.equal(epoch(0), epoch(0)) and not torch.equal(epoch(0), epoch(5))


def test_the_cube_is_shared_not_copied(sampler):
    other = PatchSampler(sampler.cube, [[1, 1]], [0], 5, repeat=5)
    assert other.cube.data_ptr() == sampler.cube.data_ptr()
    cube = np.zeros((3, 4, 5), np.float32)
    assert place(cube, torch.device("cpu")).data_ptr() == cube.ctypes.data


def test_flips_touch_about_half_and_only_mirror():
    x = torch.rand(4000, 1, 3, 3)
    flipped = flip(x, torch.Generator().manual_seed(0))
    kinds = {"same": x, "h": x.flip(3), "v": x.flip(2), "both": x.flip(2, 3)}
    share = {name: (flipped == kind).flatten(1).all(1).float().mean().item() for name, kind in kinds.items()}
    assert sum(share.values()) == pytest.approx(1)
    assert share["same"] == pytest.approx(0.625, abs=0.03) and share["both"] == pytest.approx(0.125, abs=0.03)
    assert share["h"] == pytest.approx(0.125, abs=0.03) and share["v"] == pytest.approx(0.125, abs=0.03)


def test_radiation_noise_has_its_gain_and_spread():
    x = torch.ones(4000, 10, 3, 3)
    noisy = radiation_noise(x, torch.Generator().manual_seed(0))
    touched = (noisy != x).flatten(1).any(1)
    assert touched.float().mean().item() == pytest.approx(0.5, abs=0.03)
    means = noisy[touched].flatten(1).mean(1)
    assert 0.88 < means.min() < 0.92 and 1.08 < means.max() < 1.12
    spread = (noisy[touched] - means[:, None, None, None]).std().item()
    assert spread == pytest.approx(1 / 25, rel=0.05)


def test_mixture_noise_stays_between_the_two_and_within_the_class(sampler):
    x, partner = torch.zeros(2000, 1, 3, 3), torch.ones(2000, 1, 3, 3)
    mixed = mixture_noise(x, partner, torch.Generator().manual_seed(0)).flatten(1).mean(1)
    assert mixed.min() > -0.1 and mixed.max() < 1.1 and (mixed.abs() > 0.2).float().mean() > 0.3
    labels = sampler.labels
    assert torch.equal(labels[sampler._by_class], labels.sort().values)


def test_repetition_follows_the_released_rule():
    assert source_repeat(2530, 53200, 0.8, 5) == 5          # 0.19 < 1
    assert source_repeat(39332, 39355, 0.8, 5) == 1         # 4.0
    assert source_repeat(100, None, 0.8, 5) == 5            # unknown target
