"""The patch sampler: order, repetition, augmentation, no copies of the scene."""

import numpy as np
import pytest
import torch

from datasets import patches
from datasets.patches import Augmentation, PatchSampler, flips, mixture_noise, place, radiation_noise, source_repeat
from datasets.resolution import blurred, factors
from model.ops import cpu, reference
from model.ops.reference import gather_spectra
from model.spectra import PhysicalBranch, admix, apply_gain

OFF = Augmentation(False, False, False)
FORMATS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture(params=["reference", "cpu", "cupy"])
def sampler(request, monkeypatch):
    """A sampler of 40 patches of three classes, through every way of making patches; without a GPU the operators of
    the CUDA kernels compute by the reference."""
    backend = request.param
    if backend == "cpu" and cpu.unavailable_reason():
        pytest.skip(f"needs the C++ kernels: {cpu.unavailable_reason()}")
    if backend == "cupy":
        monkeypatch.setattr(patches, "resolve_backend", lambda *_: "cupy")
        backend = "reference"
    rng = np.random.default_rng(0)
    cube = rng.random((12, 10, 4)).astype(np.float32)
    centres = np.argwhere(np.ones((12, 10), bool))[::3]
    return PatchSampler(place(cube, torch.device("cpu")), centres, np.arange(len(centres)) % 3, 5, backend)


def generators(seed=0):
    return torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_in_order_gives_the_centres_in_order(sampler, memory_format):
    sampler.memory_format = memory_format
    x, y = zip(*sampler.in_order(7))
    assert all(part.is_contiguous(memory_format=memory_format) for part in x)
    x, y = torch.cat(x), torch.cat(y)
    assert torch.equal(y, sampler.labels)
    assert torch.equal(x, reference.gather_patches(sampler.cube, sampler.centres, 5))
    for i, (row, col) in enumerate(sampler.centres.tolist()):
        assert torch.equal(x[i, :, 2, 2], sampler.cube[:, row, col])
    assert sum(len(part) for part, _ in sampler.in_order(7, most=10)) == 10


def test_an_epoch_holds_every_sample_repeat_times_and_the_last_batch_is_smaller(sampler):
    sampler.repeat = 3
    batches = [y for _, y in sampler.batches(50, *generators(), OFF)]
    assert [len(y) for y in batches] == [50, 50, 20]
    assert len(batches) == sampler.epoch_length(50)
    assert torch.equal(torch.bincount(torch.cat(batches)), 3 * torch.bincount(sampler.labels))


def test_batches_follow_the_seed_whatever_the_layout(sampler):
    def epoch(seed, memory_format=torch.contiguous_format):
        sampler.memory_format = memory_format
        x = [x for x, _ in sampler.batches(16, *generators(seed), Augmentation(True, True, True))]
        assert all(part.is_contiguous(memory_format=memory_format) for part in x)
        return torch.cat(x)
    assert torch.equal(epoch(0), epoch(0)) and not torch.equal(epoch(0), epoch(5))
    assert torch.equal(*(epoch(0, memory_format) for memory_format in FORMATS))


