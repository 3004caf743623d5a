"""`python main.py prepare pavia|hyrank|houston`: from the public originals to the benchmark's files.

The originals and what becomes of them: docs/data.md, "Originals".

Pavia   https://www.ehu.eus/ccwintco/index.php/Hyperspectral_Remote_Sensing_Scenes (MATLAB, 9 classes each)
HyRANK  https://zenodo.org/records/1222202 (GeoTIFF, 14 classes)
Houston its terms forbid redistribution: brought by the user, checked and put into place
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.benchmark import BENCHMARK, check_scene
from datasets.errors import SceneFormatError, SceneNotFoundError
from datasets.formats import read_mat, read_raster
from datasets.originals import Found, Original, fetch, find_originals, record_sums
from datasets.readers import sha256
from datasets.writers import write_mat_v5
from model.errors import ConfigError
from model.files import replacing

log = logging.getLogger(__name__)

ORIGINALS_FOLDER = "originals"      # downloads go there, inside the pair's folder
RECORD_FILE = "prepared.json"       # which output was made from which original


@dataclass(frozen=True)
class SceneRecipe:
    """How one scene is made from its originals.

    cube, labels          (file, variable); no variable: a raster image
    bands                 how many of the first bands are kept
    classes               class in the original -> class here, 0 = left out
    note                  explains a difference from the benchmark that is to be expected
    """

    cube: tuple[str, str | None]
    labels: tuple[str, str | None]
    bands: int
    classes: dict[int, int]
    note: str = ""


@dataclass(frozen=True)
class PairRecipe:
    """A pair's scenes, the files to download (none: the terms forbid it), and where they come from."""

    scenes: dict[str, SceneRecipe]
    downloads: tuple[str, ...]
    where: str
    archive: str | None = None


_PAVIA_PAGE = "https://www.ehu.eus/ccwintco/index.php/Hyperspectral_Remote_Sensing_Scenes"
_COMMUNITY = "https://github.com/YuxiangZhang-BIT/Data-CSHSI"
_SAME_7 = {k: k for k in range(1, 8)}
_OUT_68 = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 0, 7: 6, 8: 0, 9: 7, 10: 8, 11: 9, 12: 10, 13: 11, 14: 12}
_LOUKIA_NOTE = ("the public Loukia map without classes 6 and 8 has 12208 labelled pixels, the benchmark's 10317, by a "
                "selection that was never published: for numbers beside published ones, put the community's "
                f"Loukia_gt_out68.mat in its place ({_COMMUNITY})")

PAIRS: dict[str, PairRecipe] = {
    "pavia": PairRecipe({
        "paviaU": SceneRecipe(("PaviaU.mat", "paviaU"), ("PaviaU_gt.mat", "paviaU_gt"), 102,
                              {4: 1, 1: 2, 8: 3, 7: 4, 9: 5, 2: 6, 6: 7, 3: 0, 5: 0}),       # 0: gravel, metal sheets
        "paviaC": SceneRecipe(("Pavia.mat", "pavia"), ("Pavia_gt.mat", "pavia_gt"), 102,
                              {2: 1, 6: 2, 4: 3, 7: 4, 9: 5, 3: 6, 5: 7, 1: 0, 8: 0}),       # 0: water, tiles
    }, ("PaviaU.mat", "PaviaU_gt.mat", "Pavia.mat", "Pavia_gt.mat"), _PAVIA_PAGE),
    "hyrank": PairRecipe({
        "Dioni": SceneRecipe(("Dioni.tif", None), ("Dioni_GT.tif", None), 176, _OUT_68),
        "Loukia": SceneRecipe(("Loukia.tif", None), ("Loukia_GT.tif", None), 176, _OUT_68, _LOUKIA_NOTE),
    }, ("HyRANK_satellite.zip",), "https://zenodo.org/records/1222202", archive="HyRANK_satellite.zip"),
    "houston": PairRecipe({
        "Houston13": SceneRecipe(("Houston13.mat", "ori_data"), ("Houston13_7gt.mat", "map"), 48, _SAME_7),
        "Houston18": SceneRecipe(("Houston18.mat", "ori_data"), ("Houston18_7gt.mat", "map"), 48, _SAME_7),
    }, (), f"{_COMMUNITY} (cut from the 2013 and 2018 IEEE GRSS Data Fusion Contests' scenes, "
           "https://machinelearning.ee.uh.edu, before: hyperspectral.ee.uh.edu)"),
}

