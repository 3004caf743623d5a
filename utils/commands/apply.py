"""Commands that apply trained weights to a scene: evaluate, predict, export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional

from datasets.harmonize import check_fit, check_patch, preprocess
from datasets.scene import Scene
from datasets.writers import write_map
from model.discriminator import Discriminator
from model.errors import CheckpointError, ConfigError
from utils import text
from utils.figures import scenes, sheet
from utils.released import weights
from utils.run.build import read_scene, scene_sampler
from utils.run.config import command_parser, parse_command
from utils.run.flags import Parser
from utils.run.folder import open_run
from utils.run.metrics import constant_answer, scores
from utils.run.predict import confusion_of, map_scene
from utils.run.selection import LAST, RULES
from utils.trained.load import Trained, load_released, load_run

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
    trained = load_run(open_run(choice.run), choice.rule, choice.gpu, choice.data_path) if choice.run else \
        load_released(Path(choice.weights), choice.kernel_activation, choice.data_path, choice.gpu)
    name = choice.scene or (trained.config.target_name if choice.run else None)
    if name is None:
        raise ConfigError("Name the scene to apply the weights to: --scene NAME.")
    scene = read_scene(trained.config, name)
    trained.class_names = trained.class_names or scene.class_names
    check_fit(scene, trained.task.bands, trained.class_names, "the trained weights")
    if len(trained.class_names) != trained.task.n_classes:
        raise CheckpointError(f"The weights are for {trained.task.n_classes} classes; {scene.name} has "
                              f"{len(trained.class_names)}.")
    check_patch(scene, trained.task.patch_size)
    return trained, scene


def evaluate_parser() -> Parser:
    return command_parser(Choice, "evaluate", evaluate.__doc__)


def evaluate(words: list[str]) -> None:
    """Score trained weights on a labelled scene."""
    choice = parse_command(Choice, words, evaluate_parser())
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
        print(f"  {name:<34} {text.MISSING if accuracy is None else f'{100 * accuracy:.2f}'}")


def predict_parser() -> Parser:
    return command_parser(Choice, "predict", predict.__doc__)


def predict(words: list[str]) -> None:
    """Map a whole scene: a GeoTIFF (classes 1..K, their names in its tags, 0 = no data) and a picture beside it."""
    choice = parse_command(Choice, words, predict_parser())
    if choice.out is not None and Path(choice.out).suffix.lower() not in (".tif", ".tiff"):
        raise ConfigError(f"--out {choice.out} must end in .tif: the map is a GeoTIFF, a picture is written beside it.")
    trained, scene = _apply(choice)
    path = Path(choice.out) if choice.out else Path(choice.run or ".") / f"{scene.name}_map.tif"
    cube = preprocess(scene.cube, trained.config.scene_correction)
    prediction = map_scene(trained.method, cube, trained.task.patch_size, trained.device, trained.config.backend)
    prediction[~scene.cube.any(axis=2)] = 0
    write_map(path, prediction, scene, trained.class_names)
    picture = scenes.plot_maps(scene.cube, scene.rgb_bands, scene.labels, prediction, trained.class_names, scene.name)
    sheet.save(picture, path.with_suffix(".png"))
    print(f"{path}\n{path.with_suffix('.png')}")


def export_parser() -> Parser:
    parser = Parser("export", export.__doc__)
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--rule", choices=[rule.name for rule in RULES], default=LAST.name, help="selection rule")
    parser.add_argument("--out", type=Optional[Path], default=None, help="file to write; default: best.pth in the run folder")
    return parser


def export(words: list[str]) -> None:
    """Write a run's discriminator as the released code's best.pth: {'Discriminator': state_dict} under its names."""
    choice = export_parser().parse_args(words)
    run = open_run(choice.run)
    path = choice.out or run.path / "best.pth"
    trained = load_run(run, choice.rule, gpu=-1)
    if type(trained.method.discriminator) is not Discriminator:
        raise ConfigError(f"{run.path}: method '{trained.config.method}' classifies with something else than the "
                          "released code's discriminator; there is nothing to export.")
    try:
        weights.export(path, trained.method.discriminator.state_dict())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}). Choose another --out.") from error
    print(path)
