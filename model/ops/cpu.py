"""The C++ kernels for tensors on a CPU: involution and 3×3 convolution (the norms are in norms_cpu.py).

They take images in float32 and bfloat16, channels_last (NHWC in memory), and copy others into that layout first;
parameters in float32; no empty images (model/layers.py and model/ops choose).  Compiled graphs break at them.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, Structure, byref, c_int, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from model.ops.build import BuildError, compiled_kernel, library
from model.ops.reference import group_count

SOURCES = {name: Path(__file__).with_name(f"{name}.cpp") for name in ("involution", "winograd")}
MORE_SOURCES = (*(Path(__file__).with_name(f"{name}.cpp") for name in ("norm", "instance", "patches")),
                Path(__file__).parents[1] / "scan" / "scan.cpp")                             # called from elsewhere
WINOGRAD_CHANNELS = 96       # from here on Winograd is faster than oneDNN's direct convolution (1.25 times at 128)


class _Shape(Structure):
    _fields_ = [(name, c_int64) for name in ("samples", "height", "width", "channels", "groups")]


class _ConvShape(Structure):
    _fields_ = [(name, c_int64) for name in ("samples", "height", "width", "in_channels", "out_channels")]


_ARGUMENTS = {
    "involution": {
        "involution": [c_void_p] * 3 + [POINTER(_Shape), c_int],
        "involution_backward": [c_void_p] * 5 + [POINTER(_Shape), c_int],
        "generated": [c_void_p] * 5 + [POINTER(_Shape), c_int64, c_int],
        "generated_backward": [c_void_p] * 9 + [POINTER(_Shape), c_int64, c_int],
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


class _Involution(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor, kernel: Tensor, relu: bool) -> Tensor:
        x, kernel = nhwc(x.detach()), _tap_major(kernel.detach())
        ctx.save_for_backward(x, kernel)
        ctx.relu = relu
        y = torch.empty_like(x, memory_format=torch.channels_last)
        _kernel("involution", x.dtype)(*addresses(x, kernel, y), byref(_shape(x)), relu)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, kernel = ctx.saved_tensors
        grad = nhwc(grad)
        grad_x = torch.empty_like(x, memory_format=torch.channels_last) if ctx.needs_input_grad[0] else None
        grad_kernel = torch.empty_like(kernel) if ctx.needs_input_grad[1] else None
        _kernel("involution_backward", x.dtype)(*addresses(grad, x, kernel, grad_x, grad_kernel), byref(_shape(x)),
                                                ctx.relu)
        return grad_x, None if grad_kernel is None else grad_kernel.permute(0, 4, 3, 1, 2), None


class _GeneratedInvolution(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        x, hidden = nhwc(x.detach()), nhwc(hidden.detach())
        weight, bias = weight.detach().contiguous(), bias.detach()
        ctx.save_for_backward(x, hidden, weight, bias)
        ctx.relu = relu
        y = torch.empty_like(x, memory_format=torch.channels_last)
        _kernel("generated", x.dtype)(*addresses(x, hidden, weight, bias, y), byref(_shape(x)), hidden.shape[1], relu)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, weight, bias = ctx.saved_tensors
        grad, wanted = nhwc(grad), ctx.needs_input_grad
        grad_x = torch.empty_like(x, memory_format=torch.channels_last) if wanted[0] else None
        grad_hidden = torch.empty_like(hidden, memory_format=torch.channels_last)
        grad_weight, grad_bias = ((torch.empty_like(weight), torch.empty_like(bias)) if wanted[2] or wanted[3] else
                                  (None, None))
        _kernel("generated_backward", x.dtype)(
            *addresses(grad, x, hidden, weight, bias, grad_x, grad_hidden, grad_weight, grad_bias), byref(_shape(x)),
            hidden.shape[1], ctx.relu)
        return grad_x, grad_hidden, grad_weight, grad_bias, None


class _Winograd(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = nhwc(x.detach()), weight.detach().contiguous()
        ctx.save_for_backward(x, weight)
        return _winograd(x, weight, turned=False)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = nhwc(grad)
        grad_x = _winograd(grad, weight, turned=True) if ctx.needs_input_grad[0] else None
        grad_weight = conv2d_weight(x, weight.shape, grad, padding=1) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight


def _winograd(x: Tensor, weight: Tensor, turned: bool) -> Tensor:
    samples, channels, height, width = x.shape
    y = torch.empty((samples, weight.shape[1 if turned else 0], height, width), memory_format=torch.channels_last)
    shape = _ConvShape(samples, height, width, channels, y.shape[1])
    _kernel("winograd", x.dtype)(*addresses(x, weight, y), byref(shape), turned)
    return y


def nhwc(x: Tensor) -> Tensor:
    """[N,C,H,W] with memory [N,H,W,C]."""
    return x.contiguous(memory_format=torch.channels_last)


def _tap_major(kernel: Tensor) -> Tensor:
    """[N,G,9,H,W] -> contiguous [N,H,W,9,G]."""
    return kernel.permute(0, 3, 4, 2, 1).contiguous()


def _shape(x: Tensor) -> _Shape:
    samples, channels, height, width = x.shape
    return _Shape(samples, height, width, channels, group_count(channels))


def addresses(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]