# Without the publishers' digests, which no source that could be cited here states: SHA256SUMS keeps the first ones.
SOURCES: dict[str, Original] = {source.file: source for source in (
    Original("PaviaU.mat", "https://www.ehu.eus/ccwintco/uploads/e/ee/PaviaU.mat"),
    Original("PaviaU_gt.mat", "https://www.ehu.eus/ccwintco/uploads/5/50/PaviaU_gt.mat"),
    Original("Pavia.mat", "https://www.ehu.eus/ccwintco/uploads/e/e3/Pavia.mat"),
    Original("Pavia_gt.mat", "https://www.ehu.eus/ccwintco/uploads/5/53/Pavia_gt.mat"),
    Original("HyRANK_satellite.zip", "https://zenodo.org/records/1222202/files/HyRANK_satellite.zip?download=1"),
)}


def prepare(pair: str, out: Path, originals: Path | None = None, *, sources: dict[str, Original] | None = None,
            progress: bool = True, overwrite: bool = False) -> list[Path]:
    """Write the benchmark files of a pair into `out`; returns the paths written.

    The originals are searched in `originals` and below, or downloaded into out/originals.  A file that is there
    already is left alone, unless `overwrite` is set or it was made here from an original that has changed since.
    Raises SceneNotFoundError, SceneFormatError, DownloadError or ConfigError with what to do.
    """
    if pair not in PAIRS:
        raise ConfigError(f"'{pair}' is not a pair that can be prepared: choose {', '.join(PAIRS)}.")
    recipe, out = PAIRS[pair], Path(out)
    try:
        if originals is None and not overwrite and _in_place(recipe, out):
            log.info("%s: the files are in %s already; --overwrite makes them again", pair, out)
            return []
        if originals is None and not recipe.downloads:
            raise SceneNotFoundError(_bring_yourself(pair, recipe, out))
        out.mkdir(parents=True, exist_ok=True)
        fetched = [] if originals is not None else _download(recipe, out, sources or SOURCES, progress)
        found = _find(pair, recipe, out / ORIGINALS_FOLDER if originals is None else Path(originals), out)
        digests = {file: sha256(file) for file in {original.path for original in found.values()}}
        written = [path for name in recipe.scenes
                   for path in _make_scene(name, recipe, found, digests, out, overwrite)]
        if fetched:
            record_sums(fetched, out / ORIGINALS_FOLDER)    # only now: what could be read is what is trusted
        return written
    except OSError as error:
        raise ConfigError(f"{pair} cannot be prepared in {out}: {error}. Check the folder, its permissions and the "
                          "free space, then run the command again; finished files are kept.") from error


def _outputs(recipe: PairRecipe) -> list[str]:
    return [file for name in recipe.scenes for file in (BENCHMARK[name].cube_file, BENCHMARK[name].labels_file)]


def _in_place(recipe: PairRecipe, out: Path) -> bool:
    """Whether all files are there and nothing is, that they could be compared with or made from."""
    return all((out / file).is_file() for file in _outputs(recipe)) and not (out / ORIGINALS_FOLDER).exists()


def _bring_yourself(pair: str, recipe: PairRecipe, out: Path) -> str:
    missing = [file for file in _outputs(recipe) if not (out / file).is_file()]
    return (f"The terms of the {pair.capitalize()} scenes forbid redistribution, so they cannot be fetched here. Get "
            f"{', '.join(_outputs(recipe))} from {recipe.where}, and put them into {out} (missing there: "
            f"{', '.join(missing)}), or run python main.py prepare {pair} --from DIR, where DIR holds them; that "
            "checks them and puts them into place.")


def _download(recipe: PairRecipe, out: Path, sources: dict[str, Original], progress: bool) -> list[Path]:
    folder = out / ORIGINALS_FOLDER
    folder.mkdir(exist_ok=True)
    paths = []
    for file in recipe.downloads:
        log.info("%s %s", "found" if (folder / file).exists() else f"fetching {sources[file].url} into", folder / file)
        paths.append(fetch(sources[file], folder, progress))
    return paths


def _find(pair: str, recipe: PairRecipe, folder: Path, out: Path) -> dict[str, Found]:
    if not folder.is_dir():
        raise SceneNotFoundError(f"{folder} is not a folder; --from wants the folder of the originals.")
    names = [file for scene in recipe.scenes.values() for file, _ in (scene.cube, scene.labels)]
    found = find_originals(names, folder, recipe.archive)
    if missing := [name for name in names if name not in found]:
        inside = f" (unpacked, or inside {recipe.archive})" if recipe.archive else ""
        raise SceneNotFoundError(f"{', '.join(missing)} not found in {folder} or below it{inside}. The originals are "
                                 f"at {recipe.where}; without --from, python main.py prepare {pair} "
                                 f"{'fetches them' if recipe.downloads else 'says how to get them'}. Files that hold "
                                 f"ori_data and map need no conversion: put them into {out}.")
    return found


