"""Splits: by seed, stratified, or spatially disjoint."""

import hashlib
import logging
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree
from sklearn.model_selection import train_test_split

from datasets.scene import Scene
from datasets.simulator.simulate import simulate_pair
from datasets.splits import _hold_blocks, split_halves, split_scene
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


def small(labels: np.ndarray) -> Scene:
    return Scene("small", np.zeros((*labels.shape, 1), np.float32), labels, tuple("abcdefg"[:labels.max()]))


def squares(classes: int = 3, side: int = 4, seed: int = 0) -> Scene:
    """A scene of 36×48 pixels in squares of one class each, the last one rare, some without a label."""
    labels = np.random.default_rng(seed).integers(classes, size=(36 // side, 48 // side))
    labels[0, ::4] = labels[-1, 1] = classes
    return small(labels.repeat(side, 0).repeat(side, 1))


RECORDED = {                      # rule, seed, side of the squares -> digest
    ("released", 0, 4): "7e121346a96f",
    ("random", 0, 4): "518069b63b05", ("random", 1, 4): "58cdc69724c7", ("blocks", 0, 4): "c51f8fa3707f",
    ("blocks", 1, 6): "0c6e88a90b6f", ("blocks", 2, 9): "497149db6623", ("blocks", 1, 12): "219d15300331",
    ("blocks", 2, 12): "61e67c7b55fb"}


@pytest.mark.parametrize("rule, seed, side", RECORDED)
def test_the_split_of_a_seed_stays_what_it_was(rule, seed, side):
    """Runs name their split by its seed alone."""
    parts = split(squares(seed=seed, side=side), rule, seed, ratio=0.7, patch_size=3)
    whole = b"".join(np.column_stack([positions, labels]).astype("<i8").tobytes() for positions, labels in (
        (parts.train, parts.train_labels), (parts.val, parts.val_labels)))
    assert hashlib.sha256(whole).hexdigest()[:12] == RECORDED[rule, seed, side]


def test_the_released_split_is_one_for_all_seeds():
    """scikit-learn's by state 23, over the labelled pixels in row order."""
    scene = squares()
    first, other = (split(scene, "released", seed) for seed in (0, 1))
    positions = np.argwhere(scene.labels)
    train, _ = train_test_split(positions, train_size=0.8, stratify=scene.labels[scene.labels > 0], random_state=23)
    assert {tuple(p) for p in first.train} == {tuple(p) for p in train}
    assert np.array_equal(first.train, other.train) and np.array_equal(first.val, other.val)


@pytest.mark.parametrize("rule", ["random", "released", "blocks"])
def test_at_ratio_1_all_labelled_pixels_train(rule):
    scene = small(np.array([[0, 1, 2], [3, 0, 2]]))                               # one pixel of a class is enough
    parts = split(scene, rule, ratio=1.0)
    assert parts.train.tolist() == np.argwhere(scene.labels).tolist() and parts.train_labels.tolist() == [0, 1, 2, 1]
    assert parts.val.shape == (0, 2) and parts.val_labels.shape == (0,)


def held_of(blocks: list[tuple[int, ...]], share: float, seed: int) -> tuple[int, ...]:
    """Which blocks are held out, of so many pixels of each class.  Each block is one place, so nothing is random but
    the order of the blocks."""
    place = np.repeat(np.arange(len(blocks)), [sum(counts) for counts in blocks])
    classes = np.concatenate([np.repeat(np.arange(len(counts)), counts) for counts in blocks])
    held = _hold_blocks(np.stack([place, place], 1), classes, 1, share, np.random.default_rng(seed))
    return tuple(np.unique(place[held]).tolist())


def test_blocks_are_held_until_each_class_has_its_share_and_none_half_as_much_again():
    """Of 12 or 13 pixels of the second class, half are wanted, and 10 or 10.75 at most allowed."""
    assert {held_of([(2, 10), (2, 0), (0, 2)], 0.5, seed) for seed in range(20)} == {(0,), (0, 1), (1, 2)}
    assert {held_of([(2, 11), (2, 0), (0, 2)], 0.5, seed) for seed in range(20)} == {(1, 2)}
    assert {held_of([(9,), (4,)], 0.1, seed) for seed in range(5)} == {(1,)}    # the smallest where all are too large


def test_a_split_into_blocks_says_what_it_leaves_out(caplog):
    parts = split(squares(), "blocks", ratio=0.7, patch_size=3)
    train, val = (100 * len(part) / (squares().labels > 0).sum() for part in (parts.train, parts.val))
    told = caplog.records[-1]
    assert told.levelno == logging.INFO and told.getMessage() == (
        f"small in blocks: {train:.0f} % of the labelled pixels train, {val:.0f} % are held out, "
        f"{100 - train - val:.0f} % lie between them")
    for patch_size, level in ((11, logging.INFO), (13, logging.WARNING)):       # 27 and 22 % of the pixels train
        split(squares(), "blocks", ratio=0.5, patch_size=patch_size)
        assert caplog.records[-1].levelno == level


def test_every_part_of_a_random_split_holds_a_pixel_of_every_class():
    labels = np.zeros((4, 7), np.int64)
    labels[:2] = np.arange(1, 8)                                                  # two pixels of each of seven classes
    parts = split(small(labels), "random", ratio=0.5)
    assert sorted(parts.train_labels) == sorted(parts.val_labels) == list(range(7))
    for ratio in (0.45, 0.6):
        with pytest.raises(ConfigError, match=f"14 labelled pixels at training_sample_ratio {ratio} .* classes .7."):
            split(small(labels), "random", ratio=ratio)


def test_every_class_with_too_few_pixels_is_named():
    labels = np.ones((20, 20), np.int64)
    labels[0, :4] = 2, 2, 3, 3
    with pytest.raises(ConfigError, match=r"ratio 0.98: b \(2 pixels\), c \(2 pixels\)\. Label more"):
        split(small(labels), "random", ratio=0.98)


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


@pytest.mark.parametrize("patch_size", [5, 13])
def test_halves_are_apart_and_hold_every_class_that_is_there(source, patch_size):
    labels = source.labels * (source.labels != 4)
    scene = replace(source, labels=labels)
    first, second = split_halves(scene, patch_size, np.random.default_rng(0))
    distances, _ = cKDTree(np.argwhere(first.labels)).query(np.argwhere(second.labels), p=np.inf)
    assert distances.min() >= patch_size                # no pixel is in patches of both
    for half in (first, second):
        assert np.array_equal(half.labels, labels * (half.labels > 0)) and half.cube is source.cube
        share = half.class_counts()[[0, 1, 2, 4, 5, 6]] / scene.class_counts()[[0, 1, 2, 4, 5, 6]]
        assert half.class_counts()[3] == 0 and share.min() > (0.3 if patch_size == 5 else 0.15) and share.max() < 0.75
    again, other = (split_halves(scene, patch_size, np.random.default_rng(seed))[1] for seed in (0, 1))
    assert np.array_equal(again.labels, second.labels) and not np.array_equal(other.labels, second.labels)
    with pytest.raises(ConfigError, match="no labelled pixel to train on"):
        split_halves(replace(source, labels=labels * 0), patch_size, np.random.default_rng(0))


@pytest.mark.parametrize("rule", ["random", "blocks"])
def test_classes_that_are_not_there_are_left_out_where_that_is_asked_for(source, rule):
    """The split is that of the scene whose other classes have the numbers below."""
    lacking = replace(source, labels=source.labels * (source.labels != 4))
    closed = replace(source, labels=lacking.labels - (lacking.labels > 4),
                     class_names=source.class_names[:3] + source.class_names[4:])
    found, expected = (split_scene(scene, 0.8, rule, 7, np.random.default_rng(0), complete=False)
                       for scene in (lacking, closed))
    for part in ("train", "val"):
        assert np.array_equal(getattr(found, part), getattr(expected, part))
        labels = getattr(found, f"{part}_labels")
        assert np.array_equal(labels - (labels > 3), getattr(expected, f"{part}_labels")) and 3 not in labels


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


def test_a_number_of_pixels_of_each_class_trains(scenes):
    scene, others = scenes[0], scenes[0].class_counts() - 5
    split, again, other = (split_scene(scene, 0.8, "random", 5, np.random.default_rng(seed), per_class=5)
                           for seed in (0, 0, 1))
    assert (np.bincount(split.train_labels) == 5).all() and (np.bincount(split.val_labels) == others).all()
    together = np.concatenate([split.train, split.val])
    assert len(np.unique(together, axis=0)) == len(together) == (scene.labels > 0).sum()
    assert (scene.labels[tuple(split.train.T)] == split.train_labels + 1).all()
    np.testing.assert_array_equal(split.train, again.train)
    assert not np.array_equal(split.train, other.train)
    fewest = int(scene.class_counts().min())
    with pytest.raises(ConfigError, match=f"too few labelled pixels for {fewest} .*--samples_per_class"):
        split_scene(scene, 0.8, "random", 5, np.random.default_rng(0), per_class=fewest)
