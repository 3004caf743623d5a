"""MRAN: several representations of a patch, each aligned class by class with the unlabelled target."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.discriminator import Discriminator
from model.methods.alignment import conditional_mmd, ramp
from model.methods.base import Method, Task, capturable
from model.seeding import Streams
from model.settings import Settings

BRANCHES = 4              # the Inception module's: 1×1; 1×1, 5×5; 1×1, 3×3, 3×3; average pool, 1×1


def convolution(c_in: int, c_out: int, size: int) -> nn.Sequential:
    """conv without bias, BN, ReLU; [N, c_in, H, W] -> [N, c_out, H, W]."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class MultiRepresentation(Discriminator):
    """The discriminator with four parallel Inception branches between its pooled feature map and its head.

    [N, d, P//2, P//2] -> per branch convolutions to w = max(1, d // 4) channels, flatten, Linear -> w, ReLU; the head
    takes the four side by side.
    """

    def __init__(self, bands: int, n_classes: int, patch_size: int, channels: int = 128, **options: str):
        super().__init__(bands, n_classes, patch_size, channels, **options)
        width, pooled = max(1, channels // BRANCHES), (patch_size // 2) ** 2
        convolutions = [
            [convolution(channels, width, 1)],
            [convolution(channels, width, 1), convolution(width, width, 5)],
            [convolution(channels, width, 1), convolution(width, width, 3), convolution(width, width, 3)],
            [nn.AvgPool2d(3, stride=1, padding=1), convolution(channels, width, 1)]]
        self.fc = nn.ModuleList(nn.Sequential(*branch, nn.Flatten(), nn.Linear(width * pooled, width))
                                for branch in convolutions)
        self.head = nn.Linear(BRANCHES * width, n_classes)

    def _linear(self, pooled: Tensor) -> Tensor:
        """The branches side by side, before their ReLU: [N, d, p, p] -> [N, 4·w]."""
        return torch.cat([branch(pooled) for branch in self.fc], dim=1)


class MRAN(Method):
    """MRAN (Zhu, Zhuang, Wang, Chen, Shi, Wu, He, Neural Networks 119, 2019, Multi-Representation Adaptation Network
    for Cross-Domain Image Classification).

    CE + λ(p)·Σ_r CMMD_r, λ(p) = 2/(1 + exp(−10 p)) − 1 over the share p of training, r the branches of an Inception
    module: CMMD_r = Σ_c ‖1/n Σ_{i∈c} φ(g_r(x_i^s)) − 1/m Σ_{j∈c} φ(g_r(x_j^t))‖², batches of n and m patches, with the
    current argmax as the target's class c; five RBF kernels as in DSAN.

    This is the estimate of the authors' released code, which divides by the batch; the equation, as remembered, has
    class means and a mean over the classes.  Pseudo-classes of one or two samples then weigh as much as any; without
    a pretrained network that kept short runs on the simulated pair from learning the source.  Unlike there, a class
    that one of the two batches lacks is left out.
    Each branch ends in the backbone's own flatten and Linear where the paper averages over the map, since here the
    centre pixel is classified, and the four are together as wide as the backbone's features.  The ramp moves per step
    (in the released code per epoch), and source and target pass in one batch (there one after the other): BatchNorm's
    running statistics, which classify at test time, are then those that training used.
    """

    uses_target = True
    needs_progress = True
    borrows_backbone = True

    def __init__(self, task: Task, settings: Settings, streams: Streams):
        super().__init__(task, settings, streams)
        self.optimiser = self.add_optimiser("discriminator", self.discriminator)

    def build_classifier(self) -> MultiRepresentation:
        s = self.settings
        return MultiRepresentation(self.task.bands, self.task.n_classes, self.task.patch_size, s.pro_dim,
                                   kernel_activation=s.kernel_activation, backend=s.backend, precision=s.precision)

    def update(self, x: Tensor, y: Tensor) -> dict[str, float]:
        return self.step(x, y, self.draw_target(len(x)), ramp(self.progress))

    @capturable
    def step(self, x: Tensor, y: Tensor, target: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """One batch of source patches x [N, B, P, P], y [N], and target patches [N, B, P, P]; weight λ(p)."""
        features = self.discriminator.features(torch.cat([x, target]))
        source_logits, target_logits = self.discriminator.head(features).split(len(x))
        ce = functional.cross_entropy(source_logits, y)
        conditional = sum(conditional_mmd(*branch.split(len(x)), y, target_logits)
                          for branch in features.chunk(BRANCHES, dim=1))
        loss = ce + weight * conditional
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return {"loss": loss, "ce": ce, "cmmd": conditional}
