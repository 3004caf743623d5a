"""InstanceNorm with a gain and an offset per sample, a leaky ReLU and a residual as a CUDA kernel (instance.cu),
registered as `s2amsnet::` operators in the manner of cuda.py.  Images are taken in channels_last, as in norms_cuda.py.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.ops import norms_reference as reference
from model.ops.cuda import start
from model.ops.norms_cuda import accumulator, pixels

EPSILON = 1e-5            # under the root of a variance


def instance_norm(x: Tensor, styles: Tensor | None = None, *, leak: float = 1.0,
                  residual: Tensor | None = None) -> Tensor:
    """leaky_relu((1 + gamma)·IN(x) + beta, leak) + residual with (gamma, beta) = styles [N,2C], or zeros: [N,C,H,W] ->
    [N,C,H,W] in channels_last.  leak 0 is a ReLU, 1 none."""
    styles = None if styles is None else styles.to(accumulator(x.dtype))
    return normalise_instances(x, styles, residual, EPSILON, leak)[0]


@torch.library.custom_op("s2amsnet::normalise_instances", mutates_args=(), device_types="cpu")
def normalise_instances(x: Tensor, styles: Tensor | None, residual: Tensor | None, eps: float,
                        leak: float) -> tuple[Tensor, Tensor]:
    """The image [N,C,H,W], and the statistics [N,2,C] that it is made with (mean, one over the deviation)."""
    y, statistics = reference.instance_norm(x, styles, residual, eps, leak)
    return pixels(y), statistics


@torch.library.custom_op("s2amsnet::normalise_instances_backward", mutates_args=(), device_types="cpu")
def normalise_instances_backward(grad: Tensor, x: Tensor, statistics: Tensor, styles: Tensor | None,
                                 leak: float) -> list[Tensor]:
    """The gradients of x and, where there are any, of styles."""
    image, *more = reference.instance_norm_backward(grad, x, statistics, styles, leak)
    return [pixels(image), *more]


@normalise_instances.register_fake
def _empty_results(x: Tensor, styles: Tensor | None, residual: Tensor | None, eps: float,
                   leak: float) -> tuple[Tensor, Tensor]:
    return pixels(torch.empty_like(x)), x.new_empty(len(x), 2, x.shape[1], dtype=accumulator(x.dtype))


@normalise_instances_backward.register_fake
def _empty_gradients(grad: Tensor, x: Tensor, statistics: Tensor, styles: Tensor | None, leak: float) -> list[Tensor]:
    return [pixels(torch.empty_like(x))] + ([] if styles is None else [torch.empty_like(styles)])


def _save_inputs(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, styles, _, _, ctx.leak = inputs
    ctx.save_for_backward(x, styles, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad: Tensor | None, _: None) -> tuple:
    x, styles, statistics = ctx.saved_tensors
    if grad is None:
        return None, None, None, None, None
    grad_x = grad_styles = None
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        grad_x, *more = normalise_instances_backward(grad, x, statistics, styles, ctx.leak)
        grad_styles = more[0] if more else None
    return grad_x, grad_styles, grad if ctx.needs_input_grad[2] else None, None, None


normalise_instances.register_autograd(_backward, setup_context=_save_inputs)


@normalise_instances.register_kernel("cuda")
def launch_instances(x: Tensor, styles: Tensor | None, residual: Tensor | None, eps: float,
                     leak: float) -> tuple[Tensor, Tensor]:
    y, statistics = _empty_results(x, styles, residual, eps, leak)
    parts = (pixels(x), None if styles is None else styles.contiguous(), None if residual is None else pixels(residual))
    _start("instance_norm", x, (*parts, y, statistics), (eps, leak))
    return y, statistics


@normalise_instances_backward.register_kernel("cuda")
def launch_instances_backward(grad: Tensor, x: Tensor, statistics: Tensor, styles: Tensor | None,
                              leak: float) -> list[Tensor]:
    styles = None if styles is None else styles.contiguous()
    grad_x, *more = found = _empty_gradients(grad, x, statistics, styles, leak)
    parts = (pixels(grad), pixels(x), statistics, styles, *(more or [None]), grad_x)
    _start("instance_norm_backward", x, parts, (leak,))
    return found


def _start(name: str, x: Tensor, tensors: tuple[Tensor | None, ...], numbers: tuple[float, ...]) -> None:
    samples, channels, height, width = x.shape
    start(f"{name}_{str(x.dtype).removeprefix('torch.')}", tensors, (samples, channels, height * width),
          samples * channels, tuple(map(np.float64, numbers)))
