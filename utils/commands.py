"""The commands beside `train`: evaluate, predict, figures, parity, sweep, tables, prepare."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional

import rasterio
from rasterio.transform import Affine
from jsonargparse import ArgumentParser

from datasets.benchmark import BENCHMARK
from datasets.harmonize import check_pair, preprocess
from datasets.prepare import prepare as prepare_pair
from datasets.readers import DATA_ROOT
from utils import figures, parity as recorded, tables as table_maker
from utils.config import parse_command
from utils.errors import ConfigError, UserError
from utils.metrics import scores
from utils.predict import confusion_of, map_scene
from utils.records import open_run
from utils.run_figures import LoadedRun, draw_run, load_run
from utils.session import read_scene, scene_sampler
from utils.sweep import SweepConfig, run_sweep


@dataclass
class RunChoice:
    """A finished run applied to a scene.

    Args:
        run: run folder.
        scene: registered name or path of a scene file; null = the run's own target.
        rule: selection rule whose weights are used.
        data_path: folder of the scene's files, where it differs from the run's.
        gpu: CUDA device number; -1 = CPU; null = as the run.
        out: (predict) file for the map: .tif keeps the georeference; null = NAME_map.tif in the run folder.
    """

    run: str
    scene: Optional[str] = None
    rule: Literal["last", "source-val"] = "last"
    data_path: Optional[str] = None
    gpu: Optional[int] = None
    out: Optional[str] = None


def _chosen(words: list[str], command: str) -> tuple[RunChoice, LoadedRun, object]:
    choice = parse_command(RunChoice, words, command)
    loaded = load_run(open_run(choice.run), choice.rule, choice.gpu, None if choice.scene else choice.data_path)
    if choice.scene is None:
        if loaded.data.target is None:
            raise ConfigError(f"{choice.run} was trained without a target; name a scene with --scene.")
        return choice, loaded, loaded.data.target
    if choice.data_path is not None:
        loaded.config.data_path = choice.data_path
    scene = read_scene(loaded.config, choice.scene)
    check_pair(loaded.data.source, scene, loaded.config.patch_size)
    return choice, loaded, scene


def evaluate(words: list[str]) -> None:
    """Score a run's weights on a labelled scene."""
    choice, loaded, scene = _chosen(words, "evaluate")
    sampler = scene_sampler(scene, loaded.config, loaded.device)
    if not len(sampler):
        raise ConfigError(f"{scene.name} has no labelled pixel to score; 'main.py predict' maps it.")
    names = loaded.data.source.class_names
    result = scores(confusion_of(loaded.method, sampler, len(names)))
    print(f"{scene.name}, weights of rule {choice.rule}: OA {100 * result.oa:.2f}  AA {100 * result.aa:.2f}  "
          f"kappa {100 * result.kappa:.2f}  macro-F1 {100 * result.macro_f1:.2f}  ({result.n} pixels)")
    for name, accuracy in zip(names, result.per_class):
        print(f"  {name:<34} {table_maker.MISSING if accuracy is None else f'{100 * accuracy:.2f}'}")


def predict(words: list[str]) -> None:
    """Map a whole scene; writes a GeoTIFF (classes 1..K, the names in its tags) and a picture beside it."""
    choice, loaded, scene = _chosen(words, "predict")
    path = Path(choice.out) if choice.out else loaded.run.path / f"{scene.name}_map.tif"
    names = loaded.data.source.class_names
    prediction = map_scene(loaded.method, preprocess(scene.cube), loaded.config.patch_size, loaded.device,
                           loaded.config.backend)
    place = scene.georeference
    extra = {} if place is None else {"crs": place.crs, "transform": Affine(*place.transform)}
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(part, "w", driver="GTiff", height=prediction.shape[0], width=prediction.shape[1], count=1,
                           dtype=prediction.dtype, compress="deflate", **extra) as file:
            file.write(prediction, 1)
            file.update_tags(**{f"class_{k}": name for k, name in enumerate(names, 1)})
        part.replace(path)
    except (OSError, rasterio.errors.RasterioIOError) as error:
        raise ConfigError(f"{path} cannot be written ({error}). Choose another --out.") from error
    picture = figures.plot_maps(scene.cube, scene.rgb_bands, scene.labels, prediction, names, scene.name)
    figures.save(picture, path.with_suffix(".png"))
    print(f"{path}\n{path.with_suffix('.png')}")


