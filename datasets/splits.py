"""Which labelled source pixels train and which are held out, by seed."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_cdt
from sklearn.model_selection import train_test_split

from datasets.scene import Scene
from model.errors import ConfigError

log = logging.getLogger(__name__)

_BLOCK_SIZES = (32, 24, 16, 12, 8)    # pixels
_TRIES = 12                           # random choices of blocks per size


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


def split_scene(scene: Scene, ratio: float, rule: str, patch_size: int, rng: np.random.Generator) -> Split:
    """Split a scene's labelled pixels; `ratio` of them train.

    rule 'random': stratified by class, as the released code; neighbouring patches overlap across the split.
    rule 'blocks': whole blocks are held out, and training pixels whose patch shares a pixel with a held-out
    patch are dropped (a buffer of patch_size - 1 pixels, twice the patch radius).
    Raises ConfigError for a class with too few pixels.
    """
    counts = scene.class_counts()
    if (counts == 0).any():
        absent = ", ".join(np.array(scene.class_names)[counts == 0])
        raise ConfigError(f"{scene.name} has no labelled pixel of {absent}; nothing can be learnt of it. Remove the "
                          "class from the scene file (and renumber the label map), or label some pixels.")
    if (short := counts < 2).any():
        raise ConfigError(f"{scene.name} has fewer than 2 labelled pixels of "
                          f"{', '.join(np.array(scene.class_names)[short])}; a split needs one for each side.")
    split = _split_random if rule == "random" else _split_blocks
    return split(scene, ratio, patch_size, rng)


def _split_random(scene: Scene, ratio: float, patch_size: int, rng: np.random.Generator) -> Split:
    positions, classes = labelled_pixels(scene.labels)
    index = np.arange(len(classes))
    if min(int(len(index) * ratio), len(index) - int(len(index) * ratio)) < scene.n_classes:
        raise ConfigError(f"A split of {len(index)} labelled pixels at training_sample_ratio {ratio} leaves a side with "
                          f"fewer pixels than classes ({scene.n_classes}).")
    train, val = train_test_split(index, train_size=ratio, stratify=classes,
                                  random_state=int(rng.integers(2 ** 31)))
    missing = sorted(set(range(scene.n_classes)) - (set(classes[train]) & set(classes[val])))
    if missing:
        names = ", ".join(f"{scene.class_names[k]} ({(classes == k).sum()} pixels)" for k in missing)
        raise ConfigError(f"{scene.name}: too few labelled pixels for training_sample_ratio {ratio}: {names}. "
                          "Label more, or choose a ratio nearer to 0.5.")
    train, val = np.sort(train), np.sort(val)
    return Split(positions[train], classes[train], positions[val], classes[val])


def _split_blocks(scene: Scene, ratio: float, patch_size: int, rng: np.random.Generator) -> Split:
    """Of many random choices of blocks, the one whose shares of each class come nearest to the ratio."""
    positions, classes = labelled_pixels(scene.labels)
    total, best, least = np.bincount(classes), None, np.inf
    for size in _BLOCK_SIZES:
        for _ in range(_TRIES):
            held = _hold_blocks(positions, classes, size, 1 - ratio, rng)
            train = ~held & ~_near(scene.shape, positions, held, patch_size - 1)
            shares = [np.bincount(classes[part], minlength=len(total)) / total for part in (train, held)]
            distance = (np.abs(shares[0] / ratio - 1) + np.abs(shares[1] / (1 - ratio) - 1)).mean()
            if min(shares[0].min(), shares[1].min()) > 0 and distance < least:
                best, least = (train, held), distance
    if best is None:
        raise ConfigError(f"{scene.name} cannot be split into disjoint blocks at patch size {patch_size}: some class lies "
                          "in one clump. Use a smaller --patch_size or --split random.")
    train, held = best
    level = logging.WARNING if train.mean() < ratio / 2 else logging.INFO
    log.log(level, "%s in blocks: %.0f %% of the labelled pixels train, %.0f %% are held out, %.0f %% lie between them",
            scene.name, 100 * train.mean(), 100 * held.mean(), 100 * (1 - train.mean() - held.mean()))
    return Split(positions[train], classes[train], positions[held], classes[held])


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
