"""The operators of scanner.py with the C++ kernels of scan.cpp: reference.py's functions on a CPU.

They take float32 and bfloat16.  The maps that go in must be contiguous; what `mix` writes may be a part of larger maps.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Iterable
from ctypes import POINTER, Structure, byref, c_int, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from model.ops.build import DTYPES, BuildError, compiled_kernel, library
from model.scan.classes import OUTSIDE, TAPS, Table, column_taps, shares

__all__ = ["DTYPES", "involve", "mix", "pool", "unavailable_reason"]

SOURCE = Path(__file__).with_name("scan.cpp")


class _Maps(Structure):
    _fields_ = [(name, c_int64) for name in ("before", "after", "rows", "columns", "channels")]


_ARGUMENTS = {
    "involve": [c_void_p, POINTER(c_void_p), c_int64, c_void_p, c_void_p, c_void_p, POINTER(c_int), POINTER(_Maps),
                c_int, c_void_p],
    "mix": [c_void_p, POINTER(c_void_p), POINTER(c_int64), c_void_p, POINTER(_Maps), c_void_p, c_int64, c_int64],
    "pool": [c_void_p, POINTER(c_int), c_int64, POINTER(c_int), c_int64, POINTER(_Maps), c_void_p],
}


@functools.cache
def unavailable_reason() -> str | None:
    """Why the kernels cannot run here, and what would help; None where they can.  Builds them if need be."""
    try:
        library(SOURCE)
    except BuildError as error:
        return str(error)
    return None


@functools.cache
def _kernel(name: str, dtype: torch.dtype) -> ctypes._CFuncPtr:
    return compiled_kernel(SOURCE, name, dtype, _ARGUMENTS[name])


def involve(x: Tensor, hidden: list[Tensor], span: tuple[Tensor, Tensor], table: Table, relu: bool) -> Tensor:
    """See reference."""
    m, rows, columns, channels = len(table), x.shape[2] - 2, x.shape[3] - 2, x.shape[4]
    out = x.new_empty(m, m, rows, columns, channels)
    zeros = x.new_zeros(channels)                 # what a tap outside the patch reads
    weight, bias = span
    _kernel("involve", x.dtype)(
        x.data_ptr(), (c_void_p * len(hidden))(*map(Tensor.data_ptr, hidden)), len(weight), weight.data_ptr(),
        bias.data_ptr(), zeros.data_ptr(), _integers(table), byref(_Maps(len(x), m, rows, columns, channels)), relu,
        out.data_ptr())
    return out


def mix(spectral: Tensor, products: Iterable[list[Tensor]], bias: Tensor, table: Table, out: Tensor) -> None:
    """See reference."""
    m, _, rows, columns, channels = out.shape
    held = dict(zip(shares(table), products))
    starts, steps = [], []
    for above, left, u, v in itertools.product(table, table, range(3), range(3)):
        if OUTSIDE in (above[u], left[v]):
            starts.append(None)
            steps.append(0)
            continue
        product, place = held[TAPS[u], above[u]][left[v]], column_taps(table, left[v]).index(TAPS[v])
        starts.append(product.data_ptr() + (v * product.stride(1) + place * channels) * product.itemsize)
        steps.append(product.stride(1))
    _kernel("mix", out.dtype)(
        spectral.data_ptr(), (c_void_p * len(starts))(*starts), (c_int64 * len(steps))(*steps), bias.data_ptr(),
        byref(_Maps(0, m, rows, columns, channels)), out.data_ptr(), out.stride(2), out.stride(1))


def pool(x: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """See reference."""
    distinct, side = list(dict.fromkeys(pairs)), len(pairs)
    rows, columns, channels = x.shape[2] - 1, x.shape[3] - 2 * side, x.shape[4]
    out = x.new_empty(len(distinct), rows, columns, side, channels)
    _kernel("pool", x.dtype)(x.data_ptr(), _integers(distinct), len(distinct), _integers(pairs), side,
                             byref(_Maps(len(x), 0, rows, columns, channels)), out.data_ptr())
    return out


def _integers(rows: list[tuple[int, ...]]) -> ctypes.Array:
    flat = [value for row in rows for value in row]
    return (c_int * len(flat))(*flat)
