"""The semantic-consistency discriminator F: the classifier, and the only part used at test time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.layers import SpatialBranch, SpectralBranch, norm_relu_sum

STAGES = 3


class DiscriminatorStage(nn.Module):
    """w₀·ReLU(BN(spectral(h))) + w₁·ReLU(BN(spatial(h)))."""

    def __init__(self, in_channels: int, out_channels: int, kernel_activation: str, backend: str):
        super().__init__()
        self.spectral = SpectralBranch(in_channels, out_channels, kernel_activation, backend)
        self.spectral_norm = nn.BatchNorm2d(out_channels)
        self.spatial = SpatialBranch(in_channels, out_channels, backend)
        self.spatial_norm = nn.BatchNorm2d(out_channels)
        self.backend = backend

    def forward(self, h: Tensor, weights: Tensor, domains: int = 1) -> Tensor:
        return norm_relu_sum([self.spectral(h, domains), self.spatial(h)], [self.spectral_norm, self.spatial_norm],
                             weights, self.backend, domains)


class Discriminator(nn.Module):
    """Spectral–spatial classifier: [N, B, P, P] -> logits [N, K] (docs/method.md, "Discriminator").

    Three stages of width d, the branch weights one learnt 2-vector that they share; MaxPool(2); Linear -> d; ReLU;
    Linear -> K.  In training a batch may hold several domains, equal parts one after the other, each with BatchNorm
    statistics of its own: what a call for each would give.  Precision 'bf16' computes all but the last layer in
    bfloat16, by autocast; BatchNorm sums in float32.

    scannable   of a class that says so itself: a scan of a scene (model/scan) gives its logits, which are `last_layers`
                on the features behind `fc`; not inherited, since a subclass may do something else in between
    """

    scannable = True

    def __init__(self, bands: int, n_classes: int, patch_size: int, channels: int = 128, *,
                 kernel_activation: str = "relu", backend: str = "auto", precision: str = "float32"):
        super().__init__()
        self.low_precision = precision == "bf16"
        widths = [bands] + [channels] * STAGES
        self.stages = nn.ModuleList(DiscriminatorStage(c_in, c_out, kernel_activation, backend)
                                    for c_in, c_out in zip(widths[:-1], widths[1:]))
        self.branch_logits = nn.Parameter(torch.zeros(2))          # softmax gives (½, ½) at the start
        self.fc = nn.Linear(channels * (patch_size // 2) ** 2, channels)
        self.head = nn.Linear(channels, n_classes)

    def features(self, x: Tensor, domains: int = 1) -> Tensor:
        """[N, B, P, P] -> [N, d]."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.low_precision):
            weights = self.branch_logits.softmax(0)
            h = x
            for stage in self.stages:
                h = stage(h, weights, domains)                     # [N, d, P, P]
            return functional.relu(self._linear(functional.max_pool2d(h, 2))).to(x.dtype)

    def _linear(self, pooled: Tensor) -> Tensor:
        """fc on [N, d, p, p]; where the channels lie innermost, its weights are reordered in place of the images."""
        if not pooled.is_contiguous(memory_format=torch.channels_last):
            return self.fc(pooled.flatten(1))
        weight = self.fc.weight.view(-1, *pooled.shape[1:]).permute(0, 2, 3, 1).flatten(1)
        return functional.linear(pooled.permute(0, 2, 3, 1).flatten(1), weight, self.fc.bias)

    def forward(self, x: Tensor, domains: int = 1) -> Tensor:
        return self.head(self.features(x, domains))

    def last_layers(self) -> list[nn.Linear]:
        """What makes logits of the features, leaky ReLUs between them."""
        return [self.head]

    def run_stages(self, h: Tensor, stages: Iterable[DiscriminatorStage]) -> Tensor:
        """Some of the stages on their input, for methods that work between them: [N, C, P, P] -> [N, d, P, P], in the
        classifier's precision; what goes out has the type of what comes in."""
        given = h.dtype
        with torch.autocast(h.device.type, torch.bfloat16, enabled=self.low_precision):
            weights = self.branch_logits.softmax(0)
            for stage in stages:
                h = stage(h, weights)
            return h.to(given)

    def read_out(self, h: Tensor) -> Tensor:
        """What lies behind the stages: [N, d, P, P] -> logits [N, K]."""
        with torch.autocast(h.device.type, torch.bfloat16, enabled=self.low_precision):
            features = functional.relu(self.fc(functional.max_pool2d(h, 2).flatten(1)))
        return self.head(features.to(h.dtype))
