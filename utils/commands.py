"""The commands beside `train`: evaluate, predict, export, figures, parity, bench, sweep, tables, compare, study,
transfer, refit, prepare."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional

from jsonargparse import ArgumentParser

from datasets.benchmark import BENCHMARK
from datasets.harmonize import check_fit, check_patch, preprocess
from datasets.prepare import prepare as prepare_pair
from datasets.readers import DATA_ROOT
from datasets.scene import Scene
from datasets.writers import write_map
from model.discriminator import Discriminator
from utils import figures, parity as recorded, released, study as study_maker, study_figures, tables as table_maker
from utils.assembly import read_scene, scene_sampler
from utils.bench import bench
from utils.config import parse_command, tidy
from utils.derived import REFIT, TRANSFER, derived_by
from utils.errors import CheckpointError, ConfigError, UserError
from utils.gallery import LAYOUTS, gallery
from utils.metrics import constant_answer, scores
from utils.predict import confusion_of, map_scene
from utils.records import RunFolder, find_runs, open_run, write_text
from utils.refit import refit
from utils.run_figures import draw_run
from utils.selection import LAST, RULES
from utils.sweep import SweepConfig, run_sweep
from utils.sweep_ray import HERE
from utils.table_commands import compare, tables, writing
from utils.trained import Trained, load_released, load_run
from utils.transfer import transfer

log = logging.getLogger(__name__)

RuleName = Literal[tuple(rule.name for rule in RULES)]


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
    rule: RuleName = LAST.name
    kernel_activation: Literal["relu", "none"] = "relu"
    data_path: Optional[str] = None
    gpu: Optional[int] = None
    out: Optional[str] = None


def _apply(choice: Choice) -> tuple[Trained, Scene]:
    """The trained method and the scene that a command line names."""
    if (choice.run is None) == (choice.weights is None):
        raise ConfigError("Give either --run RUN_FOLDER or --weights best.pth.")
    trained = load_run(open_run(choice.run), choice.rule, choice.gpu) if choice.run else \
        load_released(Path(choice.weights), choice.kernel_activation, choice.data_path, choice.gpu)
    name = choice.scene or (trained.config.target_name if choice.run else None)
    if name is None:
        raise ConfigError("Name the scene to apply the weights to: --scene NAME.")
    if choice.data_path is not None:
        trained.config.data_path = choice.data_path
    scene = read_scene(trained.config, name)
    trained.class_names = trained.class_names or scene.class_names
    check_fit(scene, trained.task.bands, trained.class_names, "the trained weights")
    if len(trained.class_names) != trained.task.n_classes:
        raise CheckpointError(f"The weights are for {trained.task.n_classes} classes; {scene.name} has "
                              f"{len(trained.class_names)}.")
    check_patch(scene, trained.task.patch_size)
    return trained, scene


def evaluate(words: list[str]) -> None:
    """Score trained weights on a labelled scene."""
    choice = parse_command(Choice, words, "evaluate", evaluate.__doc__)
    trained, scene = _apply(choice)
    sampler = scene_sampler(scene, trained.config, trained.device)
    if not len(sampler):
        raise ConfigError(f"{scene.name} has no labelled pixel to score; 'main.py predict' maps it.")
    confusion = confusion_of(trained.method, sampler, trained.task.n_classes)
    result, constant = scores(confusion), scores(constant_answer(confusion.sum(1)))
    print(f"{scene.name}, weights of {choice.weights or f'{choice.run}, rule {choice.rule}'} ({result.n} pixels)")
    for name, score in (("these weights", result), ("constant answer", constant)):
        print(f"  {name:<34} OA {100 * score.oa:.2f}  AA {100 * score.aa:.2f}  kappa {100 * score.kappa:.2f}  "
              f"macro-F1 {100 * score.macro_f1:.2f}")
    for name, accuracy in zip(trained.class_names, result.per_class):
        print(f"  {name:<34} {table_maker.MISSING if accuracy is None else f'{100 * accuracy:.2f}'}")


def predict(words: list[str]) -> None:
    """Map a whole scene: a GeoTIFF (classes 1..K, their names in its tags, 0 = no data) and a picture beside it."""
    choice = parse_command(Choice, words, "predict", predict.__doc__)
    if choice.out is not None and Path(choice.out).suffix.lower() not in (".tif", ".tiff"):
        raise ConfigError(f"--out {choice.out} must end in .tif: the map is a GeoTIFF, a picture is written beside it.")
    trained, scene = _apply(choice)
    path = Path(choice.out) if choice.out else Path(choice.run or ".") / f"{scene.name}_map.tif"
    prediction = map_scene(trained.method, preprocess(scene.cube), trained.task.patch_size, trained.device,
                           trained.config.backend)
    prediction[~scene.cube.any(axis=2)] = 0
    write_map(path, prediction, scene, trained.class_names)
    picture = figures.plot_maps(scene.cube, scene.rgb_bands, scene.labels, prediction, trained.class_names, scene.name)
    figures.save(picture, path.with_suffix(".png"))
    print(f"{path}\n{path.with_suffix('.png')}")


def export(words: list[str]) -> None:
    """Write a run's discriminator as the released code's best.pth: {'Discriminator': state_dict} under its names."""
    parser = ArgumentParser(prog="main.py export", description=export.__doc__)
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--rule", choices=[rule.name for rule in RULES], default=LAST.name, help="selection rule")
    parser.add_argument("--out", type=Optional[Path], default=None, help="file to write; default: best.pth in the run folder")
    choice = parser.parse_args(words)
    run = open_run(choice.run)
    path = choice.out or run.path / "best.pth"
    trained = load_run(run, choice.rule, gpu=-1)
    if type(trained.method.discriminator) is not Discriminator:
        raise ConfigError(f"{run.path}: method '{trained.config.method}' classifies with something else than the "
                          "released code's discriminator; there is nothing to export.")
    try:
        released.export(path, trained.method.discriminator.state_dict())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}). Choose another --out.") from error
    print(path)


def draw(words: list[str]) -> None:
    """Draw the figures of every finished run below the given folders, or (--layout) figures that compare them."""
    parser = ArgumentParser(prog="main.py figures", description=draw.__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of them")
    parser.add_argument("--gpu", type=Optional[int], default=None, help="CUDA device number; -1 = CPU; null = as the run")
    parser.add_argument("--data_path", type=Optional[str], default=None, help="folder of the scenes' files, if moved")
    parser.add_argument("--layout", choices=list(LAYOUTS), default=None,
                        help="maps of all methods side by side; their features in the plane; scores over the severity "
                             "of the simulated gap; every seed's score; null = every run's own figures, in its folder")
    parser.add_argument("--out", type=Optional[Path], default=None,
                        help="folder for the figures of --layout; default: the first folder given")
    choice = parser.parse_args(words)
    if choice.layout:
        with writing("figures", out := choice.out or Path(choice.runs[0])):
            for name, figure in gallery(choice.layout, choice.runs, choice.gpu, choice.data_path).items():
                figures.save(figure, out / f"{name}.png")
                print(out / f"{name}.png")
        return
    finished = [run for run in find_runs(choice.runs) if run.read_run().get("status") == "done"]
    if not finished:
        raise UserError(f"No finished run below {', '.join(choice.runs)}.")
    for run in finished:
        for path in draw_run(run, choice.gpu, choice.data_path, progress=sys.stderr.isatty()):
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


def study(words: list[str]) -> None:
    """Draw and tabulate what training did, from the records of all runs below the given folders, finished or not."""
    parser = ArgumentParser(prog="main.py study", description=study.__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of them (recorded with --oracle)")
    parser.add_argument("--out", type=Optional[Path], default=None,
                        help="folder for the figures and tables; default: the first folder given")
    parser.add_argument("--insert", type=Optional[Path], default=None,
                        help="Markdown file whose parts between <!-- NAME --> and <!-- /NAME --> the tables replace, "
                             "NAME being FOLDER/scores, FOLDER/selection or FOLDER/norms, FOLDER that of --out")
    choice = parser.parse_args(words)
    points = study_maker.read(choice.runs)
    tables, out = study_maker.make_tables(points), choice.out or Path(choice.runs[0])
    with writing("study's tables and figures", out):
        for name, (text, numbers) in tables.items():
            write_text(out / f"{name}.md", f"{text}\n\nMade by `python main.py study {shlex.join(words)}`\n")
            write_text(out / f"{name}.csv", numbers.to_csv(index=False))
        for name, figure in study_figures.draw(points).items():
            figures.save(figure, out / f"{name}.png")
    if choice.insert:
        study_maker.insert_tables(choice.insert, out.name, {name: text for name, (text, _) in tables.items()})
    print("\n\n".join(text for text, _ in tables.values()))


def sweep(words: list[str]) -> int:
    """Run every combination of a sweep file's pairs, variants and seeds; done runs are skipped, broken ones resumed."""
    parser = ArgumentParser(prog="main.py sweep", description=sweep.__doc__)
    parser.add_argument("file", type=Path, help="sweep file (configs/sweep)")
    parser.add_argument("--config", action="append", default=[], metavar="FILE",
                        help="settings over the sweep file's own config and settings, such as configs/cpu.yaml; may be "
                             "given several times; what a pair or a variant sets stays: it is what the sweep compares")
    parser.add_argument("--ray", nargs="?", const=HERE, default=None, metavar="ADDRESS",
                        help="run on a Ray cluster, several runs at a time: the one at ADDRESS, or this machine alone")
    parser.add_class_arguments(SweepConfig, skip={"config", "ray"})
    choice = parser.instantiate(parser.parse_args(tidy(words, SweepConfig))).as_dict()
    return run_sweep(choice.pop("file"), SweepConfig(**choice))


