"""The C++ kernels for tensors on a CPU: involution, and BatchNorm + ReLU + weighted sum of branches.

They take images in float32 and bfloat16, channels_last (NHWC in memory), and copy others into that layout first;
parameters in float32; no empty images (model/layers.py and model/ops choose).  Compiled graphs break at them.
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
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from model.ops.build import BuildError, compiled_kernel, library
from model.ops.reference import group_count

SOURCES = {name: Path(__file__).with_name(f"{name}.cpp") for name in ("involution", "norm", "winograd")}
MORE_SOURCES = (Path(__file__).with_name("patches.cpp"), Path(__file__).parents[1] / "scan" / "scan.cpp")   # called from elsewhere
WINOGRAD_CHANNELS = 96       # from here on Winograd is faster than oneDNN's direct convolution (1.25 times at 128)


class _Shape(Structure):
    _fields_ = [(name, c_int64) for name in ("samples", "height", "width", "channels", "groups")]


class _ConvShape(Structure):
    _fields_ = [(name, c_int64) for name in ("samples", "height", "width", "in_channels", "out_channels")]


class _Norm(Structure):
    _fields_ = [(name, c_void_p) for name in ("gamma", "beta", "mean", "rstd", "running_mean", "running_variance")]


_ARGUMENTS = {
    "involution": {
        "involution": [c_void_p] * 3 + [POINTER(_Shape), c_int],
        "involution_backward": [c_void_p] * 5 + [POINTER(_Shape), c_int],
        "generated": [c_void_p] * 5 + [POINTER(_Shape), c_int64, c_int],
        "generated_backward": [c_void_p] * 9 + [POINTER(_Shape), c_int64, c_int],
    },
    "norm": {
        "measure": [c_void_p, POINTER(_Norm), c_int64, c_int64, c_float, c_float],
        "mix": [POINTER(c_void_p), POINTER(_Norm), POINTER(c_float), c_int, c_int64, c_int64, c_void_p],
        "mix_backward": [c_void_p, POINTER(c_void_p), POINTER(_Norm), POINTER(c_float), c_int, c_int64, c_int64,
                         POINTER(c_void_p)] + [c_void_p] * 3,
    },
    "winograd": {"winograd": [c_void_p] * 3 + [POINTER(_ConvShape), c_int]},
}
_SOURCE_OF = {name: source for source, functions in _ARGUMENTS.items() for name in functions}


@functools.cache
def unavailable_reason() -> str | None:
    """Why the kernels cannot run here, and what would help; None where they can.  Builds them if need be."""
    try:
        for source in (*SOURCES.values(), *MORE_SOURCES):
            library(source)
    except BuildError as error:
        return str(error)
    return None


@functools.cache
def _kernel(name: str, dtype: torch.dtype) -> ctypes._CFuncPtr:
    source = _SOURCE_OF[name]
    return compiled_kernel(SOURCES[source], name, dtype, _ARGUMENTS[source][name])


def involution(x: Tensor, kernel: Tensor, relu: bool = False) -> Tensor:
    """x [N,C,H,W], kernel [N,G,9,H,W] -> [N,C,H,W] in channels_last; `relu` takes max(kernel, 0) for the kernel.

    The kernel is read as memory [N,H,W,9,G]; in any other layout it is copied.
    """
    return _Involution.apply(x, kernel, relu)


def generated_involution(x: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, relu: bool = False) -> Tensor:
    """The involution of x [N,C,H,W] with the kernels conv1x1(hidden), which are never all in memory.

    hidden [N,R,H,W], weight [9 G,R,1,1], bias [9 G] -> [N,C,H,W] in channels_last; the convolution's output channels
    are [G,9].  With `relu`, max(kernel, 0).
    """
    return _GeneratedInvolution.apply(x, hidden, weight, bias, relu)


def conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """conv3×3 with zero padding 1, without bias: x [N,C,H,W], weight [O,C,3,3] -> [N,O,H,W] in channels_last.

    By Winograd in float32 where both numbers of channels make that worth while, else by oneDNN.
    """
    plain = torch.is_autocast_enabled("cpu") or {x.dtype, weight.dtype} != {torch.float32} or not x.numel()
    if plain or min(weight.shape[:2]) < WINOGRAD_CHANNELS or weight.shape[0] % 16 or weight.shape[1] % 16:
        return functional.conv2d(x, weight, padding=1)
    return _Winograd.apply(x, weight)


def norm_relu_sum(inputs: Sequence[Tensor], norms: Sequence[nn.BatchNorm2d], weights: Tensor | None) -> Tensor:
    """sum_b weights[b]·relu(norms[b](inputs[b])): one or two inputs [N,C,H,W] -> [N,C,H,W] in channels_last.

    The norms are used and updated as they would be by calling them.
    """
    if not norms[0].training:
        return _apply_norms(inputs, norms, weights)
    momenta = [_advance(norm) for norm in norms]
    arguments = [tensor for x, norm in zip(inputs, norms) for tensor in (x, norm.weight, norm.bias)]
    running = [(norm.running_mean, norm.running_var, momentum, norm.eps) for norm, momentum in zip(norms, momenta)]
    return _NormReluSum.apply(running, weights, *arguments)


class _Involution(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor, kernel: Tensor, relu: bool) -> Tensor:
        x, kernel = _nhwc(x.detach()), _tap_major(kernel.detach())
        ctx.save_for_backward(x, kernel)
        ctx.relu = relu
        y = torch.empty_like(x, memory_format=torch.channels_last)
        _kernel("involution", x.dtype)(*_addresses(x, kernel, y), byref(_shape(x)), relu)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, kernel = ctx.saved_tensors
        grad = _nhwc(grad)
        grad_x = torch.empty_like(x, memory_format=torch.channels_last) if ctx.needs_input_grad[0] else None
        grad_kernel = torch.empty_like(kernel) if ctx.needs_input_grad[1] else None
        _kernel("involution_backward", x.dtype)(*_addresses(grad, x, kernel, grad_x, grad_kernel), byref(_shape(x)),
                                                ctx.relu)
        return grad_x, None if grad_kernel is None else grad_kernel.permute(0, 4, 3, 1, 2), None


class _GeneratedInvolution(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        x, hidden = _nhwc(x.detach()), _nhwc(hidden.detach())
        weight, bias = weight.detach().contiguous(), bias.detach()
        ctx.save_for_backward(x, hidden, weight, bias)
        ctx.relu = relu
        y = torch.empty_like(x, memory_format=torch.channels_last)
        _kernel("generated", x.dtype)(*_addresses(x, hidden, weight, bias, y), byref(_shape(x)), hidden.shape[1], relu)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, weight, bias = ctx.saved_tensors
        grad, wanted = _nhwc(grad), ctx.needs_input_grad
        grad_x = torch.empty_like(x, memory_format=torch.channels_last) if wanted[0] else None
        grad_hidden = torch.empty_like(hidden, memory_format=torch.channels_last)
        grad_weight, grad_bias = ((torch.empty_like(weight), torch.empty_like(bias)) if wanted[2] or wanted[3] else
                                  (None, None))
        _kernel("generated_backward", x.dtype)(
            *_addresses(grad, x, hidden, weight, bias, grad_x, grad_hidden, grad_weight, grad_bias), byref(_shape(x)),
            hidden.shape[1], ctx.relu)
        return grad_x, grad_hidden, grad_weight, grad_bias, None


class _Winograd(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = _nhwc(x.detach()), weight.detach().contiguous()
        ctx.save_for_backward(x, weight)
        return _winograd(x, weight, turned=False)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = _nhwc(grad)
        grad_x = _winograd(grad, weight, turned=True) if ctx.needs_input_grad[0] else None
        grad_weight = conv2d_weight(x, weight.shape, grad, padding=1) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight


def _winograd(x: Tensor, weight: Tensor, turned: bool) -> Tensor:
    samples, channels, height, width = x.shape
    y = torch.empty((samples, weight.shape[1 if turned else 0], height, width), memory_format=torch.channels_last)
    shape = _ConvShape(samples, height, width, channels, y.shape[1])
    _kernel("winograd", x.dtype)(*_addresses(x, weight, y), byref(shape), turned)
    return y


class _NormReluSum(torch.autograd.Function):
    """Training mode: batch statistics, running ones updated."""

    @staticmethod
    def forward(ctx, running: list[tuple[Tensor, Tensor, float, float]], weights: Tensor | None,
                *arguments: Tensor) -> Tensor:
        arguments = [argument.detach() for argument in arguments]
        inputs, gammas, betas = [_nhwc(x) for x in arguments[::3]], arguments[1::3], arguments[2::3]
        statistics = gammas[0].new_empty(len(inputs), 2, inputs[0].shape[1])                  # mean, rstd of the batch
        norms = (_Norm * len(inputs))(*(
            _Norm(*_addresses(gamma, beta, *measured, mean, variance))
            for gamma, beta, measured, (mean, variance, _, _) in zip(gammas, betas, statistics, running)))
        for x, norm, (_, _, momentum, eps) in zip(inputs, norms, running):
            _kernel("measure", x.dtype)(x.data_ptr(), byref(norm), *_rows(x), momentum, eps)
        ctx.save_for_backward(statistics, *inputs, *gammas, *betas)
        ctx.weights = None if weights is None else weights.tolist()
        return _mix(inputs, norms, ctx.weights)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        statistics, *saved = ctx.saved_tensors
        count, grad = len(statistics), _nhwc(grad)
        inputs, gammas, betas = saved[:count], saved[count:2 * count], saved[2 * count:]
        norms = (_Norm * count)(*(_Norm(*_addresses(gamma, beta, *measured, None, None))
                                  for gamma, beta, measured in zip(gammas, betas, statistics)))
        grad_inputs = [torch.empty_like(x, memory_format=torch.channels_last) for x in inputs]
        grad_gammas, grad_betas = statistics.new_empty(2, *statistics[:, 0].shape)                        # [count, C]
        grad_weights = statistics.new_empty(count)
        _kernel("mix_backward", grad.dtype)(
            grad.data_ptr(), _pointers(inputs), norms, _floats(ctx.weights, count), count, *_rows(grad),
            _pointers(grad_inputs), *_addresses(grad_gammas, grad_betas, grad_weights))
        found = [part for parts in zip(grad_inputs, grad_gammas, grad_betas) for part in parts]
        return None, grad_weights if ctx.weights else None, *found


def _apply_norms(inputs: Sequence[Tensor], norms: Sequence[nn.BatchNorm2d], weights: Tensor | None) -> Tensor:
    """Evaluation mode: running statistics.  Without gradient."""
    inputs = [_nhwc(x.detach()) for x in inputs]
    inverse = [(norm.running_var + norm.eps).rsqrt() for norm in norms]
    table = (_Norm * len(inputs))(*(
        _Norm(*_addresses(norm.weight, norm.bias, norm.running_mean, rstd, None, None))
        for norm, rstd in zip(norms, inverse)))
    return _mix(inputs, table, None if weights is None else weights.tolist())


def _mix(inputs: Sequence[Tensor], norms: ctypes.Array, weights: list[float] | None) -> Tensor:
    y = torch.empty_like(inputs[0], memory_format=torch.channels_last)
    _kernel("mix", y.dtype)(_pointers(inputs), norms, _floats(weights, len(inputs)), len(inputs), *_rows(y),
                            y.data_ptr())
    return y


def _advance(norm: nn.BatchNorm2d) -> float:
    """Count one more batch; the weight of the new statistics (momentum None means a cumulative average)."""
    norm.num_batches_tracked.add_(1)
    return 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum


def _nhwc(x: Tensor) -> Tensor:
    """[N,C,H,W] with memory [N,H,W,C]."""
    return x.contiguous(memory_format=torch.channels_last)


def _tap_major(kernel: Tensor) -> Tensor:
    """[N,G,9,H,W] -> contiguous [N,H,W,9,G]."""
    return kernel.permute(0, 3, 4, 2, 1).contiguous()


def _shape(x: Tensor) -> _Shape:
    samples, channels, height, width = x.shape
    return _Shape(samples, height, width, channels, group_count(channels))


def _rows(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[1], x.shape[1]


def _addresses(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (c_void_p * len(tensors))(*map(Tensor.data_ptr, tensors))


def _floats(weights: list[float] | None, count: int) -> ctypes.Array:
    return (c_float * count)(*(weights or [1.0] * count))
