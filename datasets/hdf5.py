"""What an HDF5 dataset stores, held against what it declares: HDF5 itself unfolds a chunk however large it becomes.

A chunk is stored through a row of filters.  Of these only deflate unfolds without an end that the file declares, so its
chunks are unfolded here first, piece by piece, and counted.
"""

from __future__ import annotations

import math
import zlib

import h5py

DEFLATE, SHUFFLE, CHECKSUM, SZIP, NBIT, SCALE, LZF = (
    h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_SZIP,
    h5py.h5z.FILTER_NBIT, h5py.h5z.FILTER_SCALEOFFSET, h5py.h5z.FILTER_LZF)
PACKING = {DEFLATE, SZIP, NBIT, SCALE, LZF}
UNFOLDED_UNCHECKED = 1 << 16            # bytes of a chunk in the file: at deflate's best they become 64 MB
PIECE = 1 << 20                         # bytes
CHECKSUM_BYTES = 4
MOST_SMALL, SMALL = 100_000, 1024       # chunks of fewer bytes than these: HDF5 takes four thousand for each


def is_packed(dataset: h5py.Dataset) -> bool:
    """Whether chunks may be smaller in the file than in memory."""
    return bool(PACKING & set(_filters(dataset)))


def check_chunks(dataset: h5py.Dataset) -> None:
    """Raises ValueError if chunks are packed in another way than HDF5's own, are larger than the dataset says, or far too
    many."""
    if dataset.chunks is None:
        return
    filters = _filters(dataset)
    if set(filters) - PACKING - {SHUFFLE, CHECKSUM} or sum(one in PACKING for one in filters) > 1:
        raise ValueError(f"its chunks are packed more than once, or in an unknown way {tuple(filters)}")
    place = filters.index(DEFLATE) if DEFLATE in filters else None
    if place is not None and set(filters[place + 1:]) - {CHECKSUM}:
        raise ValueError("its chunks are packed in an unknown order")
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    count = math.prod(-(-whole // part) for whole, part in zip(dataset.shape, dataset.chunks))
    if size < SMALL and count > MOST_SMALL:
        raise ValueError(f"it lies in {count:,} chunks of {size:,} bytes")
    most = size + size // 100 + 1024                    # what cannot be packed grows a little
    large = []

    def look(chunk: h5py.h5d.StoreInfo) -> None:
        if chunk.size > most:
            raise ValueError(f"a chunk of {size:,} bytes has {chunk.size:,} in the file")
        if chunk.size > UNFOLDED_UNCHECKED and place is not None and not chunk.filter_mask >> place & 1:
            large.append(chunk.chunk_offset)

    dataset.id.chunk_iter(look)
    for offset in large:
        _check_unfolded(dataset.id.read_direct_chunk(offset)[1], size)


def _check_unfolded(packed: bytes, size: int) -> None:
    stream, count, rest = zlib.decompressobj(), 0, packed
    while rest and not stream.eof:
        count += len(stream.decompress(rest, PIECE))
        rest = stream.unconsumed_tail
        if count > size + CHECKSUM_BYTES:
            raise ValueError(f"a chunk of {size:,} bytes unfolds to more")


def _filters(dataset: h5py.Dataset) -> list[int]:
    """The filters of a dataset's chunks, in the order of writing."""
    plist = dataset.id.get_create_plist()
    return [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