def rescore(words: list[str]) -> None:
    """Score finished runs on another target, each into a run folder of its own beside them, without training anew."""
    parser = ArgumentParser(prog="main.py transfer", description=rescore.__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of them")
    parser.add_argument("--target_name", type=Optional[str], default=None, help="the other scene")
    parser.add_argument("--severity", type=Optional[float], default=None, help="another severity of the simulated gap")
    parser.add_argument("--data_path", type=Optional[str], default=None, help="folder of the scenes' files, if moved")
    choice = parser.parse_args(words)
    _derive(TRANSFER, choice.runs, lambda run: transfer(run, choice.target_name, choice.severity, choice.data_path))


def refit_statistics(words: list[str]) -> None:
    """Score the last epoch of finished runs with BatchNorm's statistics re-estimated on clean source patches
    (batchnorm_statistics: source), each into a run folder of its own, without training anew."""
    parser = ArgumentParser(prog="main.py refit", description=refit_statistics.__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of them")
    parser.add_argument("--save_path", type=Optional[str], default=None, help="folder of the new ones; default: beside")
    parser.add_argument("--data_path", type=Optional[str], default=None, help="folder of the scenes' files, if moved")
    choice = parser.parse_args(words)
    _derive(REFIT, choice.runs, lambda run: refit(run, choice.save_path, choice.data_path))


def _derive(command: str, folders: list[str], make: Callable[[RunFolder], RunFolder | None]) -> None:
    """Make a run folder of every finished run below the folders but those that the command itself made.  One that can't
    be made does not stop the others; raises UserError at the end."""
    runs = [run for run in find_runs(folders) if run.read_run().get("status") == "done" and derived_by(run) != command]
    if not runs:
        raise UserError(f"No finished run below {', '.join(folders)}.")
    failed = 0
    for run in runs:
        try:
            made = make(run)
            print(made.path if made else f"{run.path}: scored there already", flush=True)
        except UserError as error:
            failed += 1
            log.warning("%s: %s", run.path, error)
    if failed:
        raise UserError(f"{failed} of {len(runs)} runs could not be scored; the reasons stand above.")


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
    "evaluate": evaluate, "predict": predict, "export": export, "figures": draw, "parity": parity, "bench": bench,
    "sweep": sweep, "tables": tables, "compare": compare, "study": study, "transfer": rescore,
    "refit": refit_statistics, "prepare": prepare}
