"""The weights of a layer that makes involution kernels, in the order of the taps, as a CUDA kernel (taps.cu), registered
as an `s2amsnet::` operator in the manner of cuda.py."""

from __future__ import annotations

import torch
from torch import Tensor

from model.ops.cuda import start
from model.ops.reference import TAPS


@torch.library.custom_op("s2amsnet::reorder_taps", mutates_args=(), device_types="cpu")
def reorder_taps(weight: Tensor, bias: Tensor, by_tap: bool) -> list[Tensor]:
    """Rows from the order [G, 9] into [9, G], or back: weight [9 G,R,1,1], bias [9 G] -> the same shapes."""
    order = (-1, TAPS) if by_tap else (TAPS, -1)
    return [each.unflatten(0, order).transpose(0, 1).reshape(each.shape).clone() for each in (weight, bias)]


@reorder_taps.register_fake
def _empty_results(weight: Tensor, bias: Tensor, by_tap: bool) -> list[Tensor]:
    return [each.new_empty(each.shape) for each in (weight, bias)]


def _save_order(ctx, inputs: tuple, output: list[Tensor]) -> None:
    ctx.by_tap = inputs[2]


def _backward(ctx, grads: list[Tensor]) -> tuple[Tensor, Tensor, None]:
    return *reorder_taps(*grads, not ctx.by_tap), None


reorder_taps.register_autograd(_backward, setup_context=_save_order)


@reorder_taps.register_kernel("cuda")
def launch_reorder(weight: Tensor, bias: Tensor, by_tap: bool) -> list[Tensor]:
    found = _empty_results(weight, bias, by_tap)
    start(f"reorder_taps_{str(weight.dtype).removeprefix('torch.')}", (weight.contiguous(), bias.contiguous(), *found),
          (len(weight), weight.shape[1], by_tap), weight.numel() + bias.numel())
    return found
