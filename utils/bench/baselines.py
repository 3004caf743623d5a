"""What the fast paths are measured against beside the reference: the formulations that are usually published.

For main.py bench and its tests only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from model.ops import reference
from model.ops.reference import RADIATION_GAIN, RADIATION_NOISE


def unfold_involution(x: Tensor, kernel: Tensor) -> Tensor:
    """Involution as the sum over an unfolded x, nine times its size.  x [N,C,H,W], kernel [N,G,9,H,W] -> [N,C,H,W].

    The formulation of Li et al. (CVPR 2021) in plain PyTorch; channels left over join the last group.
    """
    n, channels, h, w = x.shape
    full = channels // reference.GROUP_CHANNELS * reference.GROUP_CHANNELS
    shifted = functional.unfold(x, 3, padding=1).view(n, channels, reference.TAPS, h, w)
    parts = [(shifted[:, :full], kernel[:, :full // reference.GROUP_CHANNELS]), (shifted[:, full:], kernel[:, -1:])]
    summed = [(members.unflatten(1, (groups.shape[1], -1)) * groups[:, :, None]).sum(3).flatten(1, 2)
              for members, groups in parts if members.shape[1]]
    return torch.cat(summed, 1)


@contextmanager
def through_unfold() -> Iterator[None]:
    """Inside, backend `reference` computes its involution by `unfold_involution`."""
    own = reference.involution
    reference.involution = unfold_involution
    try:
        yield
    finally:
        reference.involution = own


class PatchDataset(Dataset):
    """A data set as most training code writes it: every sample is cut, flipped, disturbed and converted by itself.

    cube [H, W, B] preprocessed, centres [M, 2], labels [M].  The augmentation is that of datasets/patches.py.
    """

    def __init__(self, cube: np.ndarray, centres: np.ndarray, labels: np.ndarray, patch_size: int, seed: int = 0):
        margin = patch_size // 2
        self.padded = np.pad(cube, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
        self.centres, self.labels, self.size = centres, labels, patch_size
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row, column = self.centres[index]
        patch = self.padded[row:row + self.size, column:column + self.size]              # [P, P, B]
        if self.rng.random() < 0.5:
            patch = patch[:, ::-1] if self.rng.random() < 0.5 else patch
            patch = patch[::-1] if self.rng.random() < 0.5 else patch
        if self.rng.random() < 0.5:
            noise = self.rng.standard_normal(patch.shape, dtype=np.float32)
            patch = np.float32(self.rng.uniform(*RADIATION_GAIN)) * patch + np.float32(RADIATION_NOISE) * noise
        return torch.from_numpy(patch.transpose(2, 0, 1).copy()), torch.tensor(self.labels[index])
