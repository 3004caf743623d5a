"""Scene files of the kinds that labs have: each is read as the plain scene, or refused with its reason."""

import json
import logging
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyogrio
import pytest
import rasterio
import scipy.io
import shapely
import yaml
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import Affine, from_origin
from rasterio.warp import transform as reproject

from datasets.errors import PairError, SceneFormatError
from datasets.harmonize import check_learnable, check_patch
from datasets.readers import load_scene, scene_digests
from datasets.writers import write_map, write_mat_v73

H, W, B = 9, 14, 5
NAMES = ["field", "roof", "road"]
NM = np.linspace(450, 950, B)
PLACE = from_origin(366000, 5806000, 30, 30)
RNG = np.random.default_rng(3)
LABELS = RNG.integers(0, 4, (H, W)).astype("u1")
CUBE = (RNG.uniform(300, 3000, (4, B))[LABELS] * RNG.uniform(.9, 1.1, (H, W, 1))).astype("i2")


def tif(path: Path, array: np.ndarray, tags=(), scale=None, offset=None, gcps=None, mask=None, colours=None, **profile) -> None:
    array = np.atleast_3d(array)
    profile = {"crs": "EPSG:32633", "transform": PLACE} | profile
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(
            path, "w", driver="GTiff", height=array.shape[0], width=array.shape[1], count=array.shape[2], dtype=array.dtype,
            **{key: value for key, value in profile.items() if value is not None}) as file:
        if colours:
            file.colorinterp = colours
        file.write(np.moveaxis(array, 2, 0))
        if scale:
            file.scales, file.offsets = [scale] * file.count, [offset] * file.count
        for band, values in enumerate(tags, 1):
            file.update_tags(band, **values)
        if gcps:
            file.gcps = (gcps, CRS.from_epsg(4326))
        if mask is not None:
            file.write_mask(mask)


def envi(path: Path, extra: str = "", interleave: str = "bsq", big: bool = False, offset: int = 0,
         header: Path | None = None) -> None:
    order = {"bil": (0, 2, 1), "bip": (0, 1, 2), "bsq": (2, 0, 1)}[interleave]
    path.write_bytes(bytes(offset) + CUBE.transpose(order).astype(">i2" if big else "<i2").tobytes())
    (header or path.with_suffix(".hdr")).write_text(
        f"ENVI\nsamples = {W}\nlines = {H}\nbands = {B}\nheader offset = {offset}\nfile type = ENVI Standard\ndata type = 2\n"
        f"interleave = {interleave}\nbyte order = {int(big)}\n{extra}")


def described(folder: Path, cube="cube.tif", labels="labels.tif", **scene) -> str:
    content = {"name": "a", "cube": cube if isinstance(cube, dict) else {"file": cube}}
    content |= {"class_names": NAMES} if "classes" not in scene else {}
    content |= {"labels": labels if isinstance(labels, dict) else {"file": labels}} if labels else {}
    (folder / "scene.yaml").write_text(yaml.safe_dump(content | scene, sort_keys=False))
    return str(folder / "scene.yaml")


@pytest.fixture
def pair(tmp_path):
    """Write cube.tif and labels.tif and read them by a scene file of these keys."""
    def read(cube=CUBE, labels=LABELS, label_options=None, keys=None, **options):
        tif(tmp_path / "cube.tif", cube, **options)
        tif(tmp_path / "labels.tif", labels, **label_options or {})
        return load_scene(described(tmp_path, **keys or {}))
    return read


def assert_plain(scene, bands=slice(None), labels=True) -> None:
    np.testing.assert_array_equal(scene.cube, CUBE[..., bands].astype("f4"))
    np.testing.assert_array_equal(scene.labels, LABELS if labels else 0)


WITHOUT_2 = [0, 1, 3, 4]


def band_tags(nm=NM, unit="Nanometers", **more):
    return [{"wavelength": f"{one:.4f}", "wavelength_units": unit} | {key: str(values[band]) for key, values in more.items()}
            for band, one in enumerate(nm)]


def test_plain(pair):
    assert_plain(pair())


def test_dead_bands_are_dropped_and_not_the_pixels(pair, caplog):
    dead = np.concatenate([CUBE[..., :2], np.full((H, W, 2), -32768, "i2"), CUBE[..., 2:]], 2)
    assert_plain(pair(dead, nodata=-32768, keys={"rgb_bands": [6, 2, 0]}))
    assert "2 of 7 bands are left out" in caplog.text
    scene = pair(dead, nodata=-32768, keys={"rgb_bands": [6, 4, 0], "wavelengths": [[400, 460, 7]]})
    assert scene.rgb_bands == (4, 2, 0) and scene.wavelengths.tolist() == [400, 410, 440, 450, 460]


