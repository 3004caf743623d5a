"""Patches of a scene that stays on the device: gather, repeat, shuffle, augment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.correction import Correction
from model.ops import cuda, gather_patches, patches_cpu, resolve_backend
from model.ops.reference import RADIATION_GAIN, RADIATION_NOISE, gather_spectra
from model.spectra import PhysicalBranch

MIXTURE_WEIGHT = (0.01, 1.0)     # range of the two weights of the mixture noise, per patch
FUSED = {"cpu": patches_cpu.gather_augmented, "cupy": cuda.gather_augmented}     # gather, flips and noise in one pass


@dataclass(frozen=True)
class Augmentation:
    """Which augmentations are on; each touches a patch with probability one half (docs/data.md, "Augmentation")."""

    flip: bool = True
    radiation: bool = True
    mixture: bool = False


def place(cube: np.ndarray, device: torch.device) -> Tensor:
    """A preprocessed cube [H, W, B] on the device as [B, H, W]; a pixel's bands stay side by side in memory, since
    every gather copies whole spectra."""
    return torch.from_numpy(cube).to(device).permute(2, 0, 1)


def usual_layout(backend: str, device: torch.device) -> torch.memory_format:
    """How patches lie in memory: as the backend's kernels like it best, channels_last for all but the reference."""
    plain = resolve_backend(backend, device) == "reference"
    return torch.contiguous_format if plain else torch.channels_last


