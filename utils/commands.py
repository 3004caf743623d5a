"""The commands beside `train`: evaluate, predict, export, figures, parity, sweep, tables, prepare."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional

import torch
from jsonargparse import ArgumentParser

from datasets.benchmark import BENCHMARK
from datasets.harmonize import check_pair, check_patch, preprocess
from datasets.prepare import prepare as prepare_pair
from datasets.readers import DATA_ROOT
from datasets.scene import Scene
from datasets.writers import write_map
from model.methods import Method, method_class
from utils import checkpoint, figures, parity as recorded, released, tables as table_maker
from utils.config import TrainConfig, check, parse_command, tidy
from utils.errors import CheckpointError, ConfigError, UserError
from utils.metrics import scores
from utils.predict import confusion_of, map_scene
from utils.records import open_run, write_text
from utils.run_figures import draw_run, load_run
from utils.seeding import Streams
from utils.session import choose_device, read_scene, scene_sampler
from utils.sweep import SweepConfig, run_sweep


@dataclass
class Choice:
    """Trained weights applied to a scene: those of a finished run, or a checkpoint of the released code.

    Args:
        run: run folder.
        weights: best.pth of the released code, in place of a run.
        scene: registered name or path of a scene file; null = the run's own target.
        rule: selection rule whose weights are used.
        kernel_activation: how the networks of --weights were trained: 'relu' as the released code, 'none' as the paper.
        data_path: folder of the scene's files, where it differs from the run's.
        gpu: CUDA device number; -1 = CPU; null = as the run.
        out: (predict) file for the map, a GeoTIFF; null = NAME_map.tif in the run folder, or here.
    """

    run: Optional[str] = None
    weights: Optional[str] = None
    scene: Optional[str] = None
    rule: Literal["last", "source-val"] = "last"
    kernel_activation: Literal["relu", "none"] = "relu"
    data_path: Optional[str] = None
    gpu: Optional[int] = None
    out: Optional[str] = None


@dataclass
class Applied:
    """A method ready to predict a scene, and the class names of its outputs."""

    method: Method
    config: TrainConfig
    device: torch.device
    scene: Scene
    class_names: tuple[str, ...]


def _apply(choice: Choice) -> Applied:
    if (choice.run is None) == (choice.weights is None):
        raise ConfigError("Give either --run RUN_FOLDER or --weights best.pth.")
    return _apply_run(choice) if choice.run else _apply_weights(choice)


def _apply_run(choice: Choice) -> Applied:
    loaded = load_run(open_run(choice.run), choice.rule, choice.gpu, None if choice.scene else choice.data_path)
    scene = loaded.data.target
    if choice.scene is not None:
        if choice.data_path is not None:
            loaded.config.data_path = choice.data_path
        scene = read_scene(loaded.config, choice.scene)
        check_pair(loaded.data.source, scene, loaded.config.patch_size)
    if scene is None:
        raise ConfigError(f"{choice.run} was trained without a target; name a scene with --scene.")
    return Applied(loaded.method, loaded.config, loaded.device, scene, loaded.data.source.class_names)


def _apply_weights(choice: Choice) -> Applied:
    if choice.scene is None:
        raise ConfigError("--weights needs a scene to apply them to: --scene NAME.")
    path = Path(choice.weights)
    state, task, width = released.read_weights(path)
    config = check(TrainConfig(method="erm", pro_dim=width, patch_size=task.patch_size, data_path=choice.data_path,
                               kernel_activation=choice.kernel_activation))
    device = choose_device(0 if choice.gpu is None else choice.gpu)
    scene = read_scene(config, choice.scene)
    check_patch(scene, config.patch_size)
    if (scene.bands, scene.n_classes) != (task.bands, task.n_classes):
        raise CheckpointError(f"{path} is for {task.bands} bands and {task.n_classes} classes; {scene.name} has "
                              f"{scene.bands} bands and {scene.n_classes} classes.")
    method = method_class("erm")(task, config, Streams(0, device)).to(device)
    checkpoint.load_discriminator(method.discriminator, state, path)
    return Applied(method, config, device, scene, scene.class_names)


def evaluate(words: list[str]) -> None:
    """Score trained weights on a labelled scene."""
    choice = parse_command(Choice, words, "evaluate", evaluate.__doc__)
    applied = _apply(choice)
    sampler = scene_sampler(applied.scene, applied.config, applied.device)
    if not len(sampler):
        raise ConfigError(f"{applied.scene.name} has no labelled pixel to score; 'main.py predict' maps it.")
    result = scores(confusion_of(applied.method, sampler, len(applied.class_names)))
    origin = choice.weights or f"{choice.run}, rule {choice.rule}"
    print(f"{applied.scene.name}, weights of {origin}: OA {100 * result.oa:.2f}  AA {100 * result.aa:.2f}  "
          f"kappa {100 * result.kappa:.2f}  macro-F1 {100 * result.macro_f1:.2f}  ({result.n} pixels)")
    for name, accuracy in zip(applied.class_names, result.per_class):
        print(f"  {name:<34} {table_maker.MISSING if accuracy is None else f'{100 * accuracy:.2f}'}")


def predict(words: list[str]) -> None:
    """Map a whole scene; writes a GeoTIFF (classes 1..K, their names in its tags) and a picture beside it."""
    choice = parse_command(Choice, words, "predict", predict.__doc__)
    applied = _apply(choice)
    scene = applied.scene
    path = Path(choice.out) if choice.out else Path(choice.run or ".") / f"{scene.name}_map.tif"
    prediction = map_scene(applied.method, preprocess(scene.cube), applied.config.patch_size, applied.device,
                           applied.config.backend)
    write_map(path, prediction, scene, applied.class_names)
    picture = figures.plot_maps(scene.cube, scene.rgb_bands, scene.labels, prediction, applied.class_names, scene.name)
    figures.save(picture, path.with_suffix(".png"))
    print(f"{path}\n{path.with_suffix('.png')}")


def export(words: list[str]) -> None:
    """Write a run's discriminator as the released code's best.pth: {'Discriminator': state_dict} under its names."""
    parser = ArgumentParser(prog="main.py export", description=export.__doc__)
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--rule", choices=["last", "source-val"], default="last", help="selection rule")
    parser.add_argument("--out", type=Optional[Path], default=None, help="file to write; default: best.pth in the run folder")
    choice = parser.parse_args(words)
    run = open_run(choice.run)
    path = choice.out or run.path / "best.pth"
    weights = checkpoint.load(run.weights(choice.rule))
    try:
        released.export(path, weights["discriminator"])
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}). Choose another --out.") from error
    print(path)


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
    """Print the tables of all finished runs below the given folders, and write them as Markdown (and the runs as CSV)."""
    parser = ArgumentParser(prog="main.py tables", description=tables.__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of them")
    parser.add_argument("--layout", choices=["pairs", "gradients"], default="pairs",
                        help="scores per pair and selection rule, or gradient norms at start and end of training")
    parser.add_argument("--out", type=Optional[Path], default=None,
                        help="folder for LAYOUT.md and runs.csv; default: the first folder given")
    parser.add_argument("--insert", type=Optional[Path], default=None,
                        help="Markdown file whose part between <!-- NAME --> and <!-- /NAME --> the tables replace, "
                             "NAME being FOLDER/LAYOUT of --out")
    choice = parser.parse_args(words)
    runs = table_maker.collect(choice.runs)
    made = table_maker.pair_tables(runs) if choice.layout == "pairs" else {
        "Gradients on the generators, geometric means over n seeds": table_maker.gradient_table(choice.runs)}
    text = "\n\n".join(f"**{title}**\n\n{table_maker.markdown(table, 'method')}" for title, table in made.items())
    out = choice.out or Path(choice.runs[0])
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{choice.layout}.md", f"{text}\n\nMade by `python main.py tables {shlex.join(words)}`\n")
    runs.to_csv(out / "runs.csv", index=False)
    if choice.insert:
        table_maker.insert(choice.insert, f"{out.name}/{choice.layout}", text)
    print(text)


def sweep(words: list[str]) -> int:
    """Run every combination of a sweep file's variants and seeds; done runs are skipped, broken ones resumed."""
    parser = ArgumentParser(prog="main.py sweep", description=sweep.__doc__)
    parser.add_argument("file", type=Path, help="sweep file (configs/sweep)")
    parser.add_class_arguments(SweepConfig)
    choice = parser.instantiate(parser.parse_args(tidy(words, SweepConfig))).as_dict()
    return run_sweep(choice.pop("file"), SweepConfig(**choice))


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
    "evaluate": evaluate, "predict": predict, "export": export, "figures": draw, "parity": parity, "sweep": sweep, "tables": tables,
    "prepare": prepare}
