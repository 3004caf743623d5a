"""GDAL's virtual rasters (VRT), as far as they are mosaics and stacks of GeoTIFFs in their own folder.

A VRT names the files that it is made of.  Those names may be addresses or any local files, and the files of any format,
again with names in them.  So a VRT is read here, rewritten from a list of what it may hold, and then given to GDAL.
"""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree              # nosec B405 # `local` refuses entities before it parses

from datasets.errors import SceneFormatError
from model.plain import is_file

LARGEST = 1 << 24                                       # bytes
MOST_BANDS = 4096                                       # GDAL takes a minute to open sixty thousand
MOST_COVERS = 4                                         # times that sources may cover an image one over another
DEEPEST = 4                                             # a source's name, in a source, in a band, in the image
_PLACE = {"xOff", "yOff", "xSize", "ySize"}
_KEPT = {                                               # element -> its attributes
    "VRTDataset": {"rasterXSize", "rasterYSize"}, "SRS": {"dataAxisToSRSAxisMapping", "coordinateEpoch"},
    "GeoTransform": set(), "VRTRasterBand": {"dataType", "band", "blockXSize", "blockYSize"}, "NoDataValue": set(),
    "SimpleSource": {"resampling"}, "ComplexSource": {"resampling"},
    "SourceFilename": {"relativeToVRT", "relativetoVRT", "shared"}, "SourceBand": set(),
    "SourceProperties": {"RasterXSize", "RasterYSize", "DataType", "BlockXSize", "BlockYSize"}, "SrcRect": _PLACE,
    "DstRect": _PLACE, "NODATA": set(), "ScaleOffset": set(), "ScaleRatio": set(), "UseMaskBand": set(),
    "Offset": set(), "Scale": set(), "ColorInterp": set(),
    "Metadata": set(), "MDI": {"key"}}
_WITHOUT_EFFECT = {                                     # on the values that are read
    "OverviewList", "Histograms", "Description", "CategoryNames", "ColorTable", "UnitType"}
_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


def local(path: Path) -> bytes:
    """A VRT with the absolute paths of its sources, all of them GeoTIFFs at or below its folder.

    Raises SceneFormatError for other sources, and for what is no plain mosaic or stack.
    """
    if path.stat().st_size > LARGEST:
        raise SceneFormatError(f"{path} has {path.stat().st_size:,} bytes; a .vrt has at most {LARGEST:,}.")
    text = path.read_bytes()
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text or b"\0" in text:
        raise SceneFormatError(f"{path} declares a document type; a .vrt has none.")
    try:
        root = ElementTree.fromstring(text)             # nosec B314 # small, and without entities: see above
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise SceneFormatError(f"{path} is not a valid .vrt file ({error}).") from error
    if root.tag != "VRTDataset":
        raise _refused(path, root.tag)
    _check_bands(root, path)
    return ElementTree.tostring(_rewritten(root, path), encoding="unicode").encode()


def _check_bands(root: ElementTree.Element, path: Path) -> None:
    """Raises SceneFormatError if a band's sources cover the image many times, which takes as many times as long, or if
    there are far too many bands."""
    def area(element: ElementTree.Element | None, names: tuple[str, str]) -> float:
        try:
            return abs(math.prod(float(element.get(name)) for name in names))
        except (AttributeError, TypeError, ValueError):                        # GDAL says what is wrong with it
            return 0.0

    whole = area(root, ("rasterXSize", "rasterYSize"))
    bands = list(root.iter("VRTRasterBand"))
    if len(bands) > MOST_BANDS:
        raise SceneFormatError(f"{path} has {len(bands):,} bands; at most {MOST_BANDS:,} are read from a .vrt. Make it a "
                               "GeoTIFF (gdal_translate).")
    for band in bands:
        covered = sum(whole if (place := source.find("DstRect")) is None else area(place, ("xSize", "ySize"))
                      for source in band if source.tag in ("SimpleSource", "ComplexSource"))
        if not covered <= MOST_COVERS * whole:
            raise SceneFormatError(f"{path}: the sources of a band cover its image more than {MOST_COVERS} times. Make "
                                   "it a GeoTIFF (gdal_translate).")


def sources(text: bytes) -> list[Path]:
    """The files that a VRT of `local` names, each once."""
    root = ElementTree.fromstring(text)                 # nosec B314 # this module's own text
    return sorted({Path(element.text) for element in root.iter("SourceFilename")})


def is_geotiff(path: Path) -> bool:
    """Whether a file begins as a TIFF does, so that GDAL opens it as nothing else."""
    with open(path, "rb") as file:
        return file.read(4) in _TIFF


def _rewritten(element: ElementTree.Element, path: Path, depth: int = 1) -> ElementTree.Element:
    """An element with what it may hold."""
    if strange := set(element.keys()) - _KEPT[element.tag]:
        raise _refused(path, f"{element.tag} {sorted(strange)[0]}")
    made = ElementTree.Element(element.tag, dict(element.items()))
    made.text = element.text
    if element.tag == "SourceFilename":
        made.text, made.attrib = str(_source(element, path)), {"relativeToVRT": "0"}
    for child in element:
        if child.tag in _WITHOUT_EFFECT or child.tag == "Metadata" and child.keys():      # of another domain
            continue
        if child.tag not in _KEPT or child.tag == "VRTDataset" or depth == DEEPEST:
            raise _refused(path, str(child.tag))
        made.append(_rewritten(child, path, depth + 1))
    return made


def _source(element: ElementTree.Element, path: Path) -> Path:
    name, folder = element.text or "", path.parent.resolve()
    relative = "1" in (element.get("relativeToVRT"), element.get("relativetoVRT"))
    source = path.parent / name if relative else Path(name)
    if not is_file(source) or not source.resolve().is_relative_to(folder):
        raise SceneFormatError(f"{path} names the source {name[:200]}, which is no file at or below its own folder. "
                               "Put the source there.")
    if not is_geotiff(source):
        raise SceneFormatError(f"{path} names the source {name[:200]}, which is no GeoTIFF. Convert it, or the "
                               ".vrt, to GeoTIFF (gdal_translate).")
    return source.resolve()


def _refused(path: Path, what: str) -> SceneFormatError:
    return SceneFormatError(f"{path} holds {what[:100]}; only mosaics and stacks of GeoTIFFs are read from a .vrt. "
                            "Make it a GeoTIFF (gdal_translate).")
