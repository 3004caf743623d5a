"""Patches with flips and radiation noise by the C++ kernel of patches.cpp, for tensors on a CPU."""

from __future__ import annotations

import functools
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_uint64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from model.ops.build import library
from model.ops.reference import RADIATION_GAIN, RADIATION_NOISE, check_augmented

SOURCE = Path(__file__).with_name("patches.cpp")


class _Scene(Structure):
    _fields_ = [("cube", c_void_p), *((name, c_int64) for name in ("bands", "height", "width", "row_step",
                                                                  "column_step"))]


class _Draws(Structure):
    _fields_ = [("seed", c_uint64), ("first", c_int64), ("flip", c_int), ("radiation", c_int),
                ("gain_low", c_float), ("gain_width", c_float), ("noise", c_float)]


@functools.cache
def _kernel():
    function = library(SOURCE).gather_augmented
    function.argtypes = [POINTER(_Scene), c_void_p, c_void_p, c_int64, c_int64, POINTER(_Draws), c_int, c_int]
    function.restype = None
    return function


def gather_augmented(cube: Tensor, centres: Tensor, size: int, seed: Tensor, first: int = 0, flip: bool = True,
                     radiation: bool = True, channels_last: bool = False) -> Tensor:
    """The numbers of `reference.gather_augmented`, but for roundings.

    The cube [B,H,W] float32 should have a pixel's bands side by side; any other is copied at every call.
    Raises ValueError for other types, BuildError where the kernel cannot be built.
    """
    check_augmented(cube, centres, seed)
    image = cube.permute(1, 2, 0)
    image = image if image.stride(2) == 1 else image.contiguous()
    height, width, bands = image.shape
    centres = centres.contiguous()
    patches = torch.empty((len(centres), bands, size, size),
                          memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    low, high = RADIATION_GAIN
    scene = _Scene(image.data_ptr(), bands, height, width, image.stride(0), image.stride(1))
    draws = _Draws(seed.item() & 0xFFFFFFFFFFFFFFFF, first, flip, radiation, low, high - low, RADIATION_NOISE)
    _kernel()(byref(scene), centres.data_ptr(), patches.data_ptr(), len(centres), size, byref(draws), channels_last,
              torch.get_num_threads())
    return patches
