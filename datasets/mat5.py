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
STRUCT = 2                              # the flags' last byte
MOST_STRUCT, MOST_FIELDS = 1 << 31, 1000                # bytes, of a struct that a field is taken from
ALONE = "field"
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


def field(path: Path, name: str, wanted: str) -> tuple[bytes | None, list[str]]:
    """A field of a struct (1 × 1) as a v5 file of its own whose variable is called ALONE (None if there is none), and
    the names of all fields.  Raises ValueError for other structs, and for more than MOST_STRUCT bytes."""
    with open(path, "rb") as file:
        head = file.read(HEADER)
        order = "<" if head[-2:] == b"IM" else ">"
        while len(tag := file.read(8)) == 8:
            kind, size = struct.unpack(order + "II", tag)
            content = file.read(min(size, MOST_STRUCT))
            if kind == PACKED:
                stream = zlib.decompressobj()
                if _name(stream.decompress(content, READ)[8:], order) != name:
                    continue
                stream = zlib.decompressobj()
                content = stream.decompress(content, MOST_STRUCT)[8:]
                if not stream.eof:
                    raise ValueError(f"'{name}' has more than {MOST_STRUCT:,} bytes, or is cut off")
            if _name(content, order) == name:
                return _taken(content, order, head, wanted)
    return None, []


def _name(head: bytes, order: str) -> str:
    parts = list(islice(_parts(head, order), 3))
    return parts[2][2].decode("latin1") if len(parts) == 3 else ""


def _taken(content: bytes, order: str, head: bytes, wanted: str) -> tuple[bytes | None, list[str]]:
    parts = list(islice(_parts(content, order), MOST_FIELDS + 5))
    if len(parts) < 5 or struct.unpack_from(order + "I", parts[0][2])[0] & 0xff != STRUCT \
            or math.prod(struct.unpack(f"{order}{len(parts[1][2]) // 4}i", parts[1][2])) != 1:
        raise ValueError("it is no single struct")
    length = struct.unpack_from(order + "i", parts[3][2])[0]
    if not 0 < length <= LONGEST:
        raise ValueError(f"the names of its fields have {length} bytes")
    text = parts[4][2]
    names = [text[i:i + length].split(b"\0")[0].decode("latin1") for i in range(0, len(text), length)]
    if wanted not in names or names.index(wanted) + 5 >= len(parts):
        return None, names
    flags, shape, _, *rest = list(islice(_parts(parts[names.index(wanted) + 5][2], order), 4))
    if not rest:
        raise ValueError(f"'{wanted}' holds no numbers")

    def element(kind: int, inside: bytes) -> bytes:
        return struct.pack(order + "II", kind, len(inside)) + inside + bytes(-len(inside) % 8)

    whole = b"".join(element(kind, inside) for kind, _, inside in (flags, shape, (1, 1, ALONE.encode()), rest[0]))
    return head + struct.pack(order + "II", 14, len(whole)) + whole, names


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
