"""The building blocks: involution layer, spectral and spatial branch, adaptive instance norm, blur, residual block.

Shapes are [N, C, H, W] throughout; every block keeps H and W unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from model.ops import cpu, cuda, instance_cuda, involution, norms_cpu, norms_cuda, resolve_backend
from model.ops.build import DTYPES
from model.ops.taps_cuda import reorder_taps

KERNEL_AREA = 9           # 3×3 involution
GROUP_CHANNELS = 3        # channels that share one involution kernel
REDUCTION = 5             # the kernel generator's bottleneck is C // 5 wide
EPSILON = 1e-5            # under the root of a variance
NORMS = {"cpu": (norms_cpu, DTYPES), "cupy": (norms_cuda, cuda.DTYPES)}      # and the types that they take
FEW_PIXELS = 2048         # up to here a convolution 1×1 is faster as a product of matrices, on a CPU


class Involution(nn.Module):
    """Involution (Li et al., CVPR 2021): every pixel makes its own 3×3 kernels, shared by groups of 3 channels.

    The kernel generator is conv1×1 C -> max(1, C // 5), BN, ReLU, then conv1×1 -> 9·G with bias.
    `kernel_activation` 'relu' puts a ReLU after it (as the released code), 'none' leaves it out (as the paper).
    """

    def __init__(self, channels: int, kernel_activation: str, backend: str = "auto"):
        super().__init__()
        reduced, self.groups = max(1, channels // REDUCTION), max(1, channels // GROUP_CHANNELS)
        self.backend, self.relu = backend, kernel_activation == "relu"
        self.conv1 = ConvModule(channels, reduced, 1, stride=1, padding=0, bias=False, conv_cfg=None,
                                norm_cfg={"type": "BN", "eps": 1e-5, "momentum": 0.1},
                                act_cfg={"type": "ReLU"}, inplace=False)
        self.conv2 = ConvModule(reduced, KERNEL_AREA * self.groups, 1, stride=1, padding=0, bias=True, conv_cfg=None,
                                norm_cfg=None, act_cfg={"type": "ReLU"} if self.relu else None, inplace=False)

    def forward(self, x: Tensor, domains: int = 1) -> Tensor:
        backend = resolve_backend(self.backend, x.device)
        hidden = norm_relu_sum([pointwise(self.conv1.conv, x, backend)], [self.conv1.norm], None, backend, domains)
        if backend == "cpu" and takes_kernels([x], [*self.conv1.norm.parameters(), *self.conv2.conv.parameters()]):
            return cpu.generated_involution(x.to(hidden.dtype), hidden, self.conv2.conv.weight, self.conv2.conv.bias,
                                            self.relu)
        if backend == "cupy":
            return involution(x, self._tap_major_kernel(hidden), backend=backend, relu=self.relu)
        n, _, h, w = x.shape
        kernel = self.conv2(hidden).view(n, self.groups, KERNEL_AREA, h, w)
        return involution(x, kernel, backend="reference")

    def _tap_major_kernel(self, hidden: Tensor) -> Tensor:
        """The kernels [N, G, 9, H, W] before their activation, neighbouring groups side by side in channels_last: the
        rows of the last convolution are put in the order [9, G]."""
        n, _, h, w = hidden.shape
        weight, bias = reorder_taps(self.conv2.conv.weight, self.conv2.conv.bias, by_tap=True)
        kernel = functional.conv2d(hidden, weight, bias)
        return kernel.view(n, KERNEL_AREA, self.groups, h, w).transpose(1, 2)


def pointwise(conv: nn.Conv2d, x: Tensor, backend: str) -> Tensor:
    """A convolution 1×1 without bias: [N, C, H, W] -> [N, C', H, W]."""
    pixels = x.permute(0, 2, 3, 1)
    if backend != "cpu" or x.numel() > FEW_PIXELS * x.shape[1] or not pixels.is_contiguous():
        return conv(x)
    return functional.linear(pixels, conv.weight.flatten(1)).permute(0, 3, 1, 2)


def norm_relu_sum(inputs: Sequence[Tensor], norms: Sequence[nn.BatchNorm2d], weights: Tensor | None,
                  backend: str = "auto", domains: int = 1) -> Tensor:
    """sum_b weights[b]·relu(norms[b](inputs[b])), without weights their plain sum.

    [N, C, H, W] each -> [N, C, H, W].  In training each of the domains, equal parts of the batch one after the other,
    has statistics of its own.
    """
    kernels, dtypes = NORMS.get(resolve_backend(backend, inputs[0].device), (None, ()))
    if takes_kernels(inputs, [norm.weight for norm in norms], dtypes):
        several_values = inputs[0].numel() > domains * inputs[0].shape[1]   # per channel; else the norm itself complains
        if several_values and (norms[0].training or not torch.is_grad_enabled()):   # no gradient in evaluation mode
            return kernels.norm_relu_sum(inputs, norms, weights, domains)
    branches = [functional.relu(normalise(norm, x, domains)) for norm, x in zip(norms, inputs)]
    first, *others = branches if weights is None else [w * branch for w, branch in zip(weights, branches)]
    return sum(others, first)


def normalise(norm: nn.BatchNorm2d, x: Tensor, domains: int) -> Tensor:
    """BatchNorm of [N, C, H, W], in training of each domain by itself."""
    return torch.cat([norm(part) for part in x.chunk(domains)]) if norm.training and domains > 1 else norm(x)


def takes_kernels(images: Sequence[Tensor], parameters: Sequence[Tensor],
                  dtypes: Sequence[torch.dtype] = DTYPES) -> bool:
    """Whether these are what the kernels are for: images of one size and type, some of them, and parameters in float32
    (in float64, if the images are)."""
    first, wanted = images[0], torch.float64 if images[0].dtype == torch.float64 else torch.float32
    return (first.dtype in dtypes and first.numel() > 0
            and all(image.shape == first.shape and image.dtype == first.dtype for image in images)
            and all(parameter.dtype == wanted for parameter in parameters))


class SpectralBranch(nn.Module):
    """conv1×1(involution(h)), C_in -> C_out, without bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel_activation: str, backend: str = "auto"):
        super().__init__()
        self.involution = Involution(in_channels, kernel_activation, backend)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.backend = backend

    def forward(self, h: Tensor, domains: int = 1) -> Tensor:
        return pointwise(self.conv, self.involution(h, domains), resolve_backend(self.backend, h.device))


class SpatialBranch(nn.Module):
    """conv3×3(h), C_in -> C_out, zero-padded, without bias."""

    def __init__(self, in_channels: int, out_channels: int, backend: str = "auto"):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.backend = backend

    def forward(self, h: Tensor) -> Tensor:
        if resolve_backend(self.backend, h.device) == "cpu":
            return cpu.conv3x3(h, self.conv.weight)
        return self.conv(h)


class AdaIN(nn.Module):
    """Adaptive instance normalisation: (1 + gamma)·IN(h) + beta with (gamma, beta) = Linear(z)."""

    def __init__(self, channels: int, noise_dim: int = 2):
        super().__init__()
        self.fc = nn.Linear(noise_dim, 2 * channels)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        gamma, beta = self.fc(z)[:, :, None, None].chunk(2, dim=1)      # [N, C, 1, 1] each
        return (1 + gamma) * functional.instance_norm(h, eps=1e-5) + beta


def styled(h: Tensor, z: Tensor, adain: AdaIN, norm: nn.Module, leak: float, backend: str = "auto") -> Tensor:
    """leaky_relu(norm(adain(h, z)), leak), norm a BatchNorm or the identity: [N, C, H, W], noise [N, 2] -> [N, C, H, W]."""
    batch_norm = norm if isinstance(norm, nn.BatchNorm2d) else None
    kernels, dtypes = NORMS.get(resolve_backend(backend, h.device), (None, ()))
    if takes_kernels([h], [*adain.parameters(), *norm.parameters()], dtypes) and (batch_norm is None or norm.training):
        if kernels is norms_cuda:
            styles = adain.fc(z)
            return (instance_cuda.instance_norm(h, styles, leak=leak) if batch_norm is None else
                    norms_cuda.norm_relu_sum([instance_cuda.instance_norm(h, styles)], [norm], None, leak=leak))
        if h.dtype == torch.float32:
            return norms_cpu.adaptive_norm(h, adain.fc(z), batch_norm, leak)
    return functional.leaky_relu(norm(adain(h, z)), leak)


def reflected(h: Tensor, pad: int) -> Tensor:
    """Reflection padding, [N, C, H, W] -> [N, C, H + 2·pad, W + 2·pad].  Where a GPU is to be deterministic it is put
    together from slices, whose gradients are added in one order: PyTorch's own are added in any."""
    if not chooses_order(h):
        return functional.pad(h, (pad,) * 4, mode="reflect")
    for dim in (2, 3):
        last = h.shape[dim] - 1
        h = torch.cat([h.narrow(dim, 1, pad).flip(dim), h, h.narrow(dim, last - pad, pad).flip(dim)], dim)
    return h


def chooses_order(h: Tensor) -> bool:
    """Whether sums on this tensor's device come in any order, and are not to."""
    return h.is_cuda and torch.are_deterministic_algorithms_enabled()


class ReflectionPad(nn.ReflectionPad2d):
    """`reflected` as a layer."""

    def forward(self, h: Tensor) -> Tensor:
        return reflected(h, self.padding[0])


class BlurDownsample(nn.Module):
    """Depthwise [1,2,1]⊗[1,2,1]/16 blur, reflect pad 1, stride 2: [N, C, H, W] -> [N, C, ⌈H/2⌉, ⌈W/2⌉]."""

    def __init__(self, channels: int):
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0])
        kernel = torch.outer(taps, taps) / 16
        self.register_buffer("filt", kernel.expand(channels, 1, 3, 3).clone())

    def forward(self, h: Tensor) -> Tensor:
        return functional.conv2d(reflected(h, 1), self.filt, stride=2, groups=h.shape[1])


class ResidualBlock(nn.Module):
    """h + (reflect pad, conv3×3, IN, ReLU, reflect pad, conv3×3, IN)(h), nothing after the sum."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_block = nn.Sequential(
            ReflectionPad(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels), nn.ReLU(),
            ReflectionPad(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.conv_block(h)


def channel_statistics(h: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over a patch's pixels: [N, C, P, P] -> [N, C, 1, 1] each."""
    variance, mean = torch.var_mean(h, dim=(2, 3), correction=0, keepdim=True)
    return mean, (variance + EPSILON).sqrt()
