"""Patches of a scene that stays on the device: gather, repeat, shuffle, augment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.ops import gather_patches

RADIATION_GAIN = (0.9, 1.1)      # alpha of the radiation noise, per patch
RADIATION_NOISE = 1 / 25         # standard deviation of its additive part, per value
MIXTURE_WEIGHT = (0.01, 1.0)     # range of the two weights of the mixture noise, per patch


@dataclass(frozen=True)
class Augmentation:
    """Which augmentations are on; each touches a patch with probability one half (DESIGN section 2)."""

    flip: bool = True
    radiation: bool = True
    mixture: bool = False


def place(cube: np.ndarray, device: torch.device) -> Tensor:
    """A preprocessed cube [H, W, B] on the device as [B, H, W].

    In memory it is laid out as the gather reads it fastest: band by band on a GPU, where neighbouring threads copy
    neighbouring pixels, pixel by pixel on a CPU, which copies whole spectra.
    """
    placed = torch.from_numpy(cube).to(device).permute(2, 0, 1)
    return placed.contiguous() if device.type == "cuda" else placed


class PatchSampler:
    """Patches [N, B, P, P] around labelled pixels of one scene.

    The cube [B, H, W] lies on the device once; an epoch is an index list, and `repeat` repeats the list, never
    the data.
    """

    def __init__(self, cube: Tensor, centres: np.ndarray, labels: np.ndarray, patch_size: int,
                 backend: str = "auto", repeat: int = 1):
        """cube [B, H, W] (see `place`), centres [M, 2] (row, col), labels [M] classes 0..K-1."""
        self.cube, self.patch_size, self.backend, self.repeat = cube, patch_size, backend, repeat
        self.centres = torch.from_numpy(np.asarray(centres, np.int64)).to(cube.device)   # [M, 2]
        self.labels = torch.from_numpy(np.asarray(labels, np.int64)).to(cube.device)     # [M]
        self._by_class = torch.argsort(self.labels, stable=True)                         # [M], grouped by class
        self._class_count = torch.bincount(self.labels)
        self._class_start = self._class_count.cumsum(0) - self._class_count

    def __len__(self) -> int:
        return len(self.labels)

    def epoch_length(self, batch_size: int) -> int:
        """Batches of one epoch, the last smaller one included."""
        return -(-len(self) * self.repeat // batch_size)

    def patches(self, index: Tensor) -> Tensor:
        """[N] sample numbers -> [N, B, P, P]."""
        return gather_patches(self.cube, self.centres[index], self.patch_size, backend=self.backend)

    def in_order(self, batch_size: int, most: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples once (or `most` of them, evenly spread), in order, untouched: (x [N, B, P, P], y [N])."""
        step = 1 if most is None else -(-len(self) // most)
        for index in torch.arange(0, len(self), step, device=self.labels.device).split(batch_size):
            yield self.patches(index), self.labels[index]

    def batches(self, batch_size: int, order: torch.Generator, noise: torch.Generator,
                augmentation: Augmentation) -> Iterator[tuple[Tensor, Tensor]]:
        """One shuffled, augmented epoch over the (repeated) index list.

        `order` is a CPU generator, `noise` one on the cube's device.
        """
        device = self.labels.device
        shuffled = (torch.randperm(len(self) * self.repeat, generator=order) % len(self)).to(device)
        for index in shuffled.split(batch_size):
            yield self._augment(self.patches(index), index, noise, augmentation), self.labels[index]

    def _augment(self, x: Tensor, index: Tensor, rng: torch.Generator, augmentation: Augmentation) -> Tensor:
        if augmentation.flip:
            x = flip(x, rng)
        if augmentation.radiation:
            x = radiation_noise(x, rng)
        if augmentation.mixture:
            labels = self.labels[index]
            pick = torch.rand(len(index), generator=rng, device=x.device) * self._class_count[labels]
            partner = self._by_class[self._class_start[labels] + pick.long()]
            x = mixture_noise(x, self.patches(partner), rng)
        return x


def _uniform(n: int, rng: torch.Generator, like: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """[n, 1, 1, 1] uniform numbers."""
    return torch.rand(n, 1, 1, 1, generator=rng, device=like.device).mul_(high - low).add_(low)


def _coin(n: int, rng: torch.Generator, like: Tensor) -> Tensor:
    """[n, 1, 1, 1] booleans, each true with probability one half."""
    return _uniform(n, rng, like) < 0.5


def flip(x: Tensor, rng: torch.Generator) -> Tensor:
    """Half the patches [N, B, P, P] are flipped: horizontally and vertically, each with probability one half."""
    touched = _coin(len(x), rng, x)
    x = torch.where(touched & _coin(len(x), rng, x), x.flip(3), x)
    return torch.where(touched & _coin(len(x), rng, x), x.flip(2), x)


def radiation_noise(x: Tensor, rng: torch.Generator) -> Tensor:
    """Half the patches become alpha·x + n/25, alpha ~ U(0.9, 1.1) per patch, n ~ N(0, 1) per value."""
    gain = _uniform(len(x), rng, x, *RADIATION_GAIN)
    noise = torch.randn(x.shape, generator=rng, device=x.device)
    return torch.where(_coin(len(x), rng, x), gain * x + RADIATION_NOISE * noise, x)


def mixture_noise(x: Tensor, partner: Tensor, rng: torch.Generator) -> Tensor:
    """Half the patches become (a·x + b·x')/(a + b) + n/25 with x' another patch of the same class, a, b ~ U(0.01, 1)."""
    a, b = (_uniform(len(x), rng, x, *MIXTURE_WEIGHT) for _ in range(2))
    noise = torch.randn(x.shape, generator=rng, device=x.device)
    return torch.where(_coin(len(x), rng, x), (a * x + b * partner) / (a + b) + RADIATION_NOISE * noise, x)


def source_repeat(n_source: int, n_target: int | None, ratio: float, re_ratio: int) -> int:
    """How often the source's index list is repeated: `re_ratio` times where ratio·re_ratio·N_source/N_target < 1,
    as the released code decides, and where the target is unknown; else once.

    The number of labelled target pixels is the only thing that training takes from a target.
    """
    return re_ratio if not n_target or ratio * re_ratio * n_source / n_target < 1 else 1
