"""Arrays out of files: no file has another one read, and none takes more than it holds."""

import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from datasets import formats, hdf5
from datasets.errors import SceneFormatError, SceneNotFoundError
from datasets.formats import read_mat, read_raster
from datasets.writers import write_mat_v5, write_mat_v73
from hostile_files import long_head, nested_cells, packed_chunk
from raster_files import write_tif

SECRET = np.full((2, 3, 4), 7, np.int16)


@pytest.fixture
def secret(tmp_path) -> Path:
    """A file outside the data's folder that no scene may show, as HDF5 and as bytes."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    with h5py.File(folder / "secret.mat", "w") as file:
        file["x"] = SECRET
    (folder / "secret.bin").write_bytes(SECRET.tobytes())
    return folder


# HDF5

LINKS = {"an external link": lambda file, there:
         file.__setitem__("x", h5py.ExternalLink(str(there / "secret.mat"), "x")),
         "a soft link to an external one": lambda file, there: (
             file.__setitem__("y", h5py.ExternalLink(str(there / "secret.mat"), "/")),
             file.__setitem__("x", h5py.SoftLink("/y/x"))),
         "a soft link": lambda file, there: file.__setitem__("x", h5py.SoftLink("/own")),
         "a link into a void": lambda file, there: file.__setitem__("x", h5py.SoftLink("/nothing"))}


@pytest.mark.parametrize("kind", LINKS)
def test_hdf5_links_are_refused(tmp_path, secret, kind):
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["own"] = SECRET
        LINKS[kind](file, secret)
    with pytest.raises(SceneFormatError, match="'x' is a link to another place"):
        read_mat(tmp_path / "a.mat", "x")
    assert (read_mat(tmp_path / "a.mat", "own") == SECRET.T).all()


def test_a_key_through_an_external_link_is_refused(tmp_path, secret):
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["there"] = h5py.ExternalLink(str(secret / "secret.mat"), "/")
        file["here/x"] = SECRET
    for key in ("there/x", "/there/x", "//there//x"):
        with pytest.raises(SceneFormatError, match="is a link to another place"):
            read_mat(tmp_path / "a.mat", key)
    assert (read_mat(tmp_path / "a.mat", "here/x") == SECRET.T).all()
    for key in ("here", "here/x/y", "", "/", "nothing", "here/nothing", "."):
        with pytest.raises(SceneFormatError):
            read_mat(tmp_path / "a.mat", key)


def test_hdf5_data_in_other_files_is_refused(tmp_path, secret):
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file.create_dataset("raw", SECRET.shape, SECRET.dtype,
                            external=[(str(secret / "secret.bin"), 0, SECRET.nbytes)])
        layout = h5py.VirtualLayout(SECRET.shape, SECRET.dtype)
        layout[:] = h5py.VirtualSource(str(secret / "secret.mat"), "x", SECRET.shape)
        file.create_virtual_dataset("virtual", layout)
    for key in ("raw", "virtual"):
        with pytest.raises(SceneFormatError, match=f"'{key}' is stored in other files"):
            read_mat(tmp_path / "a.mat", key)


def test_an_hdf5_file_of_1_kb_that_declares_2_tb_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file.create_dataset("contiguous", (5000, 10000, 10000), "f4")
        file.create_dataset("chunked", (5000, 10000, 10000), "f4", chunks=(1, 100, 100), compression="gzip")
        file.create_dataset("chunk", (4, 4, 4), "f4", maxshape=(None,) * 3, chunks=(1000, 1000, 1000))
    assert (tmp_path / "a.mat").stat().st_size < 20_000
    for key in ("contiguous", "chunked", "chunk"):
        with pytest.raises(SceneFormatError, match=r"declares \d+ × \d+ × \d+ values, but has only"):
            read_mat(tmp_path / "a.mat", key)


def test_an_hdf5_chunk_that_unfolds_to_more_than_it_declares_is_refused(tmp_path, monkeypatch):
    """HDF5 would take all the memory that it unfolds to."""
    monkeypatch.setattr(hdf5, "UNFOLDED_UNCHECKED", 1 << 13)
    packed_chunk(tmp_path / "a.mat", 5000, 10 << 20)
    with pytest.raises(SceneFormatError, match="a chunk of 5,000 bytes has 10,"):
        read_mat(tmp_path / "a.mat", "x")
    packed_chunk(tmp_path / "a.mat", 10 << 10, 10 << 20)
    with pytest.raises(SceneFormatError, match="a chunk of 10,240 bytes unfolds to more"):
        read_mat(tmp_path / "a.mat", "x")
    packed_chunk(tmp_path / "a.mat", 10 << 20, 10 << 20)
    assert read_mat(tmp_path / "a.mat", "x").shape == (10 << 20, 1, 1)


@pytest.mark.parametrize("more, told", [([h5py.h5z.FILTER_LZF], "more than once"), ([300], "an unknown way"),
                                        ([h5py.h5z.FILTER_SHUFFLE], "an unknown order")])
def test_hdf5_chunks_that_are_packed_in_a_way_of_their_own_are_refused(tmp_path, more, told):
    packed_chunk(tmp_path / "a.mat", 100, 100, more)
    with pytest.raises(SceneFormatError, match=told):
        read_mat(tmp_path / "a.mat", "x")


@pytest.mark.parametrize("packing", [{}, {"compression": "gzip"}, {"compression": "lzf"}, {"scaleoffset": 0},
                                     {"compression": "gzip", "shuffle": True, "fletcher32": True}])
def test_hdf5s_own_ways_of_packing_are_read(tmp_path, packing):
    noise = np.random.default_rng(0).integers(0, 1 << 31, (3, 200, 300))
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file.create_dataset("x", data=noise, chunks=(2, 150, 300), **packing)
        file.create_dataset("empty", noise.shape, "i8", chunks=(2, 150, 300), fillvalue=3, **packing)
    assert (read_mat(tmp_path / "a.mat", "x") == noise.T).all()
    assert (read_mat(tmp_path / "a.mat", "empty") == 3).all()


@pytest.mark.parametrize("value", ["text", np.zeros((0, 3, 2)), h5py.Empty("f4"), np.ones((2, 2, 2), complex),
                                   np.zeros((2, 2, 2), [("a", "f4")]), [b"a", b"b"]])
def test_hdf5_datasets_that_are_no_numbers_are_refused(tmp_path, value):
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["x"] = value
    with pytest.raises(SceneFormatError, match="'x' holds .*real numbers"):
        read_mat(tmp_path / "a.mat", "x")


@pytest.mark.parametrize("name, value", [("MATLAB_class", np.bytes_("char")), ("MATLAB_empty", np.uint8(1))])
def test_matlabs_letters_and_empty_arrays_are_refused(tmp_path, name, value):
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["x"] = np.arange(6, dtype=np.uint16).reshape(1, 6)
        file["x"].attrs[name] = value
    with pytest.raises(SceneFormatError, match="real numbers"):
        read_mat(tmp_path / "a.mat", "x")


# MATLAB v5

def test_cells_in_cells_are_refused_unread(tmp_path):
    nested_cells(tmp_path / "a.mat", 20_000)
    with pytest.raises(SceneFormatError, match="'x' holds cell"):
        read_mat(tmp_path / "a.mat", "x")


def test_only_the_variable_that_is_asked_for_is_read(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"x": SECRET, "cells": np.array([[1], "a"], object), "text": "abc",
                                          "record": {"a": 1}, "sparse": scipy.sparse.eye(3), "y": SECRET + 1})
    assert (read_mat(tmp_path / "a.mat", "x") == SECRET).all()
    assert (read_mat(tmp_path / "a.mat", "y") == SECRET + 1).all()
    for key in ("cells", "text", "record", "sparse"):
        with pytest.raises(SceneFormatError, match=f"'{key}' holds .*real numbers"):
            read_mat(tmp_path / "a.mat", key)


def test_a_file_that_is_not_there_is_named_with_its_folder(tmp_path):
    for read in (lambda path: read_mat(path, "x"), lambda path: read_raster(path, 0)):
        with pytest.raises(SceneNotFoundError, match=f"^none.x is not in {tmp_path}.$"):
            read(tmp_path / "none.x")


def test_a_variable_that_is_there_twice_or_complex_is_refused(tmp_path):
    scipy.io.savemat(tmp_path / "twice.mat", {"x": SECRET})
    content = (tmp_path / "twice.mat").read_bytes()
    (tmp_path / "twice.mat").write_bytes(content + content[128:])                  # behind the file's head
    scipy.io.savemat(tmp_path / "complex.mat", {"x": SECRET * 1j})
    for name, told in (("twice", "it holds 'x' twice"), ("complex", "'x' holds complex numbers, expected real")):
        with pytest.raises(SceneFormatError, match=told):
            read_mat(tmp_path / f"{name}.mat", "x")


def test_a_matlab_file_that_declares_more_than_it_holds_is_refused(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"x": np.ones((3, 5, 7))})
    content = (tmp_path / "a.mat").read_bytes()
    content = content.replace(struct.pack("<iii", 3, 5, 7), struct.pack("<iii", 30000, 50000, 700))
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(SceneFormatError, match="declares 30000 × 50000 × 700 values"):
        read_mat(tmp_path / "a.mat", "x")


@pytest.mark.slow
def test_an_empty_label_map_of_any_size_is_read(tmp_path):
    for write in (write_mat_v5, write_mat_v73):
        write(tmp_path / "a.mat", {"x": np.zeros((3000, 4000))})
        assert read_mat(tmp_path / "a.mat", "x").shape == (3000, 4000)


def test_a_scene_larger_than_the_free_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(formats, "ALWAYS_READ", 1000)
    (tmp_path / "meminfo").write_text("MemTotal:       24000000 kB\nMemAvailable:   200 kB\n")
    write_mat_v5(tmp_path / "a.mat", {"x": np.random.default_rng(0).random((60, 60, 10))})
    write_tif(tmp_path / "a.tif", np.random.default_rng(0).random((60, 60, 10)))
    for read in (lambda: read_mat(tmp_path / "a.mat", "x"), lambda: read_raster(tmp_path / "a.tif", 0)):
        with pytest.raises(SceneFormatError, match="needs 0.0 GB of memory"):
            read()


def test_a_packed_variable_that_is_larger_than_it_declares_is_refused(tmp_path):
    """Eight values are declared; a thousand bytes unpack to a million."""
    scipy.io.savemat(tmp_path / "a.mat", {"x": np.ones((2, 2, 2))})
    content = (tmp_path / "a.mat").read_bytes()
    matrix = content[136:]
    grown = matrix[:matrix.index(struct.pack("<II", 9, 64))] + struct.pack("<II", 9, 10 ** 6) + bytes(10 ** 6)
    packed = zlib.compress(struct.pack("<II", 14, len(grown)) + grown)
    (tmp_path / "a.mat").write_bytes(content[:128] + struct.pack("<II", 15, len(packed)) + packed)
    with pytest.raises(SceneFormatError, match="'x' holds 1,000,000 bytes, its shape says 64"):
        read_mat(tmp_path / "a.mat", "x")


@pytest.mark.parametrize("part", ["shape", "name"])
def test_a_shape_or_name_that_unfolds_to_megabytes_is_refused(tmp_path, part):
    """scipy would read all of it, and the error show it."""
    long_head(tmp_path / "a.mat", part, 16_000_000)
    with pytest.raises(SceneFormatError, match="a variable's shape or name has 16,000,000 bytes"):
        read_mat(tmp_path / "a.mat", "x")


def test_names_in_a_file_are_shown_in_one_line(tmp_path):
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["a\nb\x1b[31m"], file["n" * 1000] = SECRET, SECRET
    with pytest.raises(SceneFormatError, match=r"it holds 'a\\nb\\x1b\[31m', n{40} …\. Set") as error:
        read_mat(tmp_path / "a.mat", "x")
    assert str(error.value).isprintable()


def test_numbers_of_an_unknown_kind_are_refused(tmp_path):
    """scipy's reader looks the kind up behind the end of a table."""
    scipy.io.savemat(tmp_path / "a.mat", {"x": np.ones((2, 2, 2))})
    content = (tmp_path / "a.mat").read_bytes()
    for kind in (0, 8, 14, 15, 20, 9 + 4096, 65535):
        (tmp_path / "a.mat").write_bytes(content.replace(struct.pack("<II", 9, 64), struct.pack("<II", kind, 64)))
        with pytest.raises(SceneFormatError, match="numbers of an unknown kind"):
            read_mat(tmp_path / "a.mat", "x")


def test_numbers_of_an_unknown_class_are_refused(tmp_path):
    """Flagged as truth values, they pass for these; scipy's reader has no case for them."""
    scipy.io.savemat(tmp_path / "a.mat", {"x": np.ones((2, 2, 2))})
    content = (tmp_path / "a.mat").read_bytes()
    for kind in (0, 19, 104):
        (tmp_path / "a.mat").write_bytes(content.replace(struct.pack("<III", 6, 8, 6),
                                                         struct.pack("<III", 6, 8, 0x0200 + kind)))
        with pytest.raises(SceneFormatError, match="'x' holds numbers of an unknown kind"):
            read_mat(tmp_path / "a.mat", "x")
