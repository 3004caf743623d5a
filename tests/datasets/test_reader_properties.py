"""Readers of scenes under generated content: what is written comes back, and what is damaged is right or refused."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pytest
import rasterio
import scipy.io
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from datasets.formats import read_mat, read_raster
from datasets.readers import SceneFile, load_scene, read_description
from datasets.scene import Scene, check_name
from datasets.writers import write_map, write_mat_v5, write_mat_v73
from properties import changed, damaged, examples, nested, right_or_refused
from raster_files import write_tif

ARRAY = np.arange(60, dtype=np.float32).reshape(4, 5, 3)
LARGEST = 1 << 27                   # bytes of what a small damaged file may become
DTYPES = ["f8", "f4", "i8", "u8", "i4", "u4", "i2", "u2", "i1", "u1"]
RASTER_DTYPES = ["f8", "f4", "i4", "u4", "i2", "u2", "u1"]


def cubes(dtypes, least=2, most=4):
    """Arrays of any such type, shape, memory order and value, NaN and infinite ones among them."""
    whole = arrays.arrays(st.sampled_from(dtypes), arrays.array_shapes(min_dims=least, max_dims=most, max_side=4))
    return st.tuples(whole, st.sampled_from([np.ascontiguousarray, np.asfortranarray, lambda a: a[::-1]])
                     ).map(lambda pair: pair[1](pair[0]))


@pytest.mark.parametrize("write", [write_mat_v5, write_mat_v73])
@given(array=st.data())
@examples(150)
def test_matlab_files_give_back_every_array(tmp_path, write, array):
    array, other = array.draw(cubes(DTYPES)), array.draw(cubes(DTYPES))
    write(tmp_path / "a.mat", {"x": array, "y": other})
    found = read_mat(tmp_path / "a.mat", "x")
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype and (read_mat(tmp_path / "a.mat", "y").tobytes("C") == other.tobytes("C"))


LAYOUTS = [{"driver": "GTiff"}, {"driver": "GTiff", "interleave": "pixel", "compress": "deflate"},
           {"driver": "GTiff", "interleave": "band", "compress": "lzw", "BIGTIFF": "YES"},
           {"driver": "GTiff", "tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "packbits"},
           {"driver": "ENVI", "interleave": "bil"}, {"driver": "ENVI", "interleave": "bip"},
           {"driver": "ENVI", "interleave": "bsq"}]


@given(array=cubes(RASTER_DTYPES, 3, 3), layout=st.sampled_from(LAYOUTS), missing=st.booleans())
@examples(150)
def test_raster_images_give_back_every_array(tmp_path, array, layout, missing):
    nodata = {"nodata": float(array.flat[0])} if missing else {}
    height, width, bands = array.shape
    with rasterio.open(tmp_path / "a.img", "w", height=height, width=width, count=bands, dtype=array.dtype, **layout,
                       **nodata) as file:
        file.write(np.moveaxis(array, 2, 0))
    found, expected = read_raster(tmp_path / "a.img", np.nan)[0], array
    if missing:
        is_missing = np.isnan(array) if np.isnan(array.flat[0]) else array == array.flat[0]
        gone = is_missing.all(axis=2) if array.flat[0] == 0 else is_missing.any(axis=2)
        expected = np.where(gone[..., None], np.float32(np.nan), array.astype(np.float32))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype


def is_name(text: str) -> bool:
    return right_or_refused(lambda: check_name(text) or True) is not None


names = st.text(min_size=1, max_size=12).filter(is_name)


@given(labels=arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=6),
                            elements=st.integers(0, 3)), texts=st.lists(names, min_size=3, max_size=3))
@examples(60)
def test_maps_give_back_every_class(tmp_path, labels, texts):
    scene = Scene("a", np.zeros((*labels.shape, 1), np.float32), labels.astype(np.int64), ("a", "b", "c"))
    write_map(tmp_path / "a.tif", labels, scene, tuple(texts))
    np.testing.assert_array_equal(read_raster(tmp_path / "a.tif", 0)[0][..., 0], labels)


def written(write) -> bytes:
    """The bytes of a small file."""
    with TemporaryDirectory() as folder:
        write(Path(folder) / "a.file")
        return (Path(folder) / "a.file").read_bytes()


def write_hdf5(path: Path, file_options, **options) -> None:
    with h5py.File(path, "w", **file_options) as file:
        file.create_dataset("inner/x", data=ARRAY, **options)
        file.create_dataset("x", data=ARRAY, **options)


MATLAB = {"v5": lambda path: write_mat_v5(path, {"x": ARRAY}),
          "v5 of two": lambda path: scipy.io.savemat(path, {"a": np.ones((1, 1), np.uint8), "x": ARRAY},
                                                     appendmat=False),
          "v4": lambda path: scipy.io.savemat(path, {"x": ARRAY[..., 0]}, format="4", appendmat=False),
          "v7.3": lambda path: write_mat_v73(path, {"x": ARRAY}), "plain HDF5": lambda path: write_hdf5(path, {}),
          "new HDF5": lambda path: write_hdf5(path, {"libver": "latest"}, chunks=(2, 2, 2), compression="gzip",
                                              shuffle=True, fletcher32=True)}
IMAGES = {"strips": {}, "deflate": {"compress": "deflate"}, "tiles": {
    "compress": "lzw", "predictor": 3, "tiled": True, "blockxsize": 16, "blockysize": 16},
    "placed": {"crs": "EPSG:32615", "transform": rasterio.transform.from_origin(3e5, 3e6, 2.5, 2.5), "nodata": 0}}


@cache
def whole(kind: str) -> bytes:
    return written(MATLAB[kind] if kind in MATLAB else lambda path: write_tif(path, ARRAY, **IMAGES[kind]))


@pytest.mark.slow_but("v5", "tiles")
@pytest.mark.parametrize("kind", [*MATLAB, *IMAGES])
@given(data=st.data())
@examples(120)
def test_damaged_scene_files_are_right_or_refused(tmp_path, kind, data):
    path = tmp_path / ("a.mat" if kind in MATLAB else "a.tif")
    path.write_bytes(data.draw(damaged(whole(kind))))
    if kind in MATLAB:
        found = right_or_refused(lambda: read_mat(path, data.draw(st.sampled_from(["x", "inner/x"]))))
    else:
        found = right_or_refused(lambda: read_raster(path, 0)[0])
    assert found is None or found.dtype.kind in "biuf" and found.nbytes < LARGEST


ENVI = (b"ENVI\ndescription = {a}\nsamples = 5\nlines = 4\nbands = 3\nheader offset = 0\nfile type = ENVI Standard\n"
        b"data type = 4\ninterleave = bsq\nbyte order = 0\nwavelength = {400, 500, 600}\n"
        b"map info = {UTM, 1, 1, 3e5, 3e6, 2.5, 2.5, 15, North, WGS-84}\ndata ignore value = 0\n")


@given(header=damaged(ENVI), length=st.sampled_from([0, 1, 100, 239, 240]))
@examples(150)
def test_damaged_envi_images_are_right_or_refused(tmp_path, header, length):
    (tmp_path / "a.hdr").write_bytes(header)
    (tmp_path / "a.img").write_bytes(ARRAY.tobytes()[:length])
    found = right_or_refused(lambda: read_raster(tmp_path / "a.img", 0)[0])
    assert found is None or found.dtype.kind in "biuf" and found.nbytes < LARGEST


VRT = (b'<VRTDataset rasterXSize="5" rasterYSize="4"><GeoTransform>300000, 2.5, 0, 3290000, 0, -2.5</GeoTransform>'
       b'<VRTRasterBand dataType="Float32" band="1"><NoDataValue>3</NoDataValue><ComplexSource>'
       b'<SourceFilename relativeToVRT="1">a.tif</SourceFilename><SourceBand>1</SourceBand>'
       b'<SrcRect xOff="0" yOff="0" xSize="5" ySize="4"/><DstRect xOff="0" yOff="0" xSize="5" ySize="4"/>'
       b"<ScaleRatio>2</ScaleRatio></ComplexSource></VRTRasterBand></VRTDataset>")


@given(mosaic=damaged(VRT), source=st.one_of(st.none(), damaged(whole("strips"))))
@examples(150)
def test_damaged_mosaics_are_right_or_refused(tmp_path, mosaic, source):
    (tmp_path / "a.vrt").write_bytes(mosaic)
    (tmp_path / "a.tif").write_bytes(source or whole("strips"))
    found = right_or_refused(lambda: read_raster(tmp_path / "a.vrt", 0)[0])
    assert found is None or found.dtype.kind in "biuf" and found.nbytes < LARGEST


SCENE = {"name": "a", "cube": {"file": "a.mat", "key": "x"}, "labels": {"file": "a.mat", "key": "y"},
         "class_names": ["one", "two"], "wavelengths": [[400, 600, 3]], "rgb_bands": [0, 1, 2], "folder": "a"}
ENTRIES = [*SceneFile.__annotations__, "file", "key"]


@given(st.fixed_dictionaries({"name": names, "cube": st.just({"file": "a.mat", "key": "x"}),
                              "class_names": st.lists(names, min_size=1, max_size=5, unique=True)}, optional={
    "rgb_bands": st.lists(st.integers(0, 300), min_size=3, max_size=3), "folder": names, "simulated": st.booleans(),
    "wavelengths": st.lists(st.floats(1, 3000), min_size=1, max_size=4)}))
@examples(120)
def test_scene_files_say_what_was_written(tmp_path, content):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    found = read_description(tmp_path / "a.yaml")
    assert (found.name, found.class_names) == (content["name"], content["class_names"])
    assert list(found.rgb_bands or []) == content.get("rgb_bands", [])
    assert (found.wavelengths or []) == content.get("wavelengths", []) and found.folder == content.get("folder")


@given(content=st.one_of(changed(SCENE, ENTRIES), nested(ENTRIES), damaged(yaml.safe_dump(SCENE).encode())))
@examples(300)
def test_strange_scene_files_are_right_or_refused(tmp_path, content):
    write_mat_v5(tmp_path / "a.mat", {"x": ARRAY, "y": np.ones((4, 5), np.uint8)})
    text = content if isinstance(content, bytes) else yaml.safe_dump(content, allow_unicode=True).encode(
        "utf-8", "surrogatepass")
    (tmp_path / "a.yaml").write_bytes(text)
    scene = right_or_refused(lambda: load_scene(str(tmp_path / "a.yaml")))
    assert scene is None or scene.cube.shape[:2] == scene.labels.shape