class PatchSampler:
    """Patches [N, B, P, P] around labelled pixels of one scene.

    The cube [B, H, W] lies on the device once; an epoch is an index list, and `repeat` repeats the list, never
    the data.  Where there is a scene correction, a sampler for training has the cube before it, too: patches are
    augmented first and corrected then, as a scene is.
    """

    def __init__(self, cube: Tensor, centres: np.ndarray, labels: np.ndarray, patch_size: int, backend: str = "auto",
                 repeat: int = 1, memory_format: torch.memory_format | None = None,
                 before: tuple[Tensor, Correction] | None = None, scales: Sequence[tuple[float, Tensor]] = (),
                 balanced: bool = False, physical: PhysicalBranch | None = None):
        """cube [B, H, W] (see `place`), centres [M, 2] (row, col), labels [M] classes 0..K-1; before: the cube before
        its correction, and the correction; scales: factors of the ground sampling distance, and the cube (before its
        correction) with pixels of that size, of which every patch for training has one; balanced: the classes take
        turns in an epoch; physical: gain and admixture, which every patch for training comes under.

        `memory_format` of the patches: None means `usual_layout`.  Raises ValueError for a centre outside the scene.
        """
        centres, size = np.asarray(centres, np.int64), cube.shape[1:]
        outside = centres[((centres < 0) | (centres >= size)).any(1)]
        if len(outside):
            raise ValueError(f"PatchSampler: centre {tuple(outside[0].tolist())} lies outside the scene of {size[0]} x "
                             f"{size[1]} pixels.")
        self.cube, self.patch_size, self.backend = cube, patch_size, backend
        self.repeat, self.balanced, self.physical = repeat, balanced, physical
        self.uncorrected, self.correction = before or (cube, None)
        self.scales = scales or [(1.0, self.uncorrected)]
        self.memory_format = memory_format or usual_layout(backend, cube.device)
        self.centres = torch.from_numpy(centres).to(cube.device)                         # [M, 2]
        self.labels = torch.from_numpy(np.asarray(labels, np.int64)).to(cube.device)     # [M]
        self._by_class = torch.argsort(self.labels, stable=True)                         # [M], grouped by class
        self._class_count = torch.bincount(self.labels)
        self._class_start = self._class_count.cumsum(0) - self._class_count

    def __len__(self) -> int:
        return len(self.labels)

    def class_counts(self, n_classes: int) -> list[int]:
        """[K] samples of each class."""
        return torch.bincount(self.labels, minlength=n_classes).tolist()

    def epoch_length(self, batch_size: int) -> int:
        """Batches of one epoch, the last smaller one included."""
        return -(-len(self) * self.repeat // batch_size)

    def patches(self, index: Tensor) -> Tensor:
        """[N] sample numbers -> [N, B, P, P]."""
        return self._gather(self.cube, index)

    def _gather(self, cube: Tensor, index: Tensor) -> Tensor:
        centres = self.centres[index]
        if not self._channels_last:
            return gather_patches(cube, centres, self.patch_size, backend=self.backend)
        if resolve_backend(self.backend, cube.device) == "cupy":
            return cuda.gather_patches(cube, centres, self.patch_size, channels_last=True)
        offsets = torch.arange(self.patch_size, device=centres.device) - self.patch_size // 2                   # [P]
        return gather_spectra(cube, centres[:, :1] + offsets, centres[:, 1:] + offsets).permute(0, 3, 1, 2)

    @property
    def _channels_last(self) -> bool:
        return self.memory_format == torch.channels_last

    def in_order(self, batch_size: int, most: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples once (or `most` of them, evenly spread), in order, untouched: (x [N, B, P, P], y [N])."""
        step = 1 if most is None else -(-len(self) // most)
        for index in torch.arange(0, len(self), step, device=self.labels.device).split(batch_size):
            yield self.patches(index), self.labels[index]

    def batches(self, batch_size: int, order: torch.Generator, noise: torch.Generator,
                augmentation: Augmentation) -> Iterator[tuple[Tensor, Tensor]]:
        """One shuffled, augmented epoch over the (repeated) index list, or as many samples of balanced classes.

        `order` is a CPU generator, `noise` one on the cube's device.
        """
        n = len(self) * self.repeat
        shuffled = self._in_turns(n, order) if self.balanced else torch.randperm(n, generator=order) % len(self)
        for index in shuffled.to(self.labels.device).split(batch_size):
            yield self._augmented(index, noise, augmentation), self.labels[index]

    def _in_turns(self, n: int, order: torch.Generator) -> Tensor:
        """[n] sample numbers in which the classes take turns, in another order every round; the samples of a class are
        used up, in random order, before one comes again."""
        counts = self._class_count[self._class_count > 0].tolist()
        turns = torch.rand(-(-n // len(counts)), len(counts), generator=order).argsort(1).flatten()[:n]
        index = torch.empty(n, dtype=torch.int64)
        for k, members in enumerate(self._by_class.cpu().split(counts)):
            places = (turns == k).nonzero().flatten()
            rounds = torch.rand(-(-len(places) // len(members)), len(members), generator=order).argsort(1)
            index[places] = members[rounds.flatten()[:len(places)]]
        return index

    def draw(self, n: int, rng: torch.Generator, augmentation: Augmentation) -> Tensor:
        """n augmented samples, drawn with replacement: [n, B, P, P].  The generator is one on the cube's device."""
        index = torch.randint(len(self), (n,), generator=rng, device=self.labels.device)
        return self._augmented(index, rng, augmentation)

    def _augmented(self, index: Tensor, rng: torch.Generator, augmentation: Augmentation) -> Tensor:
        """The augmented patches of [N] sample numbers."""
        fused = FUSED.get(resolve_backend(self.backend, self.cube.device))
        rescaled = len(self.scales) > 1
        if not (augmentation.flip or augmentation.radiation or rescaled):
            x = self._gather(self.uncorrected, index)
        elif fused and not rescaled:
            seed = torch.empty(1, dtype=torch.int64, device=self.cube.device).random_(-2 ** 63, None, generator=rng)
            x = fused(self.uncorrected, self.centres[index], self.patch_size, seed, flip=augmentation.flip,
                      radiation=augmentation.radiation, channels_last=self._channels_last)
        else:
            x = self._step_by_step(self.centres[index], rng, augmentation)
        if augmentation.mixture:
            labels = self.labels[index]
            pick = torch.rand(len(index), generator=rng, device=x.device) * self._class_count[labels]
            partner = self._by_class[self._class_start[labels] + pick.long()]
            x = mixture_noise(x, self._gather(self.uncorrected, partner), rng)
        if self.physical is not None:
            x = self.physical(x, *self.physical.draw(*x.shape[:2], rng))
        return x if self.correction is None else self.correction.training(x, rng)

    def _step_by_step(self, centres: Tensor, rng: torch.Generator, augmentation: Augmentation) -> Tensor:
        """Flipped and noisy patches in plain PyTorch.  Flips cost nothing, as the order in which pixels are read."""
        turn = flips(len(centres), rng) if augmentation.flip else centres.new_ones(len(centres), 2)
        offsets = torch.arange(self.patch_size, device=centres.device) - self.patch_size // 2                   # [P]
        picked = torch.randint(len(self.scales), (len(centres),), generator=rng, device=centres.device) \
            if len(self.scales) > 1 else torch.zeros_like(centres[:, 0])
        x = self.cube.new_empty(len(centres), len(offsets), len(offsets), len(self.cube))                 # [N, P, P, B]
        for number, (factor, cube) in enumerate(self.scales):
            mine = (picked == number).nonzero().flatten()
            places = centres[mine, :, None] + turn[mine, :, None] * (factor * offsets).round().long()        # [n, 2, P]
            x[mine] = gather_spectra(cube, places[:, 0], places[:, 1])
        if augmentation.radiation:
            x = radiation_noise(x, rng)
        return x.permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format)


def _uniform(n: int, rng: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """[n, 1, 1, 1] uniform numbers."""
    return torch.rand(n, 1, 1, 1, generator=rng, device=rng.device).mul_(high - low).add_(low)


def flips(n: int, rng: torch.Generator) -> Tensor:
    """[n, 2] directions in which rows and columns are read, 1 or -1: half the patches are flipped, upside down and left
    to right, each with probability one half."""
    coins = torch.rand(n, 3, generator=rng, device=rng.device) < 0.5
    return 1 - 2 * (coins[:, :1] & coins[:, 1:]).long()


def radiation_noise(x: Tensor, rng: torch.Generator) -> Tensor:
    """Half the patches [N, P, P, B] become, in place, alpha·x + n/25, alpha ~ U(0.9, 1.1) per patch, n ~ N(0, 1) per
    value."""
    touched = (torch.rand(len(x), generator=rng, device=rng.device) < 0.5).nonzero().flatten()
    gain = _uniform(len(touched), rng, *RADIATION_GAIN)
    noise = torch.randn(len(touched), *x.shape[1:], generator=rng, device=rng.device)
    return x.index_copy_(0, touched, noise.mul_(RADIATION_NOISE).addcmul_(x.index_select(0, touched), gain))


def mixture_noise(x: Tensor, partner: Tensor, rng: torch.Generator) -> Tensor:
    """Half the patches become (a·x + b·x')/(a + b) + n/25, x' another patch of the same class, a, b ~ U(0.01, 1)."""
    a, b = (_uniform(len(x), rng, *MIXTURE_WEIGHT) for _ in range(2))
    noise = torch.randn(x.permute(0, 2, 3, 1).shape, generator=rng, device=rng.device).permute(0, 3, 1, 2)
    mixed = ((a * x + b * partner) / (a + b)).add_(noise, alpha=RADIATION_NOISE)
    return torch.where(_uniform(len(x), rng) < 0.5, mixed, x)


def source_repeat(n_source: int, n_target: int | None, ratio: float, re_ratio: int) -> int:
    """How often the source's index list is repeated: `re_ratio` times where ratio·re_ratio·N_source/N_target < 1,
    as the released code decides, and where no labelled target pixel is known; else once.

    Under a protocol that counts them, their number is the only thing that training takes from a target.
    """
    return re_ratio if not n_target or ratio * re_ratio * n_source / n_target < 1 else 1