def _make_scene(name: str, pair: PairRecipe, found: dict[str, Found], digests: dict[Path, str], out: Path,
                overwrite: bool) -> list[Path]:
    """Convert one scene; returns the files written (those that are up to date or the user's own are left alone)."""
    recipe, scene, record = pair.scenes[name], BENCHMARK[name], _read_record(out)
    origins = {out / scene.cube_file: found[recipe.cube[0]].path, out / scene.labels_file: found[recipe.labels[0]].path}
    due = [path for path, origin in origins.items()
           if overwrite or _is_due(path, digests[origin], record.get(path.name))]
    if not due:
        return []
    arrays = dict(zip(origins, _convert(name, pair, found, out)))
    _compare(name, recipe, *arrays.values(), labels_kept=out / scene.labels_file not in due)
    for path in due:
        write_mat_v5(path, {"ori_data" if path.name == scene.cube_file else "map": arrays[path]})
        record[path.name] = {"sha256": sha256(path), "original": origins[path].name,
                             "original_sha256": digests[origins[path]]}
        _write_record(out, record)
        log.info("%s: wrote %s, %s from %s", name, path, "×".join(map(str, arrays[path].shape)), origins[path])
    return due


def _is_due(path: Path, digest: str, made: dict[str, str] | None) -> bool:
    """Whether an output is missing, or was made here from an original with another digest."""
    if not path.exists():
        return True
    if made is None or made["sha256"] != sha256(path):
        log.info("%s was not written by this command: left as it is (--overwrite replaces it)", path)
        return False
    if made["original_sha256"] != digest:
        log.info("%s: its original has changed", path)
        return True
    log.info("%s is up to date", path)
    return False


def _convert(name: str, pair: PairRecipe, found: dict[str, Found], out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Cube [H, W, B] in the original's number type and labels [H, W] uint8 in the benchmark's classes."""
    recipe = pair.scenes[name]
    cube_origin, labels_origin = found[recipe.cube[0]], found[recipe.labels[0]]
    cube = _read(cube_origin, recipe.cube[1], pair, out)
    labels = _read(labels_origin, recipe.labels[1], pair, out)
    if labels.ndim == 3 and labels.shape[2] == 1:       # a raster image with one band
        labels = labels[:, :, 0]
    if cube.ndim != 3 or cube.shape[:2] != labels.shape:
        raise SceneFormatError(f"{name}: {cube_origin} has the shape {cube.shape} and {labels_origin} {labels.shape}, "
                               "expected height × width × bands and height × width of the same image.")
    return cube[:, :, :recipe.bands], _map_classes(labels, recipe.classes, labels_origin)


def _read(original: Found, key: str | None, pair: PairRecipe, out: Path) -> np.ndarray:
    try:
        with original.as_file(out) as path:
            return read_mat(path, key) if key else read_raster(path, nodata=0)[0]
    except SceneFormatError as error:
        raise SceneFormatError(f"{original} is not the original that it should be: {error} It should be the one of "
                               f"{pair.where}; delete a damaged download and run the command again.") from error


def _map_classes(labels: np.ndarray, classes: dict[int, int], origin: Found) -> np.ndarray:
    """[H, W] in the original's classes -> [H, W] uint8 in the benchmark's, 0 = unlabelled or left out."""
    if unknown := sorted(set(np.unique(labels).tolist()) - {0, *classes}):
        raise SceneFormatError(f"{origin} holds the labels {', '.join(map(str, unknown[:5]))}, but the original "
                               f"has only 0..{max(classes)}: it is another label map.")
    table = np.zeros(max(classes) + 1, np.uint8)
    table[list(classes)] = list(classes.values())
    return table[labels.astype(np.int64)]


def _compare(name: str, recipe: SceneRecipe, cube: np.ndarray, labels: np.ndarray, labels_kept: bool) -> None:
    """Log how the scene differs from the benchmark's table; a label map that is not written is not judged."""
    scene = BENCHMARK[name]
    counts = np.bincount(labels.ravel(), minlength=len(scene.class_names) + 1)[1:].tolist()
    differences = check_scene(name, cube.shape, scene.class_counts if labels_kept else counts)
    for difference in differences:
        log.warning("%s", difference)
    if differences and recipe.note and not labels_kept:
        log.warning("%s", recipe.note)


def _read_record(out: Path) -> dict[str, dict[str, str]]:
    path = out / RECORD_FILE
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is damaged ({error}). Delete it and run the command again.") from error


def _write_record(out: Path, record: dict[str, dict[str, str]]) -> None:
    with replacing(out / RECORD_FILE) as file:
        file.write(json.dumps(record, indent=1, sort_keys=True).encode() + b"\n")