def draw(words: list[str]) -> None:
    """Draw the figures of every finished run below the given folders."""
    parser = ArgumentParser(prog="main.py figures", description=draw.__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of them")
    parser.add_argument("--gpu", type=Optional[int], default=None, help="CUDA device number; -1 = CPU; null = as the run")
    choice = parser.parse_args(words)
    finished = sorted(path.parent for folder in choice.runs for path in Path(folder).rglob("evaluation.json"))
    if not finished:
        raise UserError(f"No finished run below {', '.join(choice.runs)}.")
    for folder in finished:
        for path in draw_run(load_run(open_run(folder), gpu=choice.gpu)):
            print(path)


def parity(words: list[str]) -> int:
    """Replay values recorded from the released code; exit code 0 only if every limit holds."""
    parser = ArgumentParser(prog="main.py parity", description=parity.__doc__)
    parser.add_argument("file", type=Path, help="recording: NAME.safetensors, with NAME.json beside it")
    lines = []
    for line in recorded.replay(parser.parse_args(words).file):
        lines.append(line)
        print(line, flush=True)
    failed = sum(not line.holds for line in lines)
    print(f"{len(lines) - failed} of {len(lines)} quantities within their limits")
    return 1 if failed else 0


def tables(words: list[str]) -> None:
    """Print the tables of all finished runs below the given folders, and write them as Markdown and CSV."""
    parser = ArgumentParser(prog="main.py tables", description=tables.__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of them")
    parser.add_argument("--out", type=Optional[Path], default=None,
                        help="folder for table.md and runs.csv; default: the first folder given")
    choice = parser.parse_args(words)
    runs = table_maker.collect(choice.runs)
    text = "\n\n".join(f"**{title}**\n\n{table_maker.markdown(table, 'method')}"
                       for title, table in table_maker.pair_tables(runs).items())
    out = choice.out or Path(choice.runs[0])
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(f"{text}\n\nMade by `python main.py tables {' '.join(words)}`\n")
    runs.to_csv(out / "runs.csv", index=False)
    print(text)


def sweep(words: list[str]) -> int:
    """Run every combination of a sweep file's variants and seeds; done runs are skipped, broken ones resumed."""
    parser = ArgumentParser(prog="main.py sweep", description=sweep.__doc__)
    parser.add_argument("file", type=Path, help="sweep file (configs/sweep)")
    parser.add_class_arguments(SweepConfig)
    choice = parser.instantiate(parser.parse_args(_listed(words))).as_dict()
    return run_sweep(choice.pop("file"), SweepConfig(**choice))


def _listed(words: list[str]) -> list[str]:
    """`--seeds 0 1 2` as jsonargparse's `--seeds [0,1,2]`."""
    if "--seeds" not in words:
        return words
    start = words.index("--seeds") + 1
    end = next((i for i in range(start, len(words)) if words[i].startswith("--")), len(words))
    return words[:start] + ["[" + ",".join(words[start:end]).strip("[]") + "]"] + words[end:]


def prepare(words: list[str]) -> None:
    """Fetch or convert the public originals of a benchmark pair."""
    parser = ArgumentParser(prog="main.py prepare", description=prepare.__doc__)
    parser.add_argument("pair", choices=["pavia", "hyrank", "houston"])
    parser.add_argument("--from", dest="originals", type=Optional[Path], default=None,
                        help="folder that holds the originals already; nothing is downloaded then")
    parser.add_argument("--out", type=Optional[Path], default=None,
                        help="folder of the benchmark's files; default: ./datasets/<pair>")
    parser.add_argument("--overwrite", action="store_true", help="convert again where the files are there already")
    choice = parser.parse_args(words)
    folder = next(scene.folder for scene in BENCHMARK.values() if scene.folder.lower() == choice.pair)
    for path in prepare_pair(choice.pair, choice.out or DATA_ROOT / folder, choice.originals,
                             progress=sys.stderr.isatty(), overwrite=choice.overwrite):
        print(path)


TABLE: dict[str, Callable[[list[str]], int | None]] = {
    "evaluate": evaluate, "predict": predict, "figures": draw, "parity": parity, "sweep": sweep, "tables": tables,
    "prepare": prepare}
