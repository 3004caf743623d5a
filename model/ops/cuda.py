"""The operators as CUDA kernels (kernels.cu, built by CuPy), registered with PyTorch as `s2amsnet::` operators.

Registered operators keep autograd and torch.compile working.  Each has the reference as its CPU implementation, so that
the registration can be checked on a machine without a GPU.  CuPy is imported only when a kernel is built.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.ops import reference

SOURCE = Path(__file__).with_name("kernels.cu")
OPTIONS = ("--std=c++17",)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
THREADS = 256             # per block
MAX_BLOCKS = 1 << 20      # the kernels stride over what a grid of this size leaves


def unavailable_reason(device: torch.device) -> str | None:
    """Why the kernels cannot run on the device, or None where they can (they are built to find out)."""
    if device.type != "cuda":
        return f"it needs CUDA tensors, and this one is on '{device.type}'"
    try:
        import cupy
        from cupy.cuda.compiler import CompileException
    except ImportError as error:                     # CuPy wraps the cause into a page of advice
        return f"CuPy cannot be imported ({str(error.__cause__ or error).strip().partition(chr(10))[0]})"
    if not hasattr(cupy.cuda.Stream, "from_external") or not hasattr(torch.cuda.Stream, "__cuda_stream__"):
        return (f"CuPy {cupy.__version__} and PyTorch {torch.__version__} cannot share a stream, as CuPy from 14 on "
                "and a PyTorch of its time can")
    try:
        _module(device.index)
    except (CompileException, RuntimeError, OSError) as error:   # no compiler, headers or driver that suits CuPy
        first_line = str(error).strip().partition("\n")[0]
        return f"CuPy cannot build the kernels ({type(error).__name__}: {first_line})"
    return None


@functools.cache
def _module(device_index: int | None):
    """The built kernels.cu of one device; CuPy keeps the machine code on disk for the next process."""
    import cupy
    with cupy.cuda.Device(device_index):
        module = cupy.RawModule(code=SOURCE.read_text(encoding="utf-8"), options=OPTIONS)
        module.compile()
    return module


@functools.cache
def _function(name: str, device_index: int):
    return _module(device_index).get_function(name)


def run_kernel(name: str, device: torch.device, blocks: int, arguments: tuple) -> None:
    """Start a kernel on the device, in PyTorch's current stream, with numpy scalars as arguments."""
    import cupy
    with cupy.cuda.Device(device.index), cupy.cuda.Stream.from_external(torch.cuda.current_stream(device)):
        _function(name, device.index)((blocks,), (THREADS,), arguments)


