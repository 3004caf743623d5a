"""MMIRN: the encoder whose features at several depths give the mutual-information regulariser."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.errors import ConfigError
from model.layers import BlurDownsample, ResidualBlock

LAST_LAYER = 17
PADDING = 3               # of layer 0
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
        layers = [nn.ReflectionPad2d(PADDING), nn.Conv2d(bands, f, 7), nn.InstanceNorm2d(f), nn.ReLU(),
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

        Layer 0 repeats pixels.  `compact` gives each of them once, times the root of how often it occurs: the same
        inner products from fewer than half the values.
        """
        outputs = self.layer_outputs(x)
        if compact and 0 in outputs:
            outputs[0] = x * repetitions(x.shape[-1], x.device).to(x.dtype).sqrt()
        return [h.flatten(1) for h in outputs.values()]


def repetitions(size: int, device: torch.device) -> Tensor:
    """How often layer 0's reflection repeats each pixel of a patch: [P, P]."""
    once = torch.arange(size, dtype=torch.float32, device=device)[None]
    padded = functional.pad(once, (PADDING, PADDING), mode="reflect")                         # [1, P + 6]
    count = (padded.T == once).sum(0)
    return torch.outer(count, count)
