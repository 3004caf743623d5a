"""Arrays in MATLAB, NumPy and HDF5 files as cubes and label maps: which variable, and in which order its axes are."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from datasets import formats, products
from datasets.errors import SceneFormatError, SceneNotFoundError
from datasets.images import PIECE, Facts, Image, dead_bands, fill, overridden
from model.plain import is_file

log = logging.getLogger(__name__)

HDF5 = {".h5", ".hdf5", ".he5", ".nc"}
SUFFIXES = {".mat", ".npy", ".npz"} | HDF5
ORDERS = ("rcb", "brc", "rbc")                          # rows, columns, bands
_DAMAGED = (*formats._DAMAGED, zipfile.BadZipFile)


@dataclass
class Stored:
    """An array that is still in its file (or not): what can be sliced along its first axis.

    backwards  MATLAB's HDF5 files store axes in reverse
    certain    the file's kind says which axis is which (MATLAB: rows, columns, bands by convention)
    """

    source: np.ndarray | h5py.Dataset
    backwards: bool = False
    certain: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape[::-1] if self.backwards else self.source.shape

    def copied(self, order: str, target: str, dtype: type | np.dtype) -> np.ndarray:
        """One copy, with axes `order` as the reader sees them, brought into those of `target`."""
        letters = order[::-1] if self.backwards else order
        sizes = dict(zip(letters, self.source.shape))
        made = np.empty([sizes[letter] for letter in target], dtype)
        view = made.transpose([target.index(letter) for letter in letters])
        row = max(1, made.nbytes // max(1, self.source.shape[0]))
        step = max(1, PIECE // row)
        if isinstance(self.source, h5py.Dataset) and self.source.chunks:
            step = -(-step // self.source.chunks[0]) * self.source.chunks[0]
        for start in range(0, self.source.shape[0], step):
            view[start:start + step] = self.source[start:start + step]
        return made


@contextmanager
def opened(path: Path, key: str | None, dimensions: int) -> Iterator[Stored]:
    """The array of a file, the only one of so many dimensions where no key is given.

    Raises SceneNotFoundError if the file is missing, SceneFormatError if it is damaged, holds no such array or several,
    or declares more than it can hold.  Nothing is unpickled.
    """
    if not is_file(path):
        raise SceneNotFoundError(f"{path.name} is not in {path.parent}.")
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            yield Stored(_npy(path), certain=True)
        elif suffix == ".npz":
            yield Stored(_npz(path, key, dimensions))
        elif h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                dataset = formats.dataset(file, path, key or _only(_shapes(file), dimensions, path))
                matlab = "MATLAB_class" in dataset.attrs
                yield Stored(dataset, matlab, matlab)
        else:
            yield Stored(formats.read_mat(path, key or _only(formats.mat_shapes(path), dimensions, path)))
    except _DAMAGED as error:
        raise SceneFormatError(f"{path} cannot be read ({' '.join(str(error).split())[:300]}). It may be truncated: "
                               "compare "
                               "its size with the original and copy it again.") from error


def _npy(path: Path) -> np.ndarray:
    """A .npy file, mapped into memory unread; its pieces are read as they are copied."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    _check_numbers(path, array.dtype, array.shape)
    formats.check_memory(path, array.size, 0)
    return array


def _npz(path: Path, key: str | None, dimensions: int) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        members = {name.removesuffix(".npy"): archive.getinfo(name) for name in archive.namelist()}
        shapes = {}
        for name, member in members.items():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shapes[name] = read(file)
        name = key or _only({name: head[0] for name, head in shapes.items()}, dimensions, path)
        if name not in shapes:
            raise formats.wrong_key(path, name, shapes)
        shape, _, dtype = shapes[name]
        _check_numbers(path, dtype, shape)
        formats.check_size(path, shape, dtype.itemsize, formats.DEFLATE)
        if members[name].file_size < int(np.prod(shape)) * dtype.itemsize:
            raise ValueError(f"'{name}' is shorter than its shape says")
    with np.load(path, allow_pickle=False) as content:
        return content[name]