def _launch(name: str, out: Tensor, inputs: tuple[Tensor, ...], sizes: tuple[int, ...], work: int) -> Tensor:
    """Run a kernel that fills `out`, `work` being the number of threads it has a use for."""
    if work:
        pointers = (*(tensor.data_ptr() for tensor in inputs), out.data_ptr())
        blocks = min(-(-work // THREADS), MAX_BLOCKS)
        run_kernel(name, out.device, blocks, tuple(np.int64(number) for number in (*pointers, *sizes)))
    return out


def _launch_involution(name: str, out: Tensor, first: Tensor, second: Tensor, shape: torch.Size) -> Tensor:
    """shape is that of x.  The inputs are made contiguous where they are not."""
    samples, channels, height, width = shape
    groups = reference.group_count(channels)
    return _launch(f"{name}_{str(out.dtype).removeprefix('torch.')}", out, (first.contiguous(), second.contiguous()),
                   (samples, channels, groups, height, width), samples * groups * height * width)


@torch.library.custom_op("s2amsnet::involution", mutates_args=(), device_types="cpu")
def involution(x: Tensor, kernel: Tensor) -> Tensor:
    """x [N,C,H,W], kernel [N,G,9,H,W] -> [N,C,H,W]."""
    return reference.forward(x, kernel)


@torch.library.custom_op("s2amsnet::involution_grad_input", mutates_args=(), device_types="cpu")
def involution_grad_input(grad: Tensor, kernel: Tensor) -> Tensor:
    """grad [N,C,H,W], kernel [N,G,9,H,W] -> [N,C,H,W]."""
    return reference.grad_input(grad, kernel)


@torch.library.custom_op("s2amsnet::involution_grad_kernel", mutates_args=(), device_types="cpu")
def involution_grad_kernel(grad: Tensor, x: Tensor) -> Tensor:
    """grad [N,C,H,W], x [N,C,H,W] -> [N,G,9,H,W]."""
    return reference.grad_kernel(grad, x)


@torch.library.custom_op("s2amsnet::gather_patches", mutates_args=(), device_types="cpu")
def gather_patches(cube: Tensor, centres: Tensor, size: int) -> Tensor:
    """cube [B,H,W], centres [N,2] int64 -> [N,B,size,size]."""
    return reference.gather_patches(cube, centres, size)


@involution.register_fake
@involution_grad_input.register_fake
def _like_first(first: Tensor, second: Tensor) -> Tensor:
    return torch.empty_like(first, memory_format=torch.contiguous_format)


@involution_grad_kernel.register_fake
def _like_kernel(grad: Tensor, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.new_empty(batch, reference.group_count(channels), reference.TAPS, height, width)


@gather_patches.register_fake
def _like_patches(cube: Tensor, centres: Tensor, size: int) -> Tensor:
    return cube.new_empty(centres.shape[0], cube.shape[0], size, size)


@involution.register_kernel("cuda")
def launch_involution(x: Tensor, kernel: Tensor) -> Tensor:
    return _launch_involution("involution", _like_first(x, kernel), x, kernel, x.shape)


@involution_grad_input.register_kernel("cuda")
def launch_grad_input(grad: Tensor, kernel: Tensor) -> Tensor:
    return _launch_involution("involution_grad_input", _like_first(grad, kernel), grad, kernel, grad.shape)


@involution_grad_kernel.register_kernel("cuda")
def launch_grad_kernel(grad: Tensor, x: Tensor) -> Tensor:
    return _launch_involution("involution_grad_kernel", _like_kernel(grad, x), grad, x, x.shape)


@gather_patches.register_kernel("cuda")
def launch_gather(cube: Tensor, centres: Tensor, size: int) -> Tensor:
    out = _like_patches(cube, centres, size)
    return _launch(f"gather_patches_{8 * cube.element_size()}bit", out, (cube.contiguous(), centres.contiguous()),
                   (len(centres), *cube.shape, size), out.numel())


def _save_inputs(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


# The involution is linear in x and in the kernel, so with <.,.> the sum over all elements
# <involution(x, k), g> = <x, grad_input(g, k)> = <k, grad_kernel(g, x)>: the three are each other's gradients.
def _involution_backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, kernel = ctx.saved_tensors
    return (involution_grad_input(grad, kernel) if ctx.needs_input_grad[0] else None,
            involution_grad_kernel(grad, x) if ctx.needs_input_grad[1] else None)


def _grad_input_backward(ctx, v: Tensor) -> tuple[Tensor | None, Tensor | None]:
    grad, kernel = ctx.saved_tensors
    return (involution(v, kernel) if ctx.needs_input_grad[0] else None,
            involution_grad_kernel(grad, v) if ctx.needs_input_grad[1] else None)


def _grad_kernel_backward(ctx, v: Tensor) -> tuple[Tensor | None, Tensor | None]:
    grad, x = ctx.saved_tensors
    return (involution(x, v) if ctx.needs_input_grad[0] else None,
            involution_grad_input(grad, v) if ctx.needs_input_grad[1] else None)


involution.register_autograd(_involution_backward, setup_context=_save_inputs)
involution_grad_input.register_autograd(_grad_input_backward, setup_context=_save_inputs)
involution_grad_kernel.register_autograd(_grad_kernel_backward, setup_context=_save_inputs)
