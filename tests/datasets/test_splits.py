"""Splits: by seed, stratified, or spatially disjoint."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree

from datasets.simulator.simulate import simulate_pair
from datasets.splits import split_scene
from model.errors import ConfigError


@pytest.fixture(scope="module")
def source():
    return simulate_pair(1.0, 0)[0]


def split(scene, rule, seed=0, ratio=0.8, patch_size=7):
    return split_scene(scene, ratio, rule, patch_size, np.random.default_rng(seed))


@pytest.mark.parametrize("rule", ["random", "blocks"])
def test_parts_are_disjoint_labelled_and_follow_the_seed(source, rule):
    first = split(source, rule)
    train, val = {tuple(p) for p in first.train}, {tuple(p) for p in first.val}
    assert not train & val
    for positions, labels in ((first.train, first.train_labels), (first.val, first.val_labels)):
        np.testing.assert_array_equal(source.labels[tuple(positions.T)] - 1, labels)
        assert set(labels) == set(range(7))
    again, other = split(source, rule), split(source, rule, seed=1)
    np.testing.assert_array_equal(first.train, again.train)
    assert {tuple(p) for p in other.val} != val


def test_random_split_is_stratified(source):
    parts = split(source, "random", ratio=0.7)
    share = np.bincount(parts.train_labels) / source.class_counts()
    np.testing.assert_allclose(share, 0.7, atol=0.01)


@pytest.mark.parametrize("patch_size", [5, 13])
def test_block_split_keeps_patches_apart(source, patch_size):
    parts = split(source, "blocks", patch_size=patch_size)
    distances, _ = cKDTree(parts.val).query(parts.train, p=np.inf)
    assert distances.min() >= patch_size                # no pixel is in both a training and a held-out patch
    train, val = (np.bincount(part) / source.class_counts() for part in (parts.train_labels, parts.val_labels))
    assert (val > 0.08).all() and (val < 0.35).all()
    assert (train > (0.55 if patch_size == 5 else 0.35)).all()


def test_too_few_pixels_are_named(source):
    labels = source.labels.copy()
    labels[labels == 4] = 0
    with pytest.raises(ConfigError, match="no labelled pixel of water"):
        split(replace(source, labels=labels), "random")
    labels[tuple(np.argwhere(source.labels == 4)[0])] = 4
    with pytest.raises(ConfigError, match="fewer than 2 labelled pixels of water"):
        split(replace(source, labels=labels), "random")
    labels[tuple(np.argwhere(source.labels == 4)[1])] = 4
    with pytest.raises(ConfigError, match=r"water \(2 pixels\)"):
        split(replace(source, labels=labels), "random", ratio=0.99)


def test_a_class_in_one_clump_cannot_be_split_into_blocks(source):
    labels = np.zeros_like(source.labels)
    for k in range(1, 8):
        labels[20:24, 20 + 4 * k:24 + 4 * k] = k
    with pytest.raises(ConfigError, match="one clump"):
        split(replace(source, labels=labels), "blocks", patch_size=13)
