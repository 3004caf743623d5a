"""The semantic-consistency discriminator F: the classifier, and the only part used at test time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.layers import SpatialBranch, SpectralBranch

STAGES = 3


class DiscriminatorStage(nn.Module):
    """w₀·ReLU(BN(spectral(h))) + w₁·ReLU(BN(spatial(h)))."""

    def __init__(self, in_channels: int, out_channels: int, kernel_activation: str, backend: str):
        super().__init__()
        self.spectral = SpectralBranch(in_channels, out_channels, kernel_activation, backend)
        self.spectral_norm = nn.BatchNorm2d(out_channels)
        self.spatial = SpatialBranch(in_channels, out_channels)
        self.spatial_norm = nn.BatchNorm2d(out_channels)

    def forward(self, h: Tensor, weights: Tensor) -> Tensor:
        spectral = functional.relu(self.spectral_norm(self.spectral(h)))
        spatial = functional.relu(self.spatial_norm(self.spatial(h)))
        return weights[0] * spectral + weights[1] * spatial


class Discriminator(nn.Module):
    """Spectral–spatial classifier: [N, B, P, P] -> logits [N, K] (DESIGN section 1).

    Three stages of width d, the branch weights one learnt 2-vector that they share; MaxPool(2); Linear -> d; ReLU;
    Linear -> K.
    """

    def __init__(self, bands: int, n_classes: int, patch_size: int, channels: int = 128, *,
                 kernel_activation: str = "relu", backend: str = "auto"):
        super().__init__()
        widths = [bands] + [channels] * STAGES
        self.stages = nn.ModuleList(DiscriminatorStage(c_in, c_out, kernel_activation, backend)
                                    for c_in, c_out in zip(widths[:-1], widths[1:]))
        self.branch_logits = nn.Parameter(torch.zeros(2))          # softmax gives (½, ½) at the start
        self.fc = nn.Linear(channels * (patch_size // 2) ** 2, channels)
        self.head = nn.Linear(channels, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """[N, B, P, P] -> [N, d]."""
        weights = self.branch_logits.softmax(0)
        h = x
        for stage in self.stages:
            h = stage(h, weights)                                  # [N, d, P, P]
        return functional.relu(self.fc(functional.max_pool2d(h, 2).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