def _check_numbers(path: Path, dtype: np.dtype, shape: Sequence[int]) -> None:
    if dtype.kind not in "biuf" or not np.prod(shape):
        raise SceneFormatError(f"{path} holds {dtype} {tuple(shape)}, expected an array of real numbers.")


def _shapes(file: h5py.File) -> dict[str, tuple[int, ...]]:
    """The arrays of numbers at an HDF5 file's root."""
    found = {}
    for name in file:
        if file.id.links.get_info(name.encode()).type == h5py.h5l.TYPE_HARD and isinstance(file[name], h5py.Dataset) \
                and file[name].dtype.kind in "biuf":
            found[name] = file[name].shape
    return found


def _only(shapes: dict[str, Sequence[int]], dimensions: int, path: Path) -> str:
    """The one array of so many dimensions (of two: none that is a row, column or number)."""
    fitting = [name for name, shape in shapes.items()
               if len(shape) == dimensions and (dimensions > 2 or min(shape, default=0) > 1)]
    if len(fitting) == 1:
        return fitting[0]
    raise SceneFormatError(f"{path} needs the variable's name: it holds {formats.listed(shapes) or 'nothing'}, "
                           f"{len(fitting)} of them with {dimensions} dimensions. Say which, as in "
                           f"{{file: {path.name}, key: ori_data}}.")


def read_cube(path: Path, key: str | None, axes: str | None, given: Facts, labels: tuple[int, int] | None,
              bands: int | None) -> Image:
    """The cube of an array file as Image.  labels: the label map's shape; bands: how many wavelengths are given.

    Raises SceneFormatError if the order of the axes cannot be told.
    """
    if path.suffix.lower() in HDF5 and key is None and (found := products.read(path)):
        cube, product = found
        kind, facts = str(product.kind), overridden(product.facts, given)
    else:
        with opened(path, key, 3) as stored:
            if len(stored.shape) != 3:
                raise SceneFormatError(f"{path}: the cube has {len(stored.shape)} dimensions {stored.shape}, expected "
                                       "height × "
                                       "width × bands. Check its key in the scene file.")
            kind, facts = str(stored.source.dtype), given
            cube = stored.copied(axes or order_of(stored, path, labels, bands), "rcb", np.float32)
    cube, fills = fill(cube.shape, _rows(cube), facts, cube)
    return Image(cube, facts, dead_bands(cube), fills, kind)


def _rows(cube: np.ndarray) -> Iterator[tuple[slice, np.ndarray, None]]:
    step = max(1, PIECE // max(1, cube[0].nbytes))
    for start in range(0, len(cube), step):
        yield slice(start, start + step), cube[start:start + step], None


def order_of(stored: Stored, path: Path, labels: tuple[int, int] | None, bands: int | None) -> str:
    """Which axes are rows, columns and bands.  Raises SceneFormatError, with what to say, if that cannot be told."""
    shape = stored.shape
    fitting = [order for order in ORDERS
               if (labels is None or labels == tuple(shape[order.index(letter)] for letter in "rc"))
               and (bands is None or bands == shape[order.index("b")])]
    if "rcb" in fitting and (stored.certain or len(fitting) == 1):
        return "rcb"
    if len(fitting) == 1:
        log.info("%s: by the other sizes its axes are %s (rows, columns, bands).", path, ", ".join(fitting[0]))
        return fitting[0]
    if not fitting and stored.certain:
        return "rcb"                                    # Scene.verify says which sizes do not fit
    raise SceneFormatError(f"{path}: which axis of {' × '.join(map(str, shape))} is rows, columns and bands cannot be "
                           "told"
                           f"{' by the label map ' + ' × '.join(map(str, labels)) if labels else ''}. Say so in the "
                           "scene file: "
                           "axes: rcb for rows × columns × bands, axes: brc for bands × rows × columns.")


def read_array(path: Path, key: str | None) -> np.ndarray:
    """An array as it is stored (MATLAB's axes put right): a label map, or wavelengths.  key: see `opened`."""
    with opened(path, key, 2) as stored:
        letters = "xyzuvw"[:len(stored.shape)]
        return stored.copied(letters, letters, stored.source.dtype)
