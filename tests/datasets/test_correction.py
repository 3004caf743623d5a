"""Scene correction: what it takes out, what it leaves, and the mixed reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets.correction import HALF, MEAN, RATIO, STANDARDISE, Correction, corrected, mixture_of, reference_of
from datasets.harmonize import preprocess, unit_spectra
from datasets.patches import Augmentation, PatchSampler, place

KINDS = (MEAN, RATIO, STANDARDISE, HALF)
CPU = torch.device("cpu")


@pytest.fixture
def cube() -> np.ndarray:
    """[9, 8, 6] digital numbers of three surfaces, two pixels without data."""
    rng = np.random.default_rng(0)
    surfaces = rng.uniform(1, 10, (3, 6))[rng.integers(0, 3, (9, 8))]
    cube = (surfaces * rng.uniform(0.5, 2, (9, 8, 1)) + rng.uniform(0, 0.1, (9, 8, 6))).astype(np.float32)
    cube[0, :2] = 0
    return cube


def test_mean_is_taken_out(cube):
    seen, there = preprocess(cube, MEAN), cube.any(axis=2)
    assert np.allclose(seen[there].mean(0), 0, atol=1e-6) and not seen[~there].any()
    plain = preprocess(cube)
    assert np.allclose(seen[3, 3] - seen[4, 5], plain[3, 3] - plain[4, 5], atol=1e-6)


def test_ratio_does_not_see_a_gain(cube):
    """A gain of the whole flight, steep enough to move every spectrum, is divided out."""
    gain = np.linspace(0.6, 1.5, 6, dtype=np.float32)
    seen, other = preprocess(cube, RATIO), preprocess(cube * gain, RATIO)
    there = cube.any(axis=2)
    cosine = (seen * other).sum(2)[there]
    assert cosine.min() > 0.998 > (preprocess(cube) * preprocess(cube * gain)).sum(2)[there].max()
    assert np.allclose(np.linalg.norm(seen[there], axis=1), 1, atol=1e-6)


def test_ratio_divides_by_no_dead_band():
    cube = np.random.default_rng(1).uniform(1, 2, (5, 5, 4)).astype(np.float32)
    cube[..., 2] = 1e-7
    assert np.abs(preprocess(cube, RATIO)[..., 2]).max() < 1e-5


def test_standardised_spread_is_one_number(cube):
    seen, there = preprocess(cube, STANDARDISE), cube.any(axis=2)
    spread = seen[there].std(0)
    assert np.allclose(spread, spread.mean(), rtol=1e-4) and np.allclose(seen[there].mean(0), 0, atol=1e-6)


def test_half_standardised_lies_between(cube):
    """Its bands are the geometric means of those of `mean` and `standardise`."""
    none, half, full = (preprocess(cube, kind).astype(np.float64) for kind in (MEAN, HALF, STANDARDISE))
    assert np.allclose(half ** 2, none * full, atol=1e-6) and np.array_equal(np.sign(half), np.sign(full))
    assert not np.allclose(half, none, atol=1e-3)


def test_one_broken_pixel_hardly_moves_the_reference(cube):
    before = reference_of(unit_spectra(cube))
    cube[4, 4] = [0, 0, 6e4, 0, 0, 0]
    after = reference_of(unit_spectra(cube))
    assert np.linalg.norm(after.mean - before.mean) <= 2 / before.pixels
    assert before.pixels == after.pixels == 70


@pytest.mark.parametrize("kind", KINDS)
def test_reference_of_another_scene(cube, kind):
    """The same values under a reference of their own and under one that is given."""
    other = reference_of(unit_spectra(cube[:4]))
    assert np.array_equal(preprocess(cube, kind, other), corrected(unit_spectra(cube), kind, other))
    assert not np.allclose(preprocess(cube, kind, other), preprocess(cube, kind))


def sampler(cube, kind, concentration, pixels=0):
    spectra = unit_spectra(cube)
    reference = reference_of(spectra)
    centres = np.argwhere(cube.any(axis=2))
    labels = np.arange(len(centres)) % 3
    mixture = mixture_of(spectra, centres, labels, concentration, pixels) if concentration else None
    correction = Correction(kind, reference, CPU, mixture)
    made = PatchSampler(place(corrected(spectra, kind, reference), CPU), centres, labels, 3,
                        before=(place(spectra, CPU), correction))
    return made, reference, mixture


@pytest.mark.parametrize("kind", KINDS)
def test_training_sees_what_the_scene_is(cube, kind):
    """Without augmentation and mixing, patches for training are those of the corrected cube."""
    train, _, _ = sampler(cube, kind, 0.0)
    index = torch.arange(12)
    seen = train._augmented(index, torch.Generator().manual_seed(0), Augmentation(False, False))
    assert torch.allclose(seen, train.patches(index), atol=1e-6)


def test_references_are_mixed_per_patch(cube):
    """r − a·m is a mixture of class means for some a in 0..1; every patch has another."""
    train, reference, mixture = sampler(cube, MEAN, 0.7)
    means = mixture.means
    drawn = train.correction.draw(500, torch.Generator().manual_seed(0)).double().numpy()
    assert len(np.unique(drawn, axis=0)) == 500
    corners = np.vstack([reference.mean, means]).astype(np.float64)                                        # [4, 6]
    weights = np.linalg.lstsq(np.vstack([corners.T, np.ones(4)]), np.vstack([drawn.T, np.ones(500)]), rcond=None)[0]
    assert np.allclose(corners.T @ weights, drawn.T, atol=1e-5)
    assert abs(drawn.mean(0) - (reference.mean + means.mean(0)) / 2).max() < 0.05 * abs(means).max()
    own = np.linalg.norm(drawn - reference.mean, axis=1)
    assert own.min() < 0.1 * own.max()


def test_mixed_references_vary_within_the_classes(cube):
    """With S pixels the mixture is a mean of S more deviations: they average to nothing, and their variance is that of
    the pixels within their classes over S."""
    train, reference, mixture = sampler(cube, MEAN, 0.7, 4)
    assert np.allclose(mixture.deviations.mean(0), 0, atol=1e-6)
    at, label = train.centres.numpy(), train.labels.numpy()
    spectra = train.uncorrected.numpy()[:, at[:, 0], at[:, 1]].T
    assert np.allclose(mixture.deviations + mixture.means[label], spectra, atol=1e-6)
    none = replace(mixture, pixels=0)
    with_, without = (m.draw(4000, reference.mean, np.random.default_rng(0)) for m in (mixture, none))
    added = with_ - without                       # (1 − a)·(mean of four deviations), E[(1 − a)²] = 1/3
    assert np.abs(added.mean(0)).max() < 0.1 * mixture.deviations.std(0).max()
    assert np.allclose(added.var(0), mixture.deviations.var(0) / 12, rtol=0.15)


def test_same_generator_same_references(cube):
    train, _, _ = sampler(cube, RATIO, 0.7)
    batches = [next(train.batches(8, torch.Generator().manual_seed(1), torch.Generator().manual_seed(2), Augmentation()))
               for _ in range(2)]
    assert torch.equal(batches[0][0], batches[1][0])
    others = next(train.batches(8, torch.Generator().manual_seed(1), torch.Generator().manual_seed(3), Augmentation()))
    assert not torch.equal(others[0], batches[0][0])
