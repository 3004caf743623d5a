"""Involution and patch gather: one function each, whatever computes them.

Backends: `reference` (plain PyTorch, any device), `cpu` (C++ kernels), `cupy` (CUDA kernels), `auto` (cpu on a CPU,
cupy on a CUDA device, each where it works, else reference).  The choice is logged once per device by the logger
`model.ops`.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from model.errors import ConfigError
from model.ops import cpu, cuda, reference
from model.ops.build import DTYPES

__all__ = ["involution", "gather_patches", "resolve_backend"]

BACKENDS = ("auto", "reference", "cpu", "cupy")

_log = logging.getLogger(__name__)


def involution(x: Tensor, kernel: Tensor, *, backend: str = "auto", relu: bool = False) -> Tensor:
    """y[n,c,i,j] = sum_{u,v in -1..1} kernel[n,g(c),3(u+1)+(v+1),i,j] x[n,c,i+u,j+v], x zero outside the patch.

    x [N,C,H,W], kernel [N,G,9,H,W] -> [N,C,H,W], with G = max(1, C // 3) and g(c) = min(c // 3, G - 1) (Li et al.,
    CVPR 2021; docs/method.md, "Involution").  With `relu`, max(kernel, 0) stands for the kernel.  Under autocast both
    are cast to its type, as for a convolution.  The C++ kernels take float32 and bfloat16; other types go to the
    reference.

    Raises ValueError for shapes, types or devices that do not fit, ConfigError for a backend that cannot run.
    """
    x, kernel = _autocast(x, x.device.type), _autocast(kernel, x.device.type)
    _check_involution(x, kernel)
    chosen = resolve_backend(backend, x.device)
    if chosen == "cpu" and x.dtype in DTYPES and x.numel():
        return cpu.involution(x, kernel, relu)
    if chosen == "cupy":
        return cuda.involution(x, kernel, relu)
    return reference.involution(x, kernel.relu() if relu else kernel)


def gather_patches(cube: Tensor, centres: Tensor, size: int, *, backend: str = "auto") -> Tensor:
    """Square patches around pixels of a scene, which is mirrored at its edge with the edge pixel repeated.

    cube [B,H,W], centres [N,2] int64 (row, column), size odd -> [N,B,size,size] of the cube's type.  No gradient is
    promised.  Centres on the CPU are checked; on a GPU a look at them would stall the device, so one outside the scene
    gives an undefined patch there.

    Raises ValueError for arguments that do not fit, ConfigError for a backend that cannot run.
    """
    _check_gather(cube, centres, size)
    cupy = resolve_backend(backend, cube.device) == "cupy"
    operator = cuda.gather_patches if cupy else reference.gather_patches
    return operator(cube, centres, size)


def resolve_backend(backend: str, device: torch.device) -> str:
    """The backend, `reference`, `cpu` or `cupy`, that a request comes to on a device.

    Raises ConfigError for an unknown name, and for `cpu` or `cupy` where it cannot run.
    """
    return _resolve(backend, device)


resolve_backend._dynamo_marked_constant = True      # torch.compiler.assume_constant_result, which loads the compiler


@functools.cache
def _resolve(backend: str, device: torch.device) -> str:
    if backend not in BACKENDS:
        raise ConfigError(f"backend '{backend}' is unknown. Choose one of {', '.join(BACKENDS)}.")
    fast = {"cpu": "cpu", "cuda": "cupy"}.get(device.type, "reference")
    if backend == "reference" or (backend == "auto" and fast == "reference"):
        _log.info("backend on %s: reference", device)
        return "reference"
    wanted = fast if backend == "auto" else backend
    reason = _unavailable_reason(wanted, device)
    if reason is None:
        _log.info("backend on %s: %s", device, wanted)
        return wanted
    if backend != "auto":
        raise ConfigError(f"backend '{backend}' cannot run: {reason}, or use the backend 'auto' or 'reference'.")
    _log.info("backend on %s: reference, since %s cannot run: %s for the faster kernels.", device, wanted, reason)
    return "reference"


def _unavailable_reason(backend: str, device: torch.device) -> str | None:
    """Why a backend cannot run on a device, and what would help; None where it can."""
    if backend == "cpu":
        return cpu.unavailable_reason() if device.type == "cpu" else \
            f"the device is {device}, not a CPU. Choose the backend 'cupy'"
    if (reason := cuda.unavailable_reason(device)) is None:
        return None
    if device.type != "cuda":
        return f"{reason}. Move model and data to a CUDA device"
    if torch.version.cuda is None:
        return f"{reason}. Install a PyTorch that is built for CUDA (https://pytorch.org/get-started/locally)"
    wanted = f"cupy-cuda{torch.version.cuda.split('.')[0]}x"
    others = " ".join(sorted(cuda.packages().keys() - {wanted}))      # two of them overwrite each other's files
    first = f"pip uninstall {others}, then " if others else ""
    return f'{reason}. Install CuPy and its CUDA parts with {first}pip install "{wanted}[ctk]"'


def _autocast(tensor: Tensor, device_type: str) -> Tensor:
    """The tensor in autocast's type, where that is on (float64 is left alone, as autocast itself does)."""
    if torch.is_autocast_enabled(device_type) and tensor.is_floating_point() and tensor.dtype != torch.float64:
        return tensor.to(torch.get_autocast_dtype(device_type))
    return tensor


