"""Raster images: only GeoTIFF, ENVI and local mosaics are opened, whatever a file says that it is."""

import threading
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import rasterio
import yaml

from datasets import formats
from datasets.errors import SceneFormatError, SceneNotFoundError
from datasets.formats import read_raster
from datasets.readers import load_scene
from raster_files import write_tif

ARRAY = np.full((2, 3, 4), 7, np.int16)


@pytest.fixture
def visits() -> tuple[str, list[str]]:
    """Address of a server on this machine, and the requests that it got."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *words):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def vrt(source: str, relative: int = 1, more: str = "", attributes: str = "", band: str = "") -> str:
    return (f'<VRTDataset rasterXSize="3" rasterYSize="2"{attributes}>{more}'
            f'<VRTRasterBand dataType="Int16" band="1"{band}><SimpleSource><SourceFilename relativeToVRT="{relative}">'
            f"{source}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>")


def disguises(address: str) -> dict[str, str]:
    return {"a VRT": vrt(f"/vsicurl/{address}/a.tif", 0), "a WMS":
            f"<GDAL_WMS><Service name='TMS'><ServerUrl>{address}/"
            "${z}/${x}/${y}.png</ServerUrl></Service><DataWindow><UpperLeftX>0</UpperLeftX><UpperLeftY>1</UpperLeftY>"
            "<LowerRightX>1</LowerRightX><LowerRightY>0</LowerRightY><TileLevel>1</TileLevel></DataWindow></GDAL_WMS>",
            "a WMTS": f"<GDAL_WMTS><GetCapabilitiesUrl>{address}/caps</GetCapabilitiesUrl></GDAL_WMTS>",
            "a WCS": f"<WCS_GDAL><ServiceURL>{address}/?</ServiceURL><CoverageName>a</CoverageName></WCS_GDAL>"}


@pytest.mark.parametrize("kind", disguises(""))
@pytest.mark.parametrize("suffix", ["tif", "img", "png", "vrt", "dat"])
def test_a_raster_file_that_is_really_an_address_makes_no_request(tmp_path, visits, kind, suffix):
    (tmp_path / f"a.{suffix}").write_text(disguises(visits[0])[kind])
    with pytest.raises(SceneFormatError, match=rf"a\.{suffix}"):
        read_raster(tmp_path / f"a.{suffix}", 0)
    assert visits[1] == []


@pytest.mark.parametrize("name", ["/vsicurl/http://127.0.0.1:9/a.tif", "http://127.0.0.1:9/a.tif",
                                  "WMS:http://127.0.0.1:9/"])
def test_a_scene_file_that_names_an_address_finds_no_file(tmp_path, name):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"name": "a", "cube": {"file": name}, "class_names": ["b"]}))
    with pytest.raises(SceneNotFoundError):
        load_scene(str(tmp_path / "a.yaml"))


def test_a_vrt_of_geotiffs_in_its_own_folder_is_read(tmp_path):
    write_tif(tmp_path / "a.tif", ARRAY[..., :1], crs="EPSG:32615",
              transform=rasterio.transform.from_origin(300000, 3290000, 2.5, 2.5))
    (tmp_path / "a.vrt").write_text(vrt("a.tif", more="<GeoTransform>300000, 2.5, 0, 3290000, 0, -2.5</GeoTransform>"
                                        "<Metadata><MDI key='a'>b</MDI></Metadata>"))
    (tmp_path / "absolute.vrt").write_text(vrt(str(tmp_path / "a.tif"), 0))
    array, place = read_raster(tmp_path / "a.vrt", 0)
    assert (array == 7).all() and array.shape == (2, 3, 1)
    assert (read_raster(tmp_path / "absolute.vrt", 0)[0] == 7).all()


@pytest.mark.parametrize("source", ["../elsewhere/secret.tif", "{there}/secret.tif", "link.tif",
                                    "/vsicurl/{address}/a.tif", "{address}/a.tif",
                                    "inner.vrt", "envi.img", "GTIFF_DIR:1:a.tif", "", "."])
@pytest.mark.parametrize("relative", [0, 1])
def test_a_vrt_reaches_nothing_outside_its_folder(tmp_path, visits, source, relative):
    folder, secret = tmp_path / "data", tmp_path / "elsewhere"
    folder.mkdir()
    secret.mkdir()
    write_tif(secret / "secret.tif", ARRAY)
    write_tif(folder / "a.tif", ARRAY)
    (folder / "link.tif").symlink_to(secret / "secret.tif")
    (folder / "inner.vrt").write_text(vrt(f"/vsicurl/{visits[0]}/a.tif", 0))
    (folder / "envi.img").write_text(vrt(f"/vsicurl/{visits[0]}/a.tif", 0))
    name = source.format(there=secret, address=visits[0])
    (folder / "a.vrt").write_text(vrt(str(folder / name) if relative == 0 and "." in source[:1] else name, relative))
    with pytest.raises(SceneFormatError, match="names the source"):
        read_raster(folder / "a.vrt", 0)
    assert visits[1] == []


@pytest.mark.parametrize("content", [
    vrt("a.tif", attributes=' subClass="VRTWarpedDataset"'), vrt("a.tif", band=' subClass="VRTRawRasterBand"'),
    vrt("a.tif", band=' subClass="VRTDerivedRasterBand"'),
    vrt("a.tif", more="<SourceFilename>/etc/passwd</SourceFilename>"),
    vrt("a.tif", more="<GDALWarpOptions/>"), vrt("a.tif", more="<sourcefilename>b</sourcefilename>"),
    vrt("a.tif").replace("SimpleSource", "KernelFilteredSource"),
    vrt("a.tif").replace("<SourceBand>", "<OpenOptions/><SourceBand>"),
    vrt("a.tif").replace("<SimpleSource>", '<SimpleSource SourceFilename="/etc/passwd">'),
    '<!DOCTYPE a [<!ENTITY b "c">]>' + vrt("&b;"), vrt("a.tif") + "\0", "<VRTDataset>", "", "<a/>", "<GDAL_WMS/>",
    "<VRTDataset>" + "<SRS>" * 100_000, " " * (1 << 24) + vrt("a.tif")])
def test_a_vrt_that_is_more_than_a_mosaic_is_refused(tmp_path, content):
    write_tif(tmp_path / "a.tif", ARRAY)
    (tmp_path / "a.vrt").write_text(content)
    with pytest.raises(SceneFormatError, match="a.vrt"):
        read_raster(tmp_path / "a.vrt", 0)


def test_a_geotiff_that_declares_more_than_it_holds_is_refused(tmp_path):
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", height=60000, width=60000, count=1, dtype="float32",
                       sparse_ok=True, compress="deflate", bigtiff="yes", tiled=True):
        pass
    assert (tmp_path / "a.tif").stat().st_size < 2_000_000
    with pytest.raises(SceneFormatError, match="declares 60000 × 60000 × 1 values"):
        read_raster(tmp_path / "a.tif", 0)
    write_tif(tmp_path / "b.tif", np.ones((2, 2, 2), np.complex64))
    with pytest.raises(SceneFormatError, match="real numbers"):
        read_raster(tmp_path / "b.tif", 0)


def test_a_tile_larger_than_the_image_and_the_file_is_refused(tmp_path):
    """194 bytes would take a gigabyte."""
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", height=4, width=5, count=1, dtype="float32",
                       tiled=True, blockxsize=16384, blockysize=16384, compress="deflate", sparse_ok=True):
        pass
    (tmp_path / "a.vrt").write_text(vrt("a.tif"))
    for name in ("a.tif", "a.vrt"):
        with pytest.raises(SceneFormatError, match="a.tif declares 16384 × 16384 × 1 values, but has only"):
            read_raster(tmp_path / name, 0)


@pytest.mark.parametrize("packing", [{"compress": "deflate"}, {"compress": "lzw"}, {"compress": "zstd"}, {},
                                     {"driver": "ENVI"}])
def test_an_image_may_unfold_as_far_as_its_packing_can(tmp_path, monkeypatch, packing):
    monkeypatch.setattr(formats, "ALWAYS_READ", 1 << 16)
    profile = {"driver": "GTiff", "height": 2000, "width": 2000, "count": 1, "dtype": "float32"} | packing
    with rasterio.open(tmp_path / "a.tif", "w", **profile) as file:
        file.write(np.zeros((1, 2000, 2000), np.float32))
    assert read_raster(tmp_path / "a.tif", 0)[0].shape == (2000, 2000, 1)
    with rasterio.open(tmp_path / "b.tif", "w", sparse_ok=True, tiled=True, blockxsize=512, blockysize=512,
                       **profile | {"driver": "GTiff"}):
        pass
    with pytest.raises(SceneFormatError, match="declares 2000 × 2000 × 1 values"):
        read_raster(tmp_path / "b.tif", 0)


def test_a_vrt_that_is_far_larger_than_its_sources_is_refused(tmp_path):
    write_tif(tmp_path / "a.tif", ARRAY[..., :1])
    (tmp_path / "a.vrt").write_text(vrt("a.tif").replace('XSize="3"', 'XSize="40000000"'))
    with pytest.raises(SceneFormatError, match="a.vrt declares 2 × 40000000 × 1 values, far more than its sources"):
        read_raster(tmp_path / "a.vrt", 0)


def test_a_vrt_whose_sources_lie_one_over_another_many_times_is_refused(tmp_path):
    """3,000 of them took as many times as long."""
    write_tif(tmp_path / "a.tif", ARRAY[..., :1])
    whole = vrt("a.tif")
    source = whole[whole.index("<SimpleSource"):whole.index("</VRTRasterBand>")]
    for times, refused in ((4, False), (5, True)):
        (tmp_path / "a.vrt").write_text(whole.replace(source, source * times))
        with pytest.raises(SceneFormatError, match="cover its image more than 4 times") if refused else nullcontext():
            read_raster(tmp_path / "a.vrt", 0)
    band = whole[whole.index("<VRTRasterBand"):whole.index("</VRTDataset>")]
    (tmp_path / "a.vrt").write_text(whole.replace(band, band * 4097))
    with pytest.raises(SceneFormatError, match="4,097 bands; at most 4,096"):
        read_raster(tmp_path / "a.vrt", 0)
