"""The spectral–spatial domain-generation network, S²DGN (docs/method.md, "Generators")."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.layers import AdaIN, SpatialBranch, SpectralBranch, styled

STAGES = 3
NOISE_DIM = 2
LEAK = 0.01
IDENTITY_LOGITS = (1.5, -1.5)      # of the output's two weights: 0.95 and 0.05 near the start


class GeneratorStage(nn.Module):
    """spectral(h) + spatial(h); a branch that is switched off is not built."""

    def __init__(self, in_channels: int, out_channels: int, spectral: bool, spatial: bool, kernel_activation: str,
                 backend: str):
        super().__init__()
        self.spectral = SpectralBranch(in_channels, out_channels, kernel_activation, backend) if spectral else None
        self.spatial = SpatialBranch(in_channels, out_channels, backend) if spatial else None

    def forward(self, h: Tensor) -> Tensor:
        first, *others = (branch(h) for branch in (self.spectral, self.spatial) if branch is not None)
        return sum(others, first)


class Generator(nn.Module):
    """S²DGN: [N, B, P, P] and noise [3, N, 2] -> a generated domain [N, B, P, P].

    norm 'adain': AdaIN per stage (paper).  'adain_bn': AdaIN, then BatchNorm, one object of each shared by the three
    stages (released code).
    adain False: a stage has no AdaIN at all, no instance norm and no z; 'adain_bn' keeps its BatchNorm.
    init 'default': PyTorch's.  'normal': every conv and linear weight ~ N(0, 1), biases as they are (released code).
    'identity': PyTorch's, and the output starts near x (w₀ = 0.95).
    """

    def __init__(self, bands: int, channels: int, *, spectral: bool = True, spatial: bool = True,
                 kernel_activation: str = "relu", norm: str = "adain_bn", init: str = "normal", backend: str = "auto",
                 adain: bool = True):
        super().__init__()
        widths = [bands] + [channels] * STAGES
        self.stages = nn.ModuleList(
            GeneratorStage(c_in, c_out, spectral, spatial, kernel_activation, backend)
            for c_in, c_out in zip(widths[:-1], widths[1:]))
        self.backend = backend
        self.shared_norm = norm == "adain_bn"
        styles = 0 if not adain else 1 if self.shared_norm else STAGES
        self.adain = nn.ModuleList(AdaIN(channels, NOISE_DIM) for _ in range(styles))
        self.norm = nn.BatchNorm2d(channels) if self.shared_norm else nn.Identity()
        self.decoder = nn.Conv2d(channels, bands, 3, padding=1)
        self.output_logits = nn.Parameter(torch.zeros(2))          # softmax gives (½, ½) at the start
        if init == "identity":
            self.output_logits.data = torch.tensor(IDENTITY_LOGITS)
        if init == "normal":
            for module in self.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    nn.init.normal_(module.weight)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        h = x
        for i, (stage, z) in enumerate(zip(self.stages, noise)):
            h = stage(h)                                                        # [N, c, P, P]
            if self.adain:
                h = styled(h, z, self.adain[0 if self.shared_norm else i], self.norm, LEAK, self.backend)
            else:
                h = functional.leaky_relu(self.norm(h), LEAK)
        keep, change = self.output_logits.softmax(0)
        return keep * x + change * self.decoder(h)


class IdentityGenerator(nn.Module):
    """In place of a generator that is ablated: x̂ = x."""

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return x
