"""Small files that declare, or unfold to, far more than they hold."""

import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import rasterio
import scipy.io

V5 = b"MATLAB 5.0".ljust(124) + struct.pack("<HH", 0x0100, 0x4D49)


def nested_cells(path: Path, depth: int) -> None:
    """A v5 file whose variable x is a cell in a cell in a cell …, around a number."""
    def head(kind: int, name: bytes, content: int) -> bytes:
        flags, shape = struct.pack("<IIII", 6, 8, kind, 0), struct.pack("<IIii", 5, 8, 1, 1)
        parts = flags + shape + struct.pack("<II", 1, len(name)) + name.ljust(-(-len(name) // 8) * 8, b"\0")
        return struct.pack("<II", 14, len(parts) + content) + parts

    inner = struct.pack("<IId", 9, 8, 1.0)
    heads, size = [head(6, b"", len(inner))], len(inner)
    for level in range(depth):
        size += len(heads[-1])
        heads.append(head(1, b"x" if level == depth - 1 else b"", size))
    path.write_bytes(V5 + b"".join(reversed(heads)) + inner)


def long_head(path: Path, part: str, size: int) -> None:
    """A v5 file of a variable whose shape or name has so many bytes, packed."""
    def element(kind: int, content: bytes) -> bytes:
        return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)

    shape, name = struct.pack("<ii", 1, 1), b"x"
    shape, name = (shape * (size // 8), name) if part == "shape" else (shape, name * size)
    whole = element(6, struct.pack("<II", 6, 0)) + element(5, shape) + element(1, name) + element(9, bytes(8))
    packed = zlib.compress(struct.pack("<II", 14, len(whole)) + whole)
    path.write_bytes(V5 + struct.pack("<II", 15, len(packed)) + packed)


def packed_chunk(path: Path, size: int, unfolded: int, more_filters=()) -> None:
    """A v7.3 file with one deflated chunk of `size` bytes that unfolds to `unfolded`."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((1, 1, size))
    for number in (h5py.h5z.FILTER_DEFLATE, *more_filters):
        plist.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (9,))
    stream = zlib.compressobj(9)
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple((1, 1, size))
        dataset = h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_UINT8, space, plist)
        dataset.write_direct_chunk((0, 0, 0), stream.compress(bytes(unfolded)) + stream.flush())


def large_v5(path: Path) -> None:
    """A v5 file of 105 numbers that says 10¹²."""
    scipy.io.savemat(path, {"x": np.ones((3, 5, 7))})
    path.write_bytes(path.read_bytes().replace(struct.pack("<iii", 3, 5, 7), struct.pack("<iii", 30000, 50000, 700)))


def large_hdf5(path: Path, **options) -> None:
    """An HDF5 file of 1 KB that declares 2 TB."""
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (5000, 10000, 10000), "f4", **options)


def large_tif(path: Path, height: int = 60000, width: int = 60000, **options) -> None:
    """A GeoTIFF without its blocks."""
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=1, dtype="float32", sparse_ok=True,
                       compress="deflate", bigtiff="yes", tiled=True, **options):
        pass


def large_envi(path: Path) -> None:
    path.with_suffix(".hdr").write_text("ENVI\nsamples = 100000\nlines = 100000\nbands = 100\ndata type = 4\n"
                                        "interleave = bsq\nbyte order = 0\n")
    path.write_bytes(bytes(1000))


def large_vrt(path: Path, width: int, **options) -> None:
    """A mosaic of one image, without its blocks."""
    large_tif(path.with_suffix(".tif"), 2, 3, **options)
    path.write_text(f'<VRTDataset rasterXSize="{width}" rasterYSize="100"><VRTRasterBand dataType="Float32" band="1">'
                    f'<SimpleSource><SourceFilename relativeToVRT="1">{path.stem}.tif</SourceFilename><SourceBand>1'
                    "</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>")


HUGE_TILE = {"blockxsize": 16384, "blockysize": 16384}
def tiny_chunks(path: Path) -> None:
    """A v7.3 file whose variable lies in a million chunks of a byte, none of them stored."""
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (100, 100, 100), np.uint8, chunks=(1, 1, 1))


FILES = {                       # name -> what writes it; `read_mat` and `read_raster` tell them by their ends
    "tiny_chunks.mat": tiny_chunks,
    "cells.mat": lambda path: nested_cells(path, 20_000), "large_v5.mat": large_v5,
    "long_name.mat": lambda path: long_head(path, "name", 1 << 27),
    "long_shape.mat": lambda path: long_head(path, "shape", 1 << 27),
    "large_hdf5.mat": large_hdf5,
    "large_chunks.mat": lambda path: large_hdf5(path, chunks=(1, 100, 100), compression="gzip"),
    "chunk.mat": lambda path: packed_chunk(path, 1 << 16, 1 << 27),
    "large_chunk.mat": lambda path: packed_chunk(path, 1 << 19, 1 << 27),
    "large.tif": large_tif, "tile.tif": lambda path: large_tif(path, 4, 5, **HUGE_TILE), "large.img": large_envi,
    "wide.vrt": lambda path: large_vrt(path, 100_000_000),
    "mosaic.vrt": lambda path: large_vrt(path, 3, **HUGE_TILE)}