def test_tags_of_bands(pair):
    scene = pair(tags=band_tags(NM / 1000, "Micrometers", bbl=[1, 1, 0, 1, 1], fwhm=[.01] * B))
    assert_plain(scene, WITHOUT_2)
    np.testing.assert_allclose(scene.wavelengths, NM[WITHOUT_2])
    np.testing.assert_allclose(scene.fwhm, 10)


def test_descending_and_overlapping_bands_are_put_in_order(pair):
    for order in ([4, 3, 2, 1, 0], [0, 3, 1, 2, 4]):
        scene = pair(CUBE[..., order], tags=band_tags(NM[order]))
        assert_plain(scene)
        np.testing.assert_allclose(scene.wavelengths, NM)


def test_bands_that_the_scene_file_drops(pair):
    assert_plain(pair(tags=band_tags(), keys={"bands": {"drop": [[0.69, "0.71 um"]]}}), WITHOUT_2)
    assert_plain(pair(keys={"bands": {"drop": [2]}}), WITHOUT_2)
    for drop, told in (([[1, 2]], "wavelengths, and they are unknown"), ([5], "there are 0 to 4"), (["a"], "drop must list"),
                       ([0, 1, 2, 3, 4], "all 5 bands are dropped")):
        with pytest.raises(SceneFormatError, match=told):
            pair(keys={"bands": {"drop": drop}})


def test_envi_headers(tmp_path):
    tif(tmp_path / "labels.tif", LABELS, crs=None, transform=None)
    envi(tmp_path / "cube", "wavelength units = Micrometers\nwavelength = {" + ", ".join(f"{nm / 1000:.4f}" for nm in NM)
         + "}\nbbl = {1, 1, 0, 1, 1}\n", header=tmp_path / "cube.hdr")
    for name in ("cube", "cube.hdr"):
        scene = load_scene(described(tmp_path, name))
        assert_plain(scene, WITHOUT_2)
        np.testing.assert_allclose(scene.wavelengths, NM[WITHOUT_2])


@pytest.mark.parametrize("options", [{"interleave": "bil", "big": True}, {"interleave": "bip", "offset": 512}])
def test_envi_variants(tmp_path, options):
    envi(tmp_path / "cube.img", **options)
    path = described(tmp_path, "cube.img", None)
    assert_plain(load_scene(path), labels=False)
    (tmp_path / "cube.img").write_bytes((tmp_path / "cube.img").read_bytes()[:-4])
    with pytest.raises(SceneFormatError, match="bytes, its header says"):
        load_scene(path)


@pytest.mark.parametrize("keys, told", [({}, "27|42 pixels hold -9999"), ({"nodata": -9999}, "42 pixels hold NaN")])
def test_fills_do_not_train(pair, caplog, keys, told):
    fill = CUBE.copy()
    fill[:3] = -9999
    scene = pair(fill, keys=keys)
    assert not scene.cube[:3].any() and not scene.labels[:3].any() and told.split("|")[-1] in caplog.text
    np.testing.assert_array_equal(scene.cube[3:], CUBE[3:])


def test_a_single_broken_value(pair):
    holes = CUBE.astype("f4")
    holes[0, 0, 2] = np.nan
    scene = pair(holes)
    assert not scene.cube[0, 0].any() and scene.labels[0, 0] == 0
    np.testing.assert_array_equal(scene.cube.reshape(-1, B)[1:], CUBE.reshape(-1, B)[1:])


