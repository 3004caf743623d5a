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
    _fields_ = [(name, c_void_p) for name in ("gamma", "beta", "mean", "rstd", "running_mean", "running_variance")]


_ARGUMENTS = {
    "norm": {
        "measure": [c_void_p, POINTER(_Norm), POINTER(_Rows), POINTER(c_float), c_float],
        "mix": [POINTER(c_void_p), POINTER(_Norm), POINTER(c_float), c_int, POINTER(_Rows), c_void_p],
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
    arguments = [tensor for x, norm in zip(inputs, norms) for tensor in (x, norm.weight, norm.bias)]
    running = [(norm.running_mean, norm.running_var, [_advance(norm) for _ in range(domains)], norm.eps)
               for norm in norms]
    return _NormReluSum.apply(running, weights, domains, *arguments)


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
    """Training mode: batch statistics, running ones updated."""

    @staticmethod
    def forward(ctx, running: list[tuple[Tensor, Tensor, list[float], float]], weights: Tensor | None, domains: int,
                *arguments: Tensor) -> Tensor:
        arguments = [argument.detach() for argument in arguments]
        inputs, gammas, betas = [nhwc(x) for x in arguments[::3]], arguments[1::3], arguments[2::3]
        rows = _rows(inputs[0], domains)
        statistics = gammas[0].new_empty(len(inputs), 2, domains, rows.channels)              # mean, rstd of the batch
        norms = (_Norm * len(inputs))(*(
            _Norm(*addresses(gamma, beta, *measured, mean, variance))
            for gamma, beta, measured, (mean, variance, _, _) in zip(gammas, betas, statistics, running)))
        for x, norm, (_, _, momenta, eps) in zip(inputs, norms, running):
            _kernel("measure", x.dtype)(x.data_ptr(), byref(norm), byref(rows), _floats(momenta, domains), eps)
        ctx.save_for_backward(statistics, *inputs, *gammas, *betas)
        ctx.weights, ctx.rows = None if weights is None else weights.tolist(), rows
        return _mix(inputs, norms, ctx.weights, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        statistics, *saved = ctx.saved_tensors
        count, grad = len(statistics), nhwc(grad)
        inputs, gammas, betas = saved[:count], saved[count:2 * count], saved[2 * count:]
        norms = (_Norm * count)(*(_Norm(*addresses(gamma, beta, *measured, None, None))
                                  for gamma, beta, measured in zip(gammas, betas, statistics)))
        grad_inputs = [torch.empty_like(x, memory_format=torch.channels_last) for x in inputs]
        grad_gammas, grad_betas = statistics.new_empty(2, count, ctx.rows.channels)
        grad_weights = statistics.new_empty(count)
        _kernel("mix_backward", grad.dtype)(
            grad.data_ptr(), _pointers(inputs), norms, _floats(ctx.weights, count), count, byref(ctx.rows),
            _pointers(grad_inputs), *addresses(grad_gammas, grad_betas, grad_weights))
        found = [part for parts in zip(grad_inputs, grad_gammas, grad_betas) for part in parts]
        return None, grad_weights if ctx.weights else None, None, *found


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
    table = (_Norm * len(inputs))(*(
        _Norm(*addresses(norm.weight, norm.bias, norm.running_mean, rstd, None, None))
        for norm, rstd in zip(norms, inverse)))
    return _mix(inputs, table, None if weights is None else weights.tolist(), _rows(inputs[0]))


def _mix(inputs: Sequence[Tensor], norms: ctypes.Array, weights: list[float] | None, rows: _Rows) -> Tensor:
    y = torch.empty_like(inputs[0], memory_format=torch.channels_last)
    _kernel("mix", y.dtype)(_pointers(inputs), norms, _floats(weights, len(inputs)), len(inputs), byref(rows),
                            y.data_ptr())
    return y


def _advance(norm: nn.BatchNorm2d) -> float:
    """Count one more batch; the weight of the new statistics (momentum None means a cumulative average)."""
    norm.num_batches_tracked.add_(1)
    return 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum


def _rows(x: Tensor, domains: int = 1) -> _Rows:
    return _Rows(domains, x.numel() // (x.shape[1] * domains), x.shape[1])


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (c_void_p * len(tensors))(*map(Tensor.data_ptr, tensors))


def _floats(weights: list[float] | None, count: int) -> ctypes.Array:
    return (c_float * count)(*(weights or [1.0] * count))