def _check_involution(x: Tensor, kernel: Tensor) -> None:
    if x.dim() != 4 or x.shape[1] < 1:
        raise ValueError(f"involution: x has shape {tuple(x.shape)}, expected [N, C, H, W] with at least one channel.")
    batch, channels, height, width = x.shape
    expected = (batch, reference.group_count(channels), reference.TAPS, height, width)
    if tuple(kernel.shape) != expected:
        raise ValueError(f"involution: the kernel has shape {tuple(kernel.shape)}, expected {expected}: "
                         f"[N, G, 9, H, W] with G = max(1, C // 3) = {expected[1]} groups for {channels} channels.")
    if x.dtype != kernel.dtype or x.dtype not in cuda.DTYPES:
        raise ValueError(f"involution: x is {x.dtype} and the kernel {kernel.dtype}; both must have the same type, "
                         f"one of {', '.join(map(str, cuda.DTYPES))}.")
    if x.device != kernel.device:
        raise ValueError(f"involution: x is on {x.device} and the kernel on {kernel.device}. Move them together.")


def _check_gather(cube: Tensor, centres: Tensor, size: int) -> None:
    if cube.dim() != 3 or cube.is_complex():
        raise ValueError(f"gather_patches: the cube is {cube.dtype} {tuple(cube.shape)}, expected real [B, H, W].")
    if centres.dim() != 2 or centres.shape[1] != 2 or centres.dtype != torch.int64:
        raise ValueError(f"gather_patches: the centres are {centres.dtype} {tuple(centres.shape)}, expected int64 "
                         "[N, 2] (row, column).")
    if size < 1 or size % 2 == 0:
        raise ValueError(f"gather_patches: size {size} has no centre pixel. Use an odd patch size.")
    height, width = cube.shape[1:]
    if min(height, width) < size // 2:
        raise ValueError(f"gather_patches: a scene of {height} x {width} pixels cannot be mirrored {size // 2} pixels "
                         f"beyond its edge. Use a patch size of at most {2 * min(height, width) + 1}.")
    if cube.device != centres.device:
        raise ValueError(f"gather_patches: the cube is on {cube.device} and the centres on {centres.device}. "
                         "Move them together.")
    if centres.device.type == "cpu" and not torch.compiler.is_compiling():
        outside = ((centres < 0) | (centres >= torch.tensor([height, width]))).any(dim=1)
        if outside.any():
            raise ValueError(f"gather_patches: centre {tuple(centres[outside][0].tolist())} lies outside the scene of "
                             f"{height} x {width} pixels.")