def test_scale_and_offset(pair):
    expected = CUBE * 1e-4 - 0.1
    np.testing.assert_allclose(pair(scale=1e-4, offset=-0.1).cube, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(pair(scale=3, offset=7, keys={"scale": 1e-4, "offset": -0.1}).cube, expected, rtol=1e-5,
                               atol=1e-7)


def test_masks_and_alpha(pair):
    mask = np.full((H, W), 255, "u1")
    mask[1, 2] = 0
    assert not pair(mask=mask > 0).cube[1, 2].any()
    scene = pair(np.dstack([CUBE.astype("u2"), mask]), photometric="MINISBLACK", colours=[ColorInterp.gray] * B + [ColorInterp.alpha])
    assert scene.bands == B and not scene.cube[1, 2].any() and scene.cube[1, 3].any()
    bytes_ = (CUBE[..., :4] // 13).astype("u1")         # GDAL calls the fourth band alpha
    np.testing.assert_array_equal(pair(bytes_).cube, bytes_)


def test_a_mask_file_that_is_really_an_address_is_refused(pair, tmp_path):
    (tmp_path / "cube.tif.msk").write_text("<VRTDataset rasterXSize='1' rasterYSize='1'/>")
    with pytest.raises(SceneFormatError, match="cube.tif.msk is no GeoTIFF"):
        pair()


def test_a_vrt_with_a_no_data_value_for_each_band(tmp_path):
    cube = CUBE[..., :2].copy()
    cube[0, 0, 0], cube[0, 1, 1], cube[0, 2, 1] = -1, -2, -1
    tif(tmp_path / "cube.tif", cube)
    bands = "".join(f'<VRTRasterBand dataType="Int16" band="{b}"><NoDataValue>{-b}</NoDataValue><Scale>2</Scale><SimpleSource>'
                    f'<SourceFilename relativeToVRT="1">cube.tif</SourceFilename><SourceBand>{b}</SourceBand></SimpleSource>'
                    "</VRTRasterBand>" for b in (1, 2))
    (tmp_path / "cube.vrt").write_text(f'<VRTDataset rasterXSize="{W}" rasterYSize="{H}">{bands}</VRTDataset>')
    scene = load_scene(described(tmp_path, "cube.vrt", None))
    assert not scene.cube[0, :2].any() and scene.cube[0, 2].tolist() == [2 * cube[0, 2, 0], -2]


def test_numbers_that_are_not_real_are_refused(pair):
    with pytest.raises(SceneFormatError, match="complex64"):
        pair((CUBE + 1j).astype("c8"))


def arrays_in(folder: Path, kind: str) -> tuple:
    """Cube and labels in files of a kind, as a scene file names them."""
    if kind == "npy":
        np.save(folder / "c.npy", CUBE)
        np.save(folder / "l.npy", LABELS)
        return "c.npy", "l.npy", {}
    if kind == "npz":
        np.savez_compressed(folder / "s.npz", c=CUBE, l=LABELS, nm=NM)
        return "s.npz", "s.npz", {}
    if kind == "no key":
        scipy.io.savemat(folder / "c.mat", {"data": CUBE, "note": "x"})
        scipy.io.savemat(folder / "l.mat", {"anything": LABELS})
        return "c.mat", "l.mat", {}
    if kind in ("struct", "packed struct"):
        scipy.io.savemat(folder / "s.mat", {"first": 1, "scene": {"other": "a", "ori_data": CUBE, "map": LABELS}},
                         do_compression=kind != "struct")
        return {"file": "s.mat", "key": "scene.ori_data"}, {"file": "s.mat", "key": "scene.map"}, {}
    if kind in ("bands first", "axes"):
        scipy.io.savemat(folder / "s.mat", {"c": CUBE.transpose(2, 0, 1), "m": LABELS})
        return {"file": "s.mat", "key": "c"}, {"file": "s.mat", "key": "m"}, {"axes": "brc"} if kind == "axes" else {}
    with h5py.File(folder / "s.mat", "w") as file:                                     # "hdf5"
        file.create_dataset("c", data=CUBE, chunks=(4, 5, 2), compression="gzip")
        file["m"] = LABELS
    return "s.mat", {"file": "s.mat", "key": "m"}, {}


@pytest.mark.parametrize("kind", ["npy", "npz", "no key", "struct", "packed struct", "bands first", "axes", "hdf5"])
def test_arrays(tmp_path, kind):
    cube, labels, keys = arrays_in(tmp_path, kind)
    assert_plain(load_scene(described(tmp_path, cube, labels, **keys)))


def test_axes_that_cannot_be_told_are_named(tmp_path):
    cube = np.arange(5 * 5 * 5.).reshape(5, 5, 5)
    with h5py.File(tmp_path / "s.mat", "w") as file:
        file["c"] = cube
    with pytest.raises(SceneFormatError, match="which axis of 5 × 5 × 5 is rows.*axes: rcb"):
        load_scene(described(tmp_path, "s.mat", None))
    np.testing.assert_array_equal(load_scene(described(tmp_path, "s.mat", None, axes="brc")).cube, cube.transpose(1, 2, 0))
    write_mat_v73(tmp_path / "s.mat", {"c": cube})
    np.testing.assert_array_equal(load_scene(described(tmp_path, "s.mat", None)).cube, cube)


def test_arrays_that_are_pickled_or_cut_off_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([print], object), allow_pickle=True)
    np.save(tmp_path / "b.npy", CUBE)
    (tmp_path / "b.npy").write_bytes((tmp_path / "b.npy").read_bytes()[:-9])
    np.savez(tmp_path / "c.npz", c=np.array([[[print]]], object))
    for name in ("a.npy", "b.npy", "c.npz"):
        with pytest.raises(SceneFormatError, match=name):
            load_scene(described(tmp_path, name, None))


@pytest.mark.parametrize("cube", ["tile_*.tif", {"files": "tile_*.tif"}, {"files": ["tile_1.tif", "tile_0.tif"]}])
def test_tiles(tmp_path, cube):
    tif(tmp_path / "tile_0.tif", CUBE[:6])
    tif(tmp_path / "tile_1.tif", CUBE[6:], transform=from_origin(366000, 5806000 - 180, 30, 30))
    tif(tmp_path / "labels.tif", LABELS)
    scene = load_scene(path := described(tmp_path, cube))
    assert_plain(scene)
    assert scene.georeference.transform == tuple(PLACE)[:6]
    assert scene.sha256.keys() == {"tile_0.tif", "tile_1.tif", "labels.tif"} and scene.sha256 == scene_digests(path)
    tif(tmp_path / "tile_1.tif", CUBE[6:], transform=from_origin(366007, 5806000 - 180, 30, 30))
    with pytest.raises(SceneFormatError, match="between the pixels"):
        load_scene(path)


def test_maps_lie_where_the_scene_does(pair, tmp_path, caplog):
    scene = pair(crs=None)
    assert_plain(scene)
    write_map(tmp_path / "map.tif", LABELS, scene, NAMES)
    assert "no coordinate reference system" in caplog.text
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.crs is None and file.transform == PLACE
    corners = [GroundControlPoint(0, 0, 13, 52), GroundControlPoint(0, W, 13.1, 52), GroundControlPoint(H, 0, 13, 51.9)]
    scene = pair(gcps=corners, crs=None, transform=None, label_options={"crs": None, "transform": None})
    assert_plain(scene)
    write_map(tmp_path / "map.tif", LABELS, scene, NAMES)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert [(one.row, one.col, one.x, one.y) for one in file.gcps[0]] == [(0, 0, 13, 52), (0, W, 13.1, 52), (H, 0, 13, 51.9)]


def test_labels_that_lie_elsewhere_are_refused(pair):
    with pytest.raises(SceneFormatError, match="no label lies on the cube"):
        pair(label_options={"crs": "EPSG:4326", "transform": from_origin(13, 52, .001, .001)})
    with pytest.raises(SceneFormatError, match="no label lies on the cube"):
        pair(label_options={"transform": from_origin(466000, 5806000, 30, 30)})


@pytest.mark.parametrize("labels, transform", [
    (LABELS[::-1].copy(), Affine(30, 0, 366000, 0, 30, 5806000 - 30 * H)),
    (LABELS.repeat(3, 0).repeat(3, 1), from_origin(366000, 5806000, 10, 10)),
    (np.pad(LABELS, 2), from_origin(366000 - 60, 5806000 + 60, 30, 30))])
def test_labels_on_another_grid(pair, caplog, labels, transform):
    assert_plain(pair(labels=labels, label_options={"transform": transform}))
    assert "on another grid" in caplog.text


def test_ids_of_labels(pair, caplog):
    void = np.where(LABELS == 0, 255, LABELS).astype("u1")
    assert_plain(pair(labels=void))
    assert "255 is read as unlabelled" in caplog.text
    assert_plain(pair(labels=void + 0, keys={"labels": {"file": "labels.tif", "nodata": 255}}))
    gaps = np.array([0, 1, 5, 9], "u1")[LABELS]
    gaps[-1][gaps[-1] == 9] = 12
    assert_plain(pair(labels=gaps, keys={"classes": {"field": 1, "roof": 5, "road": [9, 12]}}))
    with pytest.raises(SceneFormatError, match="labels run from 0 to 12"):
        pair(labels=gaps)


@pytest.mark.parametrize("classes", [{"a": {"b": 1}}, {"a": 1, "b": 1}, {"a": []}, [1], {"a": True}])
def test_classes_of_another_form_are_refused(pair, classes):
    with pytest.raises(SceneFormatError, match="scene.yaml: classes"):
        pair(keys={"classes": classes})


@pytest.mark.parametrize("names", [["Road", "road"], ["road", "road "], ["ﬁeld", "field"]])
def test_look_alike_names_and_keys_that_stand_twice_are_refused(pair, tmp_path, names):
    with pytest.raises(SceneFormatError, match="no two alike"):
        pair(keys={"class_names": names})
    (tmp_path / "scene.yaml").write_text("name: a\nname: b\ncube: {file: cube.tif}\nclass_names: [a]\n")
    with pytest.raises(SceneFormatError, match="says name twice"):
        load_scene(str(tmp_path / "scene.yaml"))


def squares(crs: str) -> tuple[list, list[str]]:
    """A square for each labelled pixel, and its class."""
    shapes, names = [], []
    for row, column in np.argwhere(LABELS > 0):
        corners = [PLACE * (column + dx, row + dy) for dx, dy in ((0, 0), (1, 0), (1, 1), (0, 1))]
        shapes.append(shapely.Polygon(list(zip(*reproject("EPSG:32633", crs, *zip(*corners))))))
        names.append(NAMES[LABELS[row, column] - 1])
    return shapes, names


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "shp"])
def test_polygons(tmp_path, suffix):
    tif(tmp_path / "cube.tif", CUBE)
    shapes, names = squares("EPSG:4326")
    if suffix == "geojson":
        features = [{"type": "Feature", "properties": {"class": name}, "geometry": shapely.geometry.mapping(shape)}
                    for shape, name in zip(shapes, names)]
        (tmp_path / "l.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    else:
        pyogrio.raw.write(tmp_path / f"l.{suffix}", shapely.to_wkb(np.array(shapes)), [np.array(names, object)], ["class"],
                          geometry_type="Polygon", crs="EPSG:4326")
    assert_plain(load_scene(described(tmp_path, labels=f"l.{suffix}")))
    scene = load_scene(described(tmp_path, labels=f"l.{suffix}", classes={"built": ["roof", "road"]}))
    np.testing.assert_array_equal(scene.labels, LABELS > 1)
    with pytest.raises(SceneFormatError, match="no column of classes is called kind; it has class"):
        load_scene(described(tmp_path, labels={"file": f"l.{suffix}", "key": "kind"}))


def test_polygon_files_that_are_something_else_are_refused(tmp_path):
    tif(tmp_path / "cube.tif", CUBE)
    for name, content in (("a.gpkg", "<OGRVRTDataSource/>"), ("a.shp", "<OGRVRTDataSource/>"), ("a.geojson", "[1]"),
                          ("b.geojson", '{"features": []}')):
        (tmp_path / name).write_text(content)
        with pytest.raises(SceneFormatError, match=name):
            load_scene(described(tmp_path, labels=name))


def test_what_cannot_be_learnt(pair):
    with pytest.raises(PairError, match="one class cannot be learnt"):
        check_learnable(pair(labels=np.minimum(LABELS, 1)))
    with pytest.raises(PairError, match="has one band"):
        check_learnable(pair(CUBE[..., :1]))
    check_learnable(pair(CUBE[..., :3]))
    with pytest.raises(PairError, match="at most 11"):
        check_patch(pair(CUBE[:5, :5], LABELS[:5, :5]), 13)


def test_wavelengths_and_their_unit(pair, caplog):
    for values, keys in ((NM / 1000, {"wavelength_units": "um"}), (NM / 1000, {}), (NM, {})):
        scene = pair(keys={"wavelengths": values.tolist()} | keys)
        np.testing.assert_allclose(scene.wavelengths, NM)
    assert pair(keys={"wavelengths": [1e6] * B}).wavelengths is None and "they are ignored" in caplog.text
    with pytest.raises(SceneFormatError, match="furlongs, is not known"):
        pair(tags=band_tags(unit="furlongs"))
    np.testing.assert_allclose(pair(tags=band_tags(), keys={"fwhm": 8}).fwhm, 8)


def test_emit(tmp_path):
    with h5py.File(tmp_path / "emit.nc", "w") as file:
        values = CUBE.astype("f4")
        values[0, 0] = -9999
        file.create_dataset("reflectance", data=values, chunks=(4, 5, 2), compression="gzip").attrs["_FillValue"] = [-9999.]
        for name, one in (("wavelengths", NM), ("fwhm", np.full(B, 8.)), ("good_wavelengths", [1, 1, 0, 1, 1])):
            file[f"sensor_band_parameters/{name}"] = np.asarray(one, "f4")
        rows, columns = np.mgrid[:H, :W]
        file["location/lon"], file["location/lat"] = 13 + columns / 1000, 52 - rows / 1000
    scene = load_scene(described(tmp_path, "emit.nc", None))
    np.testing.assert_array_equal(scene.cube[1:], CUBE[1:][..., WITHOUT_2])
    assert not scene.cube[0, 0].any() and scene.fwhm.tolist() == [8] * 4
    np.testing.assert_allclose(scene.wavelengths, NM[WITHOUT_2])
    assert scene.georeference.points[0] == (0.5, 0.5, 13, 52, 0)


@pytest.mark.parametrize("name, told", [("sensor_band_parameters", "needs the variable's name"), ("reflectance", "holds neither")])
def test_a_product_leads_to_no_other_file(tmp_path, name, told):
    with h5py.File(tmp_path / "other.nc", "w") as file:
        file["sensor_band_parameters/wavelengths"], file["reflectance"] = NM, CUBE
    with h5py.File(tmp_path / "emit.nc", "w") as file:
        if name == "reflectance":
            file["sensor_band_parameters/wavelengths"] = NM
        file[name] = h5py.ExternalLink(str(tmp_path / "other.nc"), name)
    with pytest.raises(SceneFormatError, match=told):
        load_scene(described(tmp_path, "emit.nc", None))


def test_an_npz_that_declares_more_than_it_holds_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("c.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (9000, 9000, 99)})
    with pytest.raises(SceneFormatError, match="a.npz declares 9000 × 9000 × 99 values"):
        load_scene(described(tmp_path, "a.npz", None))


def test_prisma(tmp_path):
    with h5py.File(tmp_path / "prisma.he5", "w") as file:
        for name, bands in (("VNIR", [2, 1, 0]), ("SWIR", [4, 3])):
            file[f"HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields/{name}_Cube"] = CUBE[..., bands].astype("u2").transpose(0, 2, 1)
            file.attrs[f"List_Cw_{name.title()}"] = NM[bands].astype("f4")
            file.attrs[f"List_Fwhm_{name.title()}"] = np.full(len(bands), 11, "f4")
            file.attrs[f"L2Scale{name.title()}Min"], file.attrs[f"L2Scale{name.title()}Max"] = 0.25, 1.25
        file.attrs.update({"Epsg_Code": 32633, "Product_ULcorner_easting": 366015, "Product_ULcorner_northing": 5805985,
                           "Product_LRcorner_easting": 366015 + 30 * (W - 1),
                           "Product_LRcorner_northing": 5805985 - 30 * (H - 1)})
    scene = load_scene(described(tmp_path, "prisma.he5", None))
    np.testing.assert_allclose(scene.cube, CUBE / 65535 + 0.25, rtol=1e-6)
    np.testing.assert_allclose(scene.wavelengths, NM, rtol=1e-6)
    np.testing.assert_allclose(scene.georeference.transform, tuple(PLACE)[:6])
    with h5py.File(tmp_path / "prisma.he5", "a") as file:
        del file.attrs["List_Cw_Vnir"]
    with pytest.raises(SceneFormatError, match="prisma.he5 cannot be read as EMIT or PRISMA"):
        load_scene(described(tmp_path, "prisma.he5", None))


@pytest.mark.parametrize("kind", ["tif", "mat", "npy"])
def test_reading_takes_one_float32_copy(tmp_path, kind):
    """A fifth of the bands is dropped on the way, which takes no second copy."""
    cube = np.ones((1000, 300, 50), "f4")
    cube[..., ::5] = np.nan
    if kind == "tif":
        tif(tmp_path / "c.tif", cube)
    elif kind == "mat":
        with h5py.File(tmp_path / "c.mat", "w") as file:
            file.create_dataset("c", data=cube.T).attrs["MATLAB_class"] = np.bytes_("single")
    else:
        np.save(tmp_path / "c.npy", cube)
    size, path = cube.nbytes, described(tmp_path, f"c.{kind}", None)
    del cube
    logging.disable()
    tracemalloc.start()
    try:
        assert load_scene(path).bands == 40
        assert tracemalloc.get_traced_memory()[1] < 1.5 * size
    finally:
        tracemalloc.stop()
        logging.disable(logging.NOTSET)
