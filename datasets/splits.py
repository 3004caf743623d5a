"""Which labelled pixels train and which are held out, by seed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import distance_transform_cdt
from sklearn.model_selection import train_test_split

from datasets.scene import Scene
from model.errors import ConfigError

log = logging.getLogger(__name__)

_BLOCK_SIZES = (32, 24, 16, 12, 8)    # pixels
_HALF_SIZES = (128, 96, 64, 48, *_BLOCK_SIZES)        # of halves, between which large blocks lose fewer pixels
_TRIES = 12                           # random choices of blocks per size
_RELEASED_STATE = 23                  # of the released code's split


@dataclass(frozen=True)
class Split:
    """Pixel positions (row, col) [N, 2] int64 and classes 0..K-1 [N] of the training and the validation part."""

    train: np.ndarray
    train_labels: np.ndarray
    val: np.ndarray
    val_labels: np.ndarray


def labelled_pixels(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label map [H, W] (0 = unlabelled) -> positions [N, 2] and classes 0..K-1 [N], in row order."""
    positions = np.argwhere(labels > 0)
    return positions, labels[labels > 0] - 1


def split_scene(scene: Scene, ratio: float, rule: str, patch_size: int, rng: np.random.Generator,
                complete: bool = True, per_class: int = 0) -> Split:
    """Split a scene's labelled pixels; `ratio` of them train, at 1 all of them by any rule.

    per_class: above 0, so many pixels of each class train, drawn at random, in place of rule and ratio.

    rule 'random': stratified by class; neighbouring patches overlap across the split.
    rule 'released': the same by the released code's state, whatever `rng` holds.
    rule 'blocks': whole blocks are held out, and training pixels whose patch shares a pixel with a held-out
    patch are dropped (a buffer of patch_size - 1 pixels, twice the patch radius).
    complete: every class must have labelled pixels; else those without any are left out.
    Raises ConfigError for a class with too few pixels.
    """
    counts = scene.class_counts()
    if complete and (counts == 0).any():
        absent = ", ".join(np.array(scene.class_names)[counts == 0])
        raise ConfigError(f"{scene.name} has no labelled pixel of {absent}; nothing can be learnt of it. Remove the "
                          "class from the scene file (and renumber the label map), or label some pixels.")
    if per_class:
        return _split_counted(scene, per_class, rng)
    if ratio == 1:
        positions, labels = labelled_pixels(scene.labels)
        return Split(positions, labels, positions[:0], labels[:0])
    if (short := counts == 1).any():
        raise ConfigError(f"{scene.name} has fewer than 2 labelled pixels of "
                          f"{', '.join(np.array(scene.class_names)[short])}; a split needs one for each side.")
    if rule != "blocks":
        return _split_stratified(scene, ratio, _RELEASED_STATE if rule == "released" else int(rng.integers(2 ** 31)))
    if (split := _split_blocks(scene, ratio, patch_size, rng)) is None:
        raise ConfigError(f"{scene.name} cannot be split into disjoint blocks at patch size {patch_size}: some class "
                          "lies in one clump. Use a smaller --patch_size or --split random.")
    return split


def split_halves(scene: Scene, patch_size: int, rng: np.random.Generator) -> tuple[Scene, Scene]:
    """The scene twice, with about half of its labels each: those of spatially disjoint blocks, so far apart that no
    pixel is in patches of both.  Classes that the scene has are in both.  Raises ConfigError if that cannot be."""
    if len(labelled_pixels(scene.labels)[0]) == 0:
        raise ConfigError(f"{scene.name} has no labelled pixel to train on.")
    split = _split_blocks(scene, 0.5, patch_size, rng, _HALF_SIZES, fewest=2)
    if split is None:
        raise ConfigError(f"{scene.name} has no two disjoint halves with every class at patch size {patch_size}: some "
                          "class lies in one clump. Use a smaller --patch_size, or leave --ceiling out.")
    halves = []
    for positions in (split.train, split.val):
        labels = np.zeros_like(scene.labels)
        labels[tuple(positions.T)] = scene.labels[tuple(positions.T)]
        halves.append(replace(scene, labels=labels))
    return halves[0], halves[1]


