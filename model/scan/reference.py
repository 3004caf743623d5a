"""The operators of scanner.py in plain PyTorch: the specification of its C++ kernels, and what runs on a GPU.

Maps are [class of the row, class of the column, rows, columns, channels] (for classes and tables see classes.py).  The
channels of an involution's input are grouped: first the first member of every group of three, then all second and third
members, then the leftover channels.

Half types are summed in float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from model.scan.classes import OUTSIDE, TAPS, Table, column_taps, shares


def involve(x: Tensor, hidden: list[Tensor], span: tuple[Tensor, Tensor], table: Table, relu: bool) -> Tensor:
    """Involution of every class: x [n, n, R+2, W+2, C] -> [m, m, R, W, C], n classes before the stage, m after it.

    The kernels are those of the class that the centre has before the stage: its hidden [R, W+2, r] (n² of them) times
    span's weight [r, 9·G] (tap-major) plus its bias [9·G]; `relu` takes max(kernel, 0) for them.
    """
    n, rows, columns, channels = len(x), x.shape[2] - 2, x.shape[3] - 2, x.shape[4]
    full, dtype = channels // 3, sum_dtype(x.dtype)
    out = x.new_zeros(len(table), len(table), rows, columns, channels, dtype=dtype)
    weight, bias = (tensor.to(dtype) for tensor in span)
    for centre_row, centre_column in itertools.product(range(n), repeat=2):
        kernel = functional.linear(hidden[n * centre_row + centre_column][:, 1:-1].to(dtype), weight.t(), bias)
        kernel = (kernel.relu_() if relu else kernel).unflatten(-1, (9, -1))
        for i, j in itertools.product(range(len(table)), repeat=2):
            above, left = table[i], table[j]
            if (above[1], left[1]) != (centre_row, centre_column):
                continue
            grouped, leftover = out[i, j, ..., :3 * full].unflatten(-1, (3, full)), out[i, j, ..., 3 * full:]
            for u, v in itertools.product(range(3), repeat=2):
                if OUTSIDE not in (above[u], left[v]):
                    moved, tap = x[above[u], left[v], u:u + rows, v:v + columns].to(dtype), kernel[:, :, 3 * u + v]
                    grouped.addcmul_(moved[..., :3 * full].unflatten(-1, (3, full)), tap[:, :, None, :full])
                    leftover.addcmul_(moved[..., 3 * full:], tap[..., -1:])
    return out.to(x.dtype)


def mix(spectral: Tensor, products: Iterable[list[Tensor]], bias: Tensor, table: Table, out: Tensor) -> None:
    """out [m, m, R, W, C] = relu(spectral) + relu(bias + the sum of the nine taps' products of every class).

    products: for each of `shares(table)` along the rows, the products of the n classes along the columns, each
    [R, W+2, taps, C] with the taps of `column_taps`; the R rows are those that the row tap meets.
    """
    columns = out.shape[3]
    total = bias.expand(out.shape).to(sum_dtype(out.dtype), copy=True)
    for (row_tap, row_class), row_products in zip(shares(table), products):
        users = [i for i, above in enumerate(table) if above[row_tap + 1] == row_class]
        for j, left in enumerate(table):
            partial = sum(row_products[met][:, 1 + v:1 + v + columns, column_taps(table, met).index(v)].to(total.dtype)
                          for v, met in zip(TAPS, left) if met != OUTSIDE)
            for i in users:
                total[i, j].add_(partial)
    out.copy_(spectral.relu() + total.relu_())


def pool(x: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """2x2 maxima for the windows of the patches: x [m, m, R+1, w+2S, C] -> [p, R, w, S, C].

    pairs: the classes of the two rows (columns) of each of a patch's S pooled rows (columns).  The result has the
    distinct pairs of rows, p of them, and beside each other the S pooled columns of the patch that begins there.
    """
    columns = x.shape[3] - 2 * len(pairs)
    pooled = []
    for above, below in dict.fromkeys(pairs):
        rows = torch.maximum(x[above, :, :-1], x[below, :, 1:])                                # [m, R, w+2S, C]
        pooled.append(torch.stack([torch.maximum(rows[left, :, 2 * k:2 * k + columns],
                                                 rows[right, :, 2 * k + 1:2 * k + 1 + columns])
                                   for k, (left, right) in enumerate(pairs)], 2))
    return torch.stack(pooled)


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which numbers of a type are summed."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
