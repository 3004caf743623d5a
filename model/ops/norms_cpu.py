"""The C++ kernels of norms, with what stands around them, for tensors on a CPU: BatchNorm, ReLU and the weighted sum of
branches (norm.cpp); InstanceNorm, plain and adaptive (instance.cpp).

They take images with the channels innermost and copy others into that layout first; parameters in float32.  Compiled
graphs break at them.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.ops.build import compiled_kernel
from model.ops.cpu import addresses, nhwc

EPSILON = 1e-5               # of InstanceNorm, under the root of a variance


class _Rows(Structure):
    _fields_ = [(name, c_int64) for name in ("domains", "rows", "channels")]


class _Maps(Structure):
    _fields_ = [(name, c_int64) for name in ("samples", "height", "width", "channels")] + \
        [("eps", c_float), ("relu", c_int), ("blur", c_int)]


class _Adaptive(Structure):
    _fields_ = [(name, c_void_p) for name in ("styles", "gain", "offset", "mean", "rstd", "running_mean",
                                              "running_variance")] + \
        [(name, c_float) for name in ("momentum", "eps", "leak")]


class _Norm(Structure):
    _fields_ = [(name, c_void_p) for name in ("gamma", "beta", "mean", "rstd", "running_mean", "running_variance")] + \
        [("momentum", c_float), ("eps", c_float), ("cumulative", c_int)]


_ARGUMENTS = {
    "norm": {
        "mix": [POINTER(c_void_p), POINTER(_Norm), POINTER(c_float), c_int, POINTER(_Rows), c_int, c_void_p],
        "mix_backward": [c_void_p, POINTER(c_void_p), POINTER(_Norm), POINTER(c_float), c_int, POINTER(_Rows),
                         POINTER(c_void_p)] + [c_void_p] * 3,
    },
    "instance": {
        "instance_norm": [c_void_p] * 4 + [POINTER(_Maps)],
        "instance_norm_backward": [c_void_p] * 4 + [POINTER(_Maps)],
        "adaptive_norm": [c_void_p] * 3 + [POINTER(_Adaptive), POINTER(_Maps)],
        "adaptive_norm_backward": [c_void_p] * 3 + [POINTER(_Adaptive), POINTER(_Maps)] + [c_void_p] * 4,
    },
}
_SOURCE_OF = {name: source for source, functions in _ARGUMENTS.items() for name in functions}


@functools.cache
def _kernel(name: str, dtype: torch.dtype) -> ctypes._CFuncPtr:
    source = _SOURCE_OF[name]
    return compiled_kernel(Path(__file__).with_name(f"{source}.cpp"), name, dtype, _ARGUMENTS[source][name])


def norm_relu_sum(inputs: Sequence[Tensor], norms: Sequence[nn.BatchNorm2d], weights: Tensor | None,
                  domains: int = 1) -> Tensor:
    """sum_b weights[b]·relu(norms[b](inputs[b])): one or two inputs [N,C,H,W] -> [N,C,H,W] in channels_last.

    The norms are used and updated as they would be by calling them on each of the domains, equal parts of the batch, one
    after the other.
    """
    if not norms[0].training:
        return _apply_norms(inputs, norms, weights)
    affine = [parameter for norm in norms for parameter in (norm.weight, norm.bias)]
    return _NormReluSum.apply(norms, weights, domains, *inputs, *affine)


def instance_norm(x: Tensor, *, relu: bool = False, blur: bool = False, residual: Tensor | None = None) -> Tensor:
    """InstanceNorm of x [N,H,W,C] float32 over its pixels, then a ReLU, a blur with stride 2 (model/layers.py,
    BlurDownsample) and a sum with the residual, where asked for -> [N,H',W',C]."""
    return _InstanceNorm.apply(x, residual, relu, blur)


def adaptive_norm(x: Tensor, styles: Tensor, norm: nn.BatchNorm2d | None, leak: float) -> Tensor:
    """leaky_relu(norm((1 + gamma)·IN(x) + beta), leak) of x [N,C,H,W] float32, with (gamma, beta) = styles [N,2C] and
    the BatchNorm in training mode, or None -> [N,C,H,W] in channels_last."""
    if norm is None:
        return _AdaptiveNorm.apply(x, styles, None, None, None, leak)
    running = norm.running_mean, norm.running_var, _advance(norm), norm.eps
    return _AdaptiveNorm.apply(x, styles, norm.weight, norm.bias, running, leak)


class _NormReluSum(torch.autograd.Function):
    """Training mode: batch statistics, running ones updated.  Arguments: inputs, then gamma and beta of each."""

    @staticmethod
    def forward(ctx, norms: Sequence[nn.BatchNorm2d], weights: Tensor | None, domains: int, *arguments: Tensor) -> Tensor:
        count = len(norms)
        inputs = [nhwc(x) for x in arguments[:count]]
        rows = _rows(inputs[0], domains)
        statistics = norms[0].weight.new_empty(count, 2, domains, rows.channels)               # mean, rstd of the batch
        ctx.table = (_Norm * count)(*(
            _Norm(norm.weight.data_ptr(), norm.bias.data_ptr(), *measured, norm.running_mean.data_ptr(),
                  norm.running_var.data_ptr(), _advance(norm, domains), norm.eps, norm.momentum is None)
            for norm, measured in zip(norms, _places(statistics, 2 * count))))
        ctx.save_for_backward(statistics, *inputs, *arguments[count:])
        ctx.weights, ctx.rows = _floats(None if weights is None else weights.tolist(), count), rows
        ctx.weighted = weights is not None
        return _mix(inputs, ctx.table, ctx.weights, rows, training=True)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        statistics, *saved = ctx.saved_tensors
        count, grad = len(statistics), nhwc(grad)
        inputs, channels = saved[:count], ctx.rows.channels
        grad_inputs = [torch.empty_like(x) for x in inputs]
        gammas, betas = statistics.new_empty(2, count, channels)
        grad_weights = statistics.new_empty(count)
        _kernel("mix_backward", grad.dtype)(
            grad.data_ptr(), _pointers(inputs), ctx.table, ctx.weights, count, byref(ctx.rows),
            _pointers(grad_inputs), *addresses(gammas, betas, grad_weights))
        affine = [part for parts in zip(gammas, betas) for part in parts]
        return None, grad_weights if ctx.weighted else None, None, *grad_inputs, *affine


class _InstanceNorm(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor, residual: Tensor | None, relu: bool, blur: bool) -> Tensor:
        x, residual = x.detach().contiguous(), None if residual is None else residual.detach().contiguous()
        samples, height, width, channels = x.shape
        ctx.maps = _Maps(samples, height, width, channels, EPSILON, relu, blur)
        size = (-(-height // 2), -(-width // 2)) if blur else (height, width)
        y, statistics = x.new_empty(samples, *size, channels), x.new_empty(samples, 2, channels)
        _kernel("instance_norm", x.dtype)(*addresses(x, residual, y, statistics), byref(ctx.maps))
        ctx.save_for_backward(x, statistics)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, statistics = ctx.saved_tensors
        grad, grad_x = grad.contiguous(), torch.empty_like(x) if ctx.needs_input_grad[0] else None
        if grad_x is not None:
            _kernel("instance_norm_backward", x.dtype)(*addresses(grad, x, statistics, grad_x), byref(ctx.maps))
        return grad_x, grad if ctx.needs_input_grad[1] else None, None, None


class _AdaptiveNorm(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor, styles: Tensor, gain: Tensor | None, offset: Tensor | None,
                running: tuple[Tensor, Tensor, float, float] | None, leak: float) -> Tensor:
        x, styles = nhwc(x.detach()), styles.detach().contiguous()
        samples, channels, height, width = x.shape
        y, statistics = torch.empty_like(x), x.new_empty(samples + 1, 2, channels)      # the last ones the BatchNorm's
        mean, variance, momentum, eps = running or (None, None, 0.0, 0.0)
        given = [styles, None, None] if gain is None else [styles, gain.detach(), offset.detach()]
        ctx.maps = _Maps(samples, height, width, channels, EPSILON)
        ctx.adaptive = _Adaptive(*addresses(*given, *statistics[-1], mean, variance), momentum, eps, leak)
        _kernel("adaptive_norm", x.dtype)(*addresses(x, y, statistics), byref(ctx.adaptive), byref(ctx.maps))
        ctx.save_for_backward(x, statistics, *(tensor for tensor in given if tensor is not None))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics, styles, *norm = ctx.saved_tensors
        grad, grad_x, grad_styles = nhwc(grad), torch.empty_like(x), torch.empty_like(styles)
        grad_norm = [torch.empty_like(parameter) for parameter in norm] or [None, None]
        _kernel("adaptive_norm_backward", x.dtype)(
            *addresses(grad, x, statistics), byref(ctx.adaptive), byref(ctx.maps),
            *addresses(grad_x, grad_styles, *grad_norm))
        return grad_x, grad_styles, *grad_norm, None, None


def _apply_norms(inputs: Sequence[Tensor], norms: Sequence[nn.BatchNorm2d], weights: Tensor | None) -> Tensor:
    """Evaluation mode: running statistics.  Without gradient."""
    inputs = [nhwc(x.detach()) for x in inputs]
    inverse = [(norm.running_var + norm.eps).rsqrt() for norm in norms]
    table = (_Norm * len(inputs))(*(_Norm(*addresses(norm.weight, norm.bias, norm.running_mean, rstd))
                                    for norm, rstd in zip(norms, inverse)))
    weights = _floats(None if weights is None else weights.tolist(), len(inputs))
    return _mix(inputs, table, weights, _rows(inputs[0]), training=False)


def _mix(inputs: Sequence[Tensor], norms: ctypes.Array, weights: ctypes.Array, rows: _Rows, training: bool) -> Tensor:
    y = torch.empty_like(inputs[0])
    _kernel("mix", y.dtype)(_pointers(inputs), norms, weights, len(inputs), byref(rows), training, y.data_ptr())
    return y


def _advance(norm: nn.BatchNorm2d, batches: int = 1) -> float:
    """Count more batches; the weight of the first one's statistics (momentum None means a cumulative average)."""
    norm.num_batches_tracked.add_(batches)
    return 1 / (norm.num_batches_tracked.item() - batches + 1) if norm.momentum is None else norm.momentum


def _rows(x: Tensor, domains: int = 1) -> _Rows:
    return _Rows(domains, x.numel() // (x.shape[1] * domains), x.shape[1])


def _places(statistics: Tensor, count: int) -> list[list[int]]:
    """Addresses in pairs of so many equal parts of a contiguous float32 tensor."""
    start, step = statistics.data_ptr(), statistics.nbytes // count
    return [[start + i * step, start + (i + 1) * step] for i in range(0, count, 2)]


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (c_void_p * len(tensors))(*map(Tensor.data_ptr, tensors))


def _floats(weights: list[float] | None, count: int) -> ctypes.Array:
    return (c_float * count)(*(weights or [1.0] * count))