def _split_stratified(scene: Scene, ratio: float, state: int) -> Split:
    positions, labels = labelled_pixels(scene.labels)
    present, classes = np.unique(labels, return_inverse=True)
    index = np.arange(len(classes))
    if min(int(len(index) * ratio), len(index) - int(len(index) * ratio)) < len(present):
        raise ConfigError(f"A split of {len(index)} labelled pixels at training_sample_ratio {ratio} leaves a side with "
                          f"fewer pixels than classes ({len(present)}).")
    train, val = train_test_split(index, train_size=ratio, stratify=classes, random_state=state)
    missing = sorted(set(range(len(present))) - (set(classes[train]) & set(classes[val])))
    if missing:
        names = ", ".join(f"{scene.class_names[present[k]]} ({(classes == k).sum()} pixels)" for k in missing)
        raise ConfigError(f"{scene.name}: too few labelled pixels for training_sample_ratio {ratio}: {names}. "
                          "Label more, or choose a ratio nearer to 0.5.")
    train, val = np.sort(train), np.sort(val)
    return Split(positions[train], labels[train], positions[val], labels[val])


def _split_counted(scene: Scene, per_class: int, rng: np.random.Generator) -> Split:
    """So many pixels of each class train, the others are held out."""
    positions, labels = labelled_pixels(scene.labels)
    counts = scene.class_counts()
    if few := [f"{name} ({count})" for name, count in zip(scene.class_names, counts) if 0 < count <= per_class]:
        raise ConfigError(f"{scene.name} has too few labelled pixels for {per_class} training pixels of each class and one "
                          f"held out: {', '.join(few)}. Choose a smaller --samples_per_class.")
    chosen = [rng.permutation(np.flatnonzero(labels == k))[:per_class] for k in np.flatnonzero(counts)]
    train = np.isin(np.arange(len(labels)), np.concatenate(chosen))
    return Split(positions[train], labels[train], positions[~train], labels[~train])


def _split_blocks(scene: Scene, ratio: float, patch_size: int, rng: np.random.Generator,
                  sizes: Sequence[int] = _BLOCK_SIZES, fewest: int = 1) -> Split | None:
    """Of many random choices of blocks, the one whose shares of each class come nearest to the ratio; None where none
    leaves so many pixels of each class to train on, and one to hold out."""
    positions, labels = labelled_pixels(scene.labels)
    _, classes = np.unique(labels, return_inverse=True)                      # of those that are there
    total, best, least = np.bincount(classes), None, np.inf
    for size in sizes:
        for _ in range(_TRIES):
            held = _hold_blocks(positions, classes, size, 1 - ratio, rng)
            train = ~held & ~_near(scene.shape, positions, held, patch_size - 1)
            counts = [np.bincount(classes[part], minlength=len(total)) for part in (train, held)]
            shares = [count / total for count in counts]
            distance = (np.abs(shares[0] / ratio - 1) + np.abs(shares[1] / (1 - ratio) - 1)).mean()
            if counts[0].min() >= fewest and counts[1].min() > 0 and distance < least:
                best, least = (train, held), distance
    if best is None:
        return None
    train, held = best
    level = logging.WARNING if train.mean() < ratio / 2 else logging.INFO
    log.log(level, "%s in blocks: %.0f %% of the labelled pixels train, %.0f %% are held out, %.0f %% lie between them",
            scene.name, 100 * train.mean(), 100 * held.mean(), 100 * (1 - train.mean() - held.mean()))
    return Split(positions[train], labels[train], positions[held], labels[held])


def _hold_blocks(positions: np.ndarray, classes: np.ndarray, size: int, share: float,
                 rng: np.random.Generator) -> np.ndarray:
    """Boolean mask of held-out pixels: random whole blocks until every class, the rarest first, has about its share."""
    offset = rng.integers(size, size=2)
    row, col = ((positions + offset) // size).T
    blocks, block = np.unique(row * (col.max() + 1) + col, return_inverse=True)
    counts = np.zeros((len(blocks), classes.max() + 1), np.int64)
    np.add.at(counts, (block, classes), 1)
    total, held = counts.sum(0), np.zeros(len(blocks), bool)
    for k in np.argsort(total, kind="stable"):
        holders = rng.permutation(np.flatnonzero(counts[:, k]))
        for b in holders:
            have = counts[held].sum(0)
            if have[k] >= share * total[k]:
                break
            if not held[b] and (have + counts[b] <= 1.5 * share * total + 1).all():
                held[b] = True
        if not counts[held, k].any():
            held[holders[np.argmin(counts[holders, k])]] = True
    return held[block]


def _near(shape: tuple[int, int], positions: np.ndarray, held: np.ndarray, distance: int) -> np.ndarray:
    """Which pixels lie within `distance` pixels (chessboard) of a held-out one."""
    free = np.ones(shape, bool)
    free[tuple(positions[held].T)] = False
    return distance_transform_cdt(free, metric="chessboard")[tuple(positions.T)] <= distance
