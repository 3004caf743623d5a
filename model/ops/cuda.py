"""Involution and patch gather as CUDA kernels (involution.cu, patches.cu), registered as `s2amsnet::` operators; and
how CUDA kernels, those of norms_cuda.py among them, are built (by CuPy) and started.

Registered operators keep autograd and torch.compile working.  Each has the reference as its CPU implementation, so that
the registration can be checked on a machine without a GPU.  CuPy is imported only when a kernel is built.

Images are NCHW ("planes") or channels_last ("pixels"), and results have the layout of their inputs: images that of x or
of the gradient they come from, kernel gradients that of the kernel.  For pixels the kernel [N,G,9,H,W] may lie as
[N,H,W,9,G] (tap-major, the fast one) or [N,H,W,G,9]; for planes as it is.  Anything else is copied first.

Starting a kernel neither waits for the device nor allocates but for its result, through PyTorch, so all of them can be
captured in a CUDA graph, once they have run before (the driver loads a kernel when it first runs).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.ops import reference

SOURCES = tuple(Path(__file__).with_name(name)
                for name in ("common.cuh", "involution.cu", "patches.cu", "norm.cu", "norm_grad.cu",
                             "instance.cu", "taps.cu"))
OPTIONS = ("--std=c++17",)
PACKAGE = re.compile(r"cupy(-cuda\d+x)?", re.IGNORECASE)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
PACKS = {"planes": {8: (1,), 4: (4, 1), 2: (4, 1)},          # numbers that move together, by layout and bytes of each
         "pixels": {8: (1,), 4: (4, 2, 1), 2: (8, 2, 1)},
         "norms": {8: (1,), 4: (4, 1), 2: (4, 1)}}
QUAD = reference.QUAD
THREADS = 256             # per block
MAX_BLOCKS = 1 << 20      # the kernels stride over what a grid of this size leaves
MAX_WORK = 1 << 31        # they count what there is to do in 32 bits


def source() -> str:
    """The text of all kernels, with the files' own line numbers for the compiler's messages."""
    return "\n".join(f'#line 1 "{path.name}"\n{path.read_text(encoding="utf-8")}' for path in SOURCES)


def unavailable_reason(device: torch.device) -> str | None:
    """Why the kernels cannot run on the device, or None where they can (they are built to find out)."""
    if device.type != "cuda":
        return f"it needs CUDA tensors, and this one is on '{device.type}'"
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} was built without CUDA"
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


def packages() -> dict[str, str]:
    """The CuPy that is installed, by the name of its package: cupy-cuda13x, cupy-cuda12x, cupy; name -> version."""
    return {found.name: found.version for found in metadata.distributions() if PACKAGE.fullmatch(found.name or "")}


@functools.cache
def _module(device_index: int | None):
    """The built kernels of one device; CuPy keeps the machine code on disk for the next process."""
    import cupy
    with torch.cuda.device(device_index):
        module = cupy.RawModule(code=source(), options=OPTIONS)
        module.compile()
    return module


@functools.cache
def _function(name: str, device_index: int):
    return _module(device_index).get_function(name)


def run_kernel(name: str, device: torch.device, blocks: int, arguments: tuple) -> None:
    """Start a kernel on the device, in PyTorch's current stream, with numpy's int64, float32 and float64 as
    arguments.

    PyTorch switches to the device and back, and the kernel is handed its stream: CuPy's own guard would make device 0
    current on its way back, which takes half a gigabyte there and fails where that device is full or another's.
    """
    import cupy
    with torch.cuda.device(device):
        stream = cupy.cuda.Stream.from_external(torch.cuda.current_stream(device))
        _function(name, device.index)((blocks,), (THREADS,), arguments, stream=stream)


def start(name: str, tensors: Sequence[Tensor | None], sizes: tuple[int, ...], work: int,
          numbers: tuple[np.number, ...] = ()) -> None:
    """Run a kernel on tensors, of which the last is a result (None is a null pointer), `work` being the number of
    threads it has a use for."""
    if work >= MAX_WORK:
        raise ValueError(f"{name}: {tuple(tensors[-1].shape)} is too large for one call. Split the batch.")
    if work:
        pointers = (0 if tensor is None else tensor.data_ptr() for tensor in tensors)
        blocks = min(-(-work // THREADS), MAX_BLOCKS)
        run_kernel(name, tensors[-1].device, blocks, (*map(np.int64, (*pointers, *sizes)), *numbers))


def _launch(name: str, out: Tensor, inputs: tuple[Tensor, ...], sizes: tuple[int, ...], work: int,
            numbers: tuple[float, ...] = ()) -> Tensor:
    """Run a kernel that fills `out`."""
    start(name, (*inputs, out), sizes, work, tuple(map(np.float32, numbers)))
    return out


# ---- involution ----

def by_pixels(image: Tensor, kernel: Tensor) -> bool:
    """Whether an involution works on pixels: where the image is channels_last and not NCHW as well.  An image of one
    channel or one pixel is both, and the kernel decides."""
    if not image.is_contiguous(memory_format=torch.channels_last):
        return False
    return not image.is_contiguous() or not kernel.is_contiguous()


def _image(image: Tensor, pixels: bool) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last if pixels else torch.contiguous_format)


def _kernel(kernel: Tensor, pixels: bool) -> Tensor:
    """The kernel in a layout that the kernels take: see the module."""
    if not pixels:
        return kernel.contiguous()
    if kernel.permute(0, 3, 4, 1, 2).is_contiguous():
        return kernel
    return kernel.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2)


def pack_of(layout: str, lengths: tuple[int, ...], tensors: Sequence[Tensor]) -> int:
    """How many numbers move together: it divides the lengths of the runs, and the tensors, the first of which is an
    image, start at a pack."""
    return next(pack for pack in PACKS[layout][tensors[0].element_size()]
                if all(length % pack == 0 for length in lengths)
                and all(tensor.data_ptr() % (pack * tensor.element_size()) == 0 for tensor in tensors))


def _launch_involution(name: str, images: tuple[Tensor, ...], kernel: Tensor, relu: bool, like_kernel: bool) -> Tensor:
    """Start a kernel on `images` and the kernel; the result is like the kernel or like the first image."""
    pixels = by_pixels(images[0], kernel)
    images, kernel = tuple(_image(image, pixels) for image in images), _kernel(kernel, pixels)
    out = torch.empty_like(kernel if like_kernel else images[0])
    samples, channels, height, width = images[0].shape
    groups, group_step, tap_step = kernel.shape[1], kernel.stride(1), kernel.stride(2)
    if pixels:
        layout, lengths = "pixels", (groups, channels) if tap_step == groups else (1,)
    else:
        layout, lengths = "planes", (width,)
    pack = pack_of(layout, lengths, (*images, kernel, out))
    return _launch(f"{name}_{layout}{pack}_{str(out.dtype).removeprefix('torch.')}", out, (*images, kernel),
                   (samples, channels, groups, height, width, tap_step, group_step, relu),
                   samples * groups * height * width // pack)


@torch.library.custom_op("s2amsnet::involution", mutates_args=(), device_types="cpu")
def involution(x: Tensor, kernel: Tensor, relu: bool = False) -> Tensor:
    """x [N,C,H,W], kernel [N,G,9,H,W] -> [N,C,H,W]; with `relu`, max(kernel, 0) stands for the kernel."""
    return _like_image(x, kernel).copy_(reference.forward(x, kernel.relu() if relu else kernel))


@torch.library.custom_op("s2amsnet::involution_grad_input", mutates_args=(), device_types="cpu")
def involution_grad_input(grad: Tensor, kernel: Tensor, relu: bool = False) -> Tensor:
    """grad [N,C,H,W], kernel [N,G,9,H,W] -> [N,C,H,W]."""
    return _like_image(grad, kernel).copy_(reference.grad_input(grad, kernel.relu() if relu else kernel))


@torch.library.custom_op("s2amsnet::involution_grad_kernel", mutates_args=(), device_types="cpu")
def involution_grad_kernel(grad: Tensor, x: Tensor, kernel: Tensor, relu: bool = False) -> Tensor:
    """grad [N,C,H,W], x [N,C,H,W] -> [N,G,9,H,W], which gets its layout and, with `relu`, its zeros from the kernel."""
    result = reference.grad_kernel(grad, x)
    return _like_kernel(grad, x, kernel).copy_(result.masked_fill_(kernel <= 0, 0) if relu else result)


@involution.register_fake
@involution_grad_input.register_fake
def _like_image(image: Tensor, kernel: Tensor, relu: bool = False) -> Tensor:
    return torch.empty_like(_image(image, by_pixels(image, kernel)))


@involution_grad_kernel.register_fake
def _like_kernel(grad: Tensor, x: Tensor, kernel: Tensor, relu: bool = False) -> Tensor:
    return torch.empty_like(_kernel(kernel, by_pixels(grad, kernel)))


@involution.register_kernel("cuda")
def launch_involution(x: Tensor, kernel: Tensor, relu: bool = False) -> Tensor:
    return _launch_involution("involution", (x,), kernel, relu, like_kernel=False)


@involution_grad_input.register_kernel("cuda")
def launch_grad_input(grad: Tensor, kernel: Tensor, relu: bool = False) -> Tensor:
    return _launch_involution("involution_grad_input", (grad,), kernel, relu, like_kernel=False)


@involution_grad_kernel.register_kernel("cuda")
def launch_grad_kernel(grad: Tensor, x: Tensor, kernel: Tensor, relu: bool = False) -> Tensor:
    return _launch_involution("involution_grad_kernel", (grad, x), kernel, relu, like_kernel=True)


def _save_inputs(ctx, inputs: tuple[Tensor | bool, ...], output: Tensor) -> None:
    *tensors, ctx.relu = inputs
    ctx.save_for_backward(*tensors)


# The involution is linear in x and in the kernel, so with <.,.> the sum over all elements
# <involution(x, k), g> = <x, grad_input(g, k)> = <k, grad_kernel(g, x)>: the three are each other's gradients.
# What comes from behind is brought into the layout of x first, so that the gradients have the layouts of x and kernel.
def _involution_backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, kernel = ctx.saved_tensors
    grad = _image(grad, by_pixels(x, kernel))
    return (involution_grad_input(grad, kernel, ctx.relu) if ctx.needs_input_grad[0] else None,
            involution_grad_kernel(grad, x, kernel, ctx.relu) if ctx.needs_input_grad[1] else None, None)


def _grad_input_backward(ctx, v: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    grad, kernel = ctx.saved_tensors
    v = _image(v, by_pixels(grad, kernel))
    return (involution(v, kernel, ctx.relu) if ctx.needs_input_grad[0] else None,
            involution_grad_kernel(grad, v, kernel, ctx.relu) if ctx.needs_input_grad[1] else None, None)


def _grad_kernel_backward(ctx, v: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    grad, x, kernel = ctx.saved_tensors
    v = torch.where(kernel > 0, v, 0) if ctx.relu else v
    return (involution(x, v) if ctx.needs_input_grad[0] else None,
            involution_grad_input(grad, v) if ctx.needs_input_grad[1] else None, None, None)


involution.register_autograd(_involution_backward, setup_context=_save_inputs)
involution_grad_input.register_autograd(_grad_input_backward, setup_context=_save_inputs)
involution_grad_kernel.register_autograd(_grad_kernel_backward, setup_context=_save_inputs)


# ---- patches ----

@torch.library.custom_op("s2amsnet::gather_patches", mutates_args=(), device_types="cpu")
def gather_patches(cube: Tensor, centres: Tensor, size: int, channels_last: bool = False) -> Tensor:
    """cube [B,H,W], laid out in any way, centres [N,2] int64 -> [N,B,size,size]."""
    return _like_patches(cube, centres, size, channels_last).copy_(reference.gather_patches(cube, centres, size))


@torch.library.custom_op("s2amsnet::gather_augmented", mutates_args=(), device_types="cpu")
def gather_augmented(cube: Tensor, centres: Tensor, size: int, seed: Tensor, first: int = 0, flip: bool = True,
                     radiation: bool = True, channels_last: bool = False) -> Tensor:
    """cube [B,H,W] float32, laid out in any way, centres [N,2] int64, seed [1] int64 -> [N,B,size,size]."""
    patches = reference.gather_augmented(cube, centres, size, seed, first, flip, radiation)
    return _like_patches(cube, centres, size, channels_last).copy_(patches)


@gather_patches.register_fake
def _like_patches(cube: Tensor, centres: Tensor, size: int, channels_last: bool = False) -> Tensor:
    return torch.empty((centres.shape[0], cube.shape[0], size, size), dtype=cube.dtype, device=cube.device,
                       memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@gather_augmented.register_fake
def _like_augmented(cube: Tensor, centres: Tensor, size: int, seed: Tensor, first: int = 0, flip: bool = True,
                    radiation: bool = True, channels_last: bool = False) -> Tensor:
    return _like_patches(cube, centres, size, channels_last)


def _launch_gather(name: str, cube: Tensor, inputs: tuple[Tensor, ...], size: int, channels_last: bool,
                   sizes: tuple[int, ...] = (), numbers: tuple[float, ...] = ()) -> Tensor:
    """Start a gather from the cube with the inputs centres and, perhaps, seed."""
    centres = inputs[0]
    out = _like_patches(cube, centres, size, channels_last)
    return _launch(name, out, (cube, *(tensor.contiguous() for tensor in inputs)),
                   (len(centres), *cube.shape, *cube.stride(), size, channels_last, *sizes),
                   len(centres) * size * size * -(-cube.shape[0] // QUAD), numbers)


@gather_patches.register_kernel("cuda")
def launch_gather(cube: Tensor, centres: Tensor, size: int, channels_last: bool = False) -> Tensor:
    return _launch_gather(f"gather_patches_{8 * cube.element_size()}bit", cube, (centres,), size, channels_last)


@gather_augmented.register_kernel("cuda")
def launch_augmented(cube: Tensor, centres: Tensor, size: int, seed: Tensor, first: int = 0, flip: bool = True,
                     radiation: bool = True, channels_last: bool = False) -> Tensor:
    reference.check_augmented(cube, centres, seed)
    low, high = reference.RADIATION_GAIN
    return _launch_gather("gather_augmented", cube, (centres, seed), size, channels_last, (first, flip, radiation),
                          (low, high - low, reference.RADIATION_NOISE))
