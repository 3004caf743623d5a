"""What stands before a MATLAB v5 variable's numbers, checked: scipy's reader crashes on some damaged ones.

MATLAB "MAT-File Format", level 5: the file is a row of elements, each a tag (kind, bytes) and its content; a variable's
element, packed or not, holds its flags, shape, name and numbers as elements.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

HEADER = 128                            # bytes before the first element
READ = 4096                             # of an element: all that stands before its numbers, and more
LONGEST = 1024                          # bytes of a shape or name; MATLAB's names have up to 63
PACKED = 15                             # an element's kind
NUMBER_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}       # by an element's kind
COMPLEX = 0x0800                        # among the flags
CLASSES = range(6, 16)                  # of arrays of numbers, the flags' last byte


def check_heads(path: Path) -> None:
    """Raises ValueError if a variable's shape or name has more bytes than any has; scipy would unfold them all."""
    for head, order in _variables(path):
        for _, size, _ in islice(_parts(head, order), 3):
            if size > LONGEST:
                raise ValueError(f"a variable's shape or name has {size:,} bytes")


def check_numbers(path: Path, key: str) -> None:
    """Raises ValueError if a variable's numbers are not real, or not as many as its shape says."""
    for head, order in _variables(path):
        parts = list(_parts(head, order))
        if len(parts) < 4 or parts[2][2].decode("latin1") != key:
            continue
        (_, _, flags), (shape_kind, _, shape), _, (kind, size, _) = parts[:4]
        about = struct.unpack_from(order + "I", flags)[0]
        if about & COMPLEX:
            raise ValueError(f"'{key}' holds complex numbers, expected real numbers")
        if about & 0xff not in CLASSES or shape_kind not in (5, 6) or kind not in NUMBER_BYTES:
            raise ValueError(f"'{key}' holds numbers of an unknown kind")
        count = math.prod(struct.unpack(f"{order}{len(shape) // 4}i", shape))
        if size != count * NUMBER_BYTES[kind]:
            raise ValueError(f"'{key}' holds {size:,} bytes, its shape says {count * NUMBER_BYTES[kind]:,}")
        return
    raise ValueError(f"'{key}' is out of order")


def _variables(path: Path) -> Iterator[tuple[bytes, str]]:
    """The first bytes of each variable's element, unpacked and without its tag, and the byte order."""
    with open(path, "rb") as file:
        order, place = "<" if file.read(HEADER)[-2:] == b"IM" else ">", HEADER
        while len(tag := file.read(8)) == 8:
            kind, size = struct.unpack(order + "II", tag)
            content = file.read(READ)
            yield zlib.decompressobj().decompress(content, READ)[8:] if kind == PACKED else content, order
            place += 8 + size
            file.seek(place)


def _parts(head: bytes, order: str) -> Iterator[tuple[int, int, bytes]]:
    """Kind, bytes and content of the elements in a row; content of up to four bytes stands in the tag itself."""
    place = 0
    while place + 8 <= len(head):
        kind, size = struct.unpack_from(order + "II", head, place)
        small = kind >> 16
        if small:
            kind, size, begin, following = kind & 0xffff, small, place + 4, place + 8
        else:
            begin = place + 8
            following = begin + size + -size % 8
        yield kind, size, head[begin:begin + size]
        place = following
