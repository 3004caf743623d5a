"""Which variants of a pixel's features the patches of a scene need, and what makes which of the next stage's.

After s stages (3x3 windows, zeros beyond the patch) a pixel's row in the patch counts only up to a distance of s from
the patch's edges; rows that are alike in this are one *class*.  The same holds for columns, since patches are square.
"""

from __future__ import annotations

import functools

OUTSIDE = -1
TAPS = (-1, 0, 1)

# For every class after a stage the classes before it that the taps -1, 0, +1 meet; OUTSIDE means beyond the patch.
Table = tuple[tuple[int, int, int], ...]


def classes(patch_size: int, depth: int) -> list[int]:
    """The class after `depth` stages of every row of a patch."""
    distances = [(min(row, depth), min(patch_size - 1 - row, depth)) for row in range(patch_size)]
    distinct = list(dict.fromkeys(distances))
    return [distinct.index(pair) for pair in distances]


def tap_table(patch_size: int, depth: int, pooled: bool = False) -> Table:
    """The table of stage `depth`.  Where its result is `pooled`, a class that only the dropped row has is left out."""
    before, after = classes(patch_size, depth - 1), classes(patch_size, depth)
    met = {after[row]: tuple(before[row + tap] if 0 <= row + tap < patch_size else OUTSIDE for tap in TAPS)
           for row in range(patch_size // 2 * 2 if pooled else patch_size)}
    return tuple(met.values())


def pool_pairs(patch_size: int, depth: int) -> list[tuple[int, int]]:
    """The classes of the two rows that every row joins which is pooled after stage `depth`."""
    after = classes(patch_size, depth)
    return list(zip(after[:-1:2], after[1::2]))


@functools.cache
def shares(table: Table) -> list[tuple[int, int]]:
    """The distinct pairs (tap, class that it meets) of a table: what the classes of its stage share along an axis."""
    return sorted({(tap, met) for row in table for tap, met in zip(TAPS, row) if met != OUTSIDE})


@functools.cache
def column_taps(table: Table, met: int) -> list[int]:
    """The taps that meet a class, in the order in which its products lie side by side."""
    return [tap for tap, other in shares(table) if other == met]
