"""Writers of MATLAB v5 and v7.3 files, in the layout that MATLAB itself uses."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import scipy.io

_HEADER_BYTES = 116       # text part of both file headers (MATLAB "MAT-File Format", level 5)
_V73_BLOCK = 512          # MATLAB puts its header in a user block before the HDF5 data


def write_mat_v5(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as a MATLAB v5 file, atomically; the same arrays give the same bytes."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        scipy.io.savemat(file, arrays, do_compression=True)
    _stamp(part, "MATLAB 5.0 MAT-file")
    os.replace(part, path)


def write_mat_v73(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as a MATLAB v7.3 file (HDF5, axes reversed), atomically."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    with h5py.File(part, "w", userblock_size=_V73_BLOCK) as file:
        for key, array in arrays.items():
            data = file.create_dataset(key, data=np.asarray(array).T, compression="gzip", compression_opts=4)
            kind = {"float64": "double", "float32": "single", "bool": "logical"}.get(str(array.dtype), str(array.dtype))
            data.attrs["MATLAB_class"] = np.bytes_(kind)
    _stamp(part, "MATLAB 7.3 MAT-file, HDF5 schema 1.00 .", bytes(8) + b"\x00\x02IM")
    os.replace(part, path)


def _stamp(path: Path, text: str, tail: bytes = b"") -> None:
    """Overwrite the header text (scipy writes the date of the day there)."""
    with open(path, "r+b") as file:
        file.write(text.ljust(_HEADER_BYTES).encode() + tail)