def test_batches_differ_only_by_flips_and_noise(sampler):
    everything = reference.gather_patches(sampler.cube, sampler.centres, 5)
    turned = torch.stack([everything, everything.flip(3), everything.flip(2), everything.flip(2, 3)], 1)
    sampler.repeat = 5
    kinds = set()
    for augmentation, most in ((Augmentation(True, False), 0), (Augmentation(True, True), 0.4), (OFF, 0)):
        for x, y in sampler.batches(40, *generators(3), augmentation):
            distance = (turned - x[:, None, None]).abs().amax((3, 4, 5)).flatten(1)         # [batch, 40 patches · 4]
            nearest = distance.argmin(1)
            assert distance.amin(1).max() <= most
            assert torch.equal(sampler.labels[nearest // 4], y)
            kinds |= {(augmentation.flip, kind) for kind in (nearest % 4).tolist()}
    assert kinds == {(True, 0), (True, 1), (True, 2), (True, 3), (False, 0)}


def test_kernels_get_a_new_seed_with_each_batch(sampler, monkeypatch):
    seeds = []

    def fused(cube, centres, size, seed, **options):
        assert options == {"flip": True, "radiation": False,
                           "channels_last": sampler.memory_format == torch.channels_last}
        seeds.append(seed)
        return reference.gather_augmented(cube, centres, size, seed, radiation=False)

    monkeypatch.setattr(patches, "FUSED", dict.fromkeys(("reference", "cpu", "cupy"), fused))
    list(sampler.batches(10, *generators(), Augmentation(True, False)))
    assert [(seed.dtype, seed.shape) for seed in seeds] == [(torch.int64, (1,))] * 4
    assert len({seed.item() for seed in seeds}) == 4 and min(seed.item() for seed in seeds) < 0     # all 64 bits
    monkeypatch.setattr(patches, "FUSED", {})
    assert len(list(sampler.batches(10, *generators(), Augmentation(True, False)))) == 4


def test_the_cube_is_shared_not_copied(sampler):
    other = PatchSampler(sampler.cube, [[1, 1]], [0], 5, repeat=5)
    assert other.cube.data_ptr() == sampler.cube.data_ptr()
    cube = np.zeros((3, 4, 5), np.float32)
    assert place(cube, torch.device("cpu")).data_ptr() == cube.ctypes.data


@pytest.mark.parametrize("centre", [(12, 0), (0, 10), (-1, 3)])
def test_a_centre_outside_the_scene_is_refused(sampler, centre):
    with pytest.raises(ValueError, match=rf"centre \({centre[0]}, {centre[1]}\) lies outside the scene of 12 x 10"):
        PatchSampler(sampler.cube, [(3, 3), centre], [0, 0], 5)


def test_flips_touch_about_half_and_go_either_way():
    turn = flips(4000, torch.Generator().manual_seed(0))
    assert set(turn.flatten().tolist()) == {-1, 1}
    for kind, share in {(1, 1): 0.625, (1, -1): 0.125, (-1, 1): 0.125, (-1, -1): 0.125}.items():
        found = (turn == torch.tensor(kind)).all(1).float().mean().item()
        assert found == pytest.approx(share, abs=0.03), kind


def test_radiation_noise_has_its_gain_and_spread():
    noisy = radiation_noise(torch.ones(4000, 3, 3, 10), torch.Generator().manual_seed(0))
    touched = (noisy != 1).flatten(1).any(1)
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


def test_other_distances_blur_and_skip():
    """A pixel twice as large sees its neighbours; every second one is taken, and a smaller one is repeated."""
    rng = np.random.default_rng(0)
    cube = rng.random((20, 24, 3)).astype(np.float32)
    cube[:, 12:] += 1                                        # an edge
    cube[5, 5] = 0                                           # no data
    wide = blurred(cube, 2.0)
    assert blurred(cube, 1.0) is cube and not wide[5, 5].any()
    assert wide[:, 4:8].std() < cube[:, 4:8].std() and wide[10, 11].mean() > cube[10, 11].mean()
    assert np.allclose(blurred(np.ones_like(cube), 2.0), 1, atol=1e-5)
    scales = [(factor, place(blurred(cube, factor), torch.device("cpu"))) for factor in (0.5, 1.0, 2.0)]
    centres = np.argwhere(np.ones((20, 24), bool))
    sampler = PatchSampler(place(cube, torch.device("cpu")), centres, np.zeros(len(centres)), 5, scales=scales)
    x, _ = next(sampler.batches(len(centres), torch.Generator().manual_seed(0), torch.Generator().manual_seed(0),
                                Augmentation(False, False)))
    assert factors(2.0) == pytest.approx([0.5, 2 ** -0.5, 1, 2 ** 0.5, 2]) and factors(1.2) == [1]
    fine, coarse = (index_of(x, sampler, scale) for scale in (scales[0], scales[2]))
    assert 0.2 * len(x) < len(fine) < 0.5 * len(x) and 0.2 * len(x) < len(coarse) < 0.5 * len(x)


def index_of(x, sampler, scale):
    """Which patches of a batch are those of some centre at this scale."""
    factor, cube = scale
    offsets = (factor * torch.arange(-2, 3)).round().long()
    made = {tuple(np.round(gather_spectra(cube, centre[:1, None] + offsets, centre[1:, None] + offsets).numpy().ravel(), 4))
            for centre in sampler.centres}
    return [i for i, patch in enumerate(x.permute(0, 2, 3, 1).numpy()) if tuple(np.round(patch.ravel(), 4)) in made]


def balanced(repeat=1, counts=(40, 7, 0, 3)):
    """A sampler whose patches say by their value which sample they are of."""
    labels = np.repeat(np.arange(len(counts)), counts)
    cube = torch.arange(len(labels), dtype=torch.float32).view(1, 1, -1).expand(2, 5, -1)
    centres = np.stack([np.full(len(labels), 2), np.arange(len(labels))], 1)
    return PatchSampler(cube.contiguous(), centres, labels, 5, "reference", repeat, balanced=True)


def drawn(sampler, batch_size, seed=0):
    """Batches of (sample numbers, labels)."""
    generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
    return [(x[:, 0, 2, 2].long(), y) for x, y in sampler.batches(batch_size, *generators, Augmentation(False, False))]


@pytest.mark.parametrize("repeat", [1, 4])
def test_balanced_classes_take_turns_and_their_samples_too(repeat):
    """An epoch has as many samples as without; the class without a sample has no turn."""
    sampler = balanced(repeat)
    found = drawn(sampler, 9)
    assert len(found) == sampler.epoch_length(9)
    index, labels = (torch.cat(part) for part in zip(*found))
    assert len(index) == 50 * repeat and torch.equal(sampler.labels[index], labels)
    for part in labels[:len(labels) // 3 * 3].split(3):                       # every round has each class once
        assert sorted(part.tolist()) == [0, 1, 3]
    assert len({tuple(part.tolist()) for part in labels.split(3)}) > 3        # in different orders
    for k in (0, 1, 3):
        often = torch.bincount(index[labels == k], minlength=50)[sampler.labels == k]
        assert often.max() - often.min() <= 1


def test_balanced_batches_follow_their_generator():
    first, again, other = (torch.cat([index for index, _ in drawn(balanced(), 16, seed)]) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    generator = torch.Generator().manual_seed(0)
    epochs = [next(balanced().batches(50, generator, generator, Augmentation(False, False)))[1] for _ in range(2)]
    assert not torch.equal(*epochs)


@pytest.mark.parametrize("gain, admixture", [(0.2, 0.0), (0.0, 0.6), (0.2, 0.6)])
def test_gain_and_admixture_perturb_training_patches_alone(gain, admixture):
    """Every patch for training is its own under the drawn gain, with the drawn share of its partner; all have unit
    norm.  Patches in order stay what they are."""
    cube = torch.rand(6, 12, 10).add_(0.1)
    cube /= cube.norm(dim=0)
    centres = np.argwhere(np.ones((12, 10), bool))
    sampler = PatchSampler(cube, centres, np.zeros(120, int), 3, "reference", physical=PhysicalBranch(gain, admixture))
    clean = torch.cat([x for x, _ in sampler.in_order(50)])
    assert torch.equal(clean, reference.gather_patches(cube, sampler.centres, 3))
    index = torch.arange(40)
    seen = sampler._augmented(index, torch.Generator().manual_seed(3), OFF)
    gains, partners, shares = sampler.physical.draw(40, 6, torch.Generator().manual_seed(3))
    assert torch.allclose(seen.norm(dim=1), torch.ones(40, 3, 3), atol=1e-5)
    mixed = admix(clean[:40], partners, shares)
    expected = apply_gain(mixed / mixed.norm(dim=1, keepdim=True), gains)
    assert torch.allclose(seen, expected, atol=1e-5) and not torch.allclose(seen, clean[:40], atol=1e-3)
