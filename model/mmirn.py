"""MMIRN: the encoder whose features at several depths give the mutual-information regulariser."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.errors import ConfigError
from model.layers import BlurDownsample, ReflectionPad, ResidualBlock
from model.ops import norms_cpu, resolve_backend
from model.ops.instance_cuda import instance_norm

LAST_LAYER = 17
PADDING = 3               # of layer 0
INSIDE_FUSED = {2, 3, 5, 6, 9, 10}      # a norm before its ReLU, a ReLU before its blur
MIN_PATCH = 5             # reflection padding by 3, then two downsamplings and reflection padding by 1


class MMIRN(nn.Module):
    """Encoder of width f; `forward` gives the outputs of the tapped layers, each flattened to one vector per sample.

    Layers are numbered as in docs/method.md, "MMIRN"; nothing deeper than the deepest tap is built.
    """

    def __init__(self, bands: int, taps: Sequence[int], filters: int = 8):
        super().__init__()
        if not taps or min(taps) < 0 or max(taps) > LAST_LAYER or len(set(taps)) < len(taps):
            raise ConfigError(f"contrast_layers {list(taps)} must be different layers of MMIRN, 0 to {LAST_LAYER}.")
        f = filters
        layers = [ReflectionPad(PADDING), nn.Conv2d(bands, f, 7), nn.InstanceNorm2d(f), nn.ReLU(),
                  nn.Conv2d(f, 2 * f, 3, padding=1), nn.InstanceNorm2d(2 * f), nn.ReLU(), BlurDownsample(2 * f),
                  nn.Conv2d(2 * f, 4 * f, 3, padding=1), nn.InstanceNorm2d(4 * f), nn.ReLU(), BlurDownsample(4 * f),
                  *(ResidualBlock(4 * f) for _ in range(6))]
        self.taps = frozenset(taps)
        self.model = nn.Sequential(*layers[:max(taps) + 1])

    def layer_outputs(self, x: Tensor) -> dict[int, Tensor]:
        """[N, B, P, P] -> tapped layer -> its output [N, C_l, H_l, W_l], in order of depth."""
        outputs, h = {}, x
        for i, layer in enumerate(self.model):
            h = layer(h)
            if i in self.taps:
                outputs[i] = h
        return outputs

    def forward(self, x: Tensor, compact: bool = False) -> list[Tensor]:
        """[N, B, P, P] -> one [N, D_l] per tapped layer, in order of depth.

        `compact` gives vectors with the same inner products: the pixels that layer 0 repeats come once, times the root
        of how often; with kernels the features of a layer come in another order, from fewer and larger operations.
        """
        if not compact:
            return [h.flatten(1) for h in self.layer_outputs(x).values()]
        outputs = self.outputs_by(x)(x)
        if 0 in outputs:
            outputs[0] = x * root_repetitions(x.shape[-1], x.device, x.dtype)
        return [h.flatten(1) for h in outputs.values()]

    def outputs_by(self, x: Tensor) -> Callable[[Tensor], dict[int, Tensor]]:
        """The fastest way to the outputs: with kernels in float32, where no tap lies between a norm and what is fused
        with it."""
        ways = {"cpu": self.fused_outputs, "cupy": self.cuda_outputs}
        backend = resolve_backend("auto", x.device) if x.dtype == torch.float32 and not self.taps & INSIDE_FUSED else ""
        return ways.get(backend, self.layer_outputs)

    def cuda_outputs(self, x: Tensor) -> dict[int, Tensor]:
        """`layer_outputs` seen with the channels last, [N, H_l, W_l, C_l]; norm, ReLU and residual in one operation
        (model/ops/instance.cu)."""
        outputs, h = {}, x
        for i, layer in enumerate(self.model):
            if isinstance(layer, nn.InstanceNorm2d):
                h = instance_norm(h, leak=0.0)
            elif isinstance(layer, ResidualBlock):
                pad, first, _, _, _, second, _ = layer.conv_block
                h = instance_norm(second(pad(instance_norm(first(pad(h)), leak=0.0))), residual=h)
            elif not isinstance(layer, nn.ReLU):
                h = layer(h)
            if i in self.taps:
                outputs[i] = h.permute(0, 2, 3, 1)
        return outputs

    def fused_outputs(self, x: Tensor) -> dict[int, Tensor]:
        """`layer_outputs` with the channels innermost, [N, H_l, W_l, C_l]: norm, ReLU and blur in one operation
        (model/ops/instance.cpp), convolutions of small maps as products with one matrix each."""
        outputs, h, layers = {}, x.permute(0, 2, 3, 1), list(self.model)
        for i, layer in enumerate(layers):
            if isinstance(layer, nn.Conv2d):
                h = convolved(h, layer, "reflect" if i == 1 else "constant")
            elif isinstance(layer, nn.InstanceNorm2d):
                h = norms_cpu.instance_norm(h, relu=True, blur=isinstance(layers[i + 2], BlurDownsample))
            elif isinstance(layer, ResidualBlock):
                first, second = (part for part in layer.conv_block if isinstance(part, nn.Conv2d))
                inner = norms_cpu.instance_norm(convolved(h, first, "reflect"), relu=True)
                h = norms_cpu.instance_norm(convolved(inner, second, "reflect"), residual=h)
            if i in self.taps:
                outputs[i] = h
        return outputs


def convolved(h: Tensor, layer: nn.Conv2d, border: str) -> Tensor:
    """The convolution k×k of a map that keeps its size, its border of zeros ('constant') or reflected ('reflect'):
    h [N, H, W, C] -> [N, H, W, O].

    Where the map has no more pixels than the kernel has taps, it is a product with one matrix, which holds for every
    pair of pixels the taps that lead from one to the other.
    """
    n, height, width, channels = h.shape
    out, _, size, _ = layer.weight.shape
    pixels, pad = height * width, size // 2
    if pixels > size * size:
        image = h.permute(0, 3, 1, 2)
        if border == "reflect":
            image, pad = functional.pad(image, (pad,) * 4, mode=border), 0
        return functional.conv2d(image, layer.weight, layer.bias, padding=pad).permute(0, 2, 3, 1)
    matrix = layer.weight.view(out * channels, size * size) @ tap_table(height, width, size, border)
    matrix = matrix.view(out, channels, pixels, pixels).permute(3, 0, 2, 1).reshape(pixels * out, pixels * channels)
    return functional.linear(h.reshape(n, -1), matrix, layer.bias.repeat(pixels)).view(n, height, width, out)


@functools.cache
def tap_table(height: int, width: int, size: int, border: str) -> Tensor:
    """How often a tap leads from one pixel to another: [k², HW (from) · HW (to)]."""
    with torch.inference_mode(False), torch.no_grad():             # it is kept, whoever asks first
        pixels = torch.eye(height * width).view(height * width, 1, height, width)
        around = functional.pad(pixels, (size // 2,) * 4, mode=border)
        return functional.unfold(around, size).transpose(0, 1).flatten(1).contiguous()


@functools.cache
def root_repetitions(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The root of how often layer 0's reflection repeats each pixel of a patch: [P, P]."""
    with torch.inference_mode(False), torch.no_grad():             # it is kept, whoever asks first
        once = torch.arange(size, dtype=torch.float32, device=device)[None]
        padded = functional.pad(once, (PADDING, PADDING), mode="reflect")                     # [1, P + 6]
        count = (padded.T == once).sum(0)
        return torch.outer(count, count).to(dtype).sqrt()
