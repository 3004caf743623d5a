"""Two runs on the labelled pixels of one target: McNemar's test, and intervals from spatial blocks."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from datasets.correction import NONE
from datasets.scene import Scene
from datasets.splits import labelled_pixels
from model.errors import ConfigError
from utils.run.build import read_scene, scene_sampler
from utils.run.folder import open_run, run_label
from utils.run.metrics import SCORES, confusion_matrix, scores
from utils.run.predict import classify
from utils.tables.cells import TARGET_MARKS, notes_of_names
from utils.tables.markup import Cell, Table
from utils.tables.statistics import ALPHA, block_bootstrap, block_confusions, interval, mcnemar
from utils.trained.load import Trained, load_run

log = logging.getLogger(__name__)

FEW_BLOCKS = 20
NOTE = ("Intervals: blocks that hold labelled pixels are drawn with replacement, the same ones for both maps; seeds of "
        "training are not in them. McNemar's test counts pixels as independent, which neighbours are not: its p is too "
        "small where errors come in patches; the difference's interval takes that into account.")


@dataclass
class Comparison:
    """What the command line of `compare` chooses.

    Args:
        rule: selection rule whose weights are compared.
        block: side of the square blocks in pixels; larger than the patches and the patches of errors.
        resamples: how often the blocks are drawn.
        seed: seed of the drawing.
        gpu: CUDA device number; -1 = CPU; null = as the runs.
        data_path: folder of the scene's files, if moved.
    """

    rule: str
    block: int = 32
    resamples: int = 1000
    seed: int = 0
    gpu: int | None = None
    data_path: str | None = None


def compare_runs(first: str, second: str, choice: Comparison) -> list[Table]:
    """Tables of both runs' scores with intervals, of their difference, and of McNemar's test.

    Raises ConfigError if the two were not made for the same labelled target, or a number is impossible.
    """
    for name in ("block", "resamples"):
        if getattr(choice, name) < 1:
            raise ConfigError(f"{name} must be at least 1, not {getattr(choice, name)}.")
    opened = [_open(folder, choice) for folder in (first, second)]
    scene, n_classes = opened[0][1], opened[0][0].task.n_classes
    if scene.sha256 != opened[1][1].sha256 or opened[0][0].class_names != opened[1][0].class_names:
        raise ConfigError(f"{first} and {second} have different targets or classes; their maps cannot be compared.")
    scene = replace(scene, labels=np.where(opened[1][1].labels > 0, scene.labels, 0))      # what neither trained on
    centres, truth = labelled_pixels(scene.labels)
    if not len(truth):
        raise ConfigError(f"{scene.name} has no labelled pixel to compare maps on.")
    maps = [classify(trained.method, scene_sampler(replace(own, labels=scene.labels), trained.config, trained.device)).cpu().numpy()
            for trained, own in opened]
    names = [f"{letter}: {run_label(trained.config)}{_marks(trained)}, seed {trained.config.seed}"
             for letter, (trained, _) in zip("AB", opened)]
    return tables(names, np.asarray(truth), maps, np.asarray(centres), n_classes, scene.name, choice)


def _marks(trained: Trained) -> str:
    takes = {"uses_target": trained.method.uses_target, "adapts": trained.config.scene_correction != NONE}
    return "".join(mark for column, (mark, _) in TARGET_MARKS.items() if takes[column])


def _open(folder: str, choice: Comparison) -> tuple[Trained, Scene]:
    trained = load_run(open_run(folder), choice.rule, choice.gpu, choice.data_path)
    if trained.config.target_name is None:
        raise ConfigError(f"{folder} was trained without a target.")
    return trained, trained.sealed(trained.common.bring(read_scene(trained.config, trained.config.target_name)))


def tables(names: list[str], truth: np.ndarray, maps: list[np.ndarray], positions: np.ndarray, n_classes: int,
           scene: str, choice: Comparison) -> list[Table]:
    """From truth and two maps [N], classes 0..K-1, and positions [N, 2]."""
    blocks = np.stack([block_confusions(truth, each, positions, n_classes, choice.block) for each in maps])
    if blocks.shape[1] < FEW_BLOCKS:
        log.warning("%s has only %d blocks of %d pixels that hold labels: the intervals are rough. A smaller --block "
                    "gives more of them.", scene, blocks.shape[1], choice.block)
    drawn = block_bootstrap(blocks, choice.resamples, choice.seed)
    found = [scores(confusion_matrix(truth, each, n_classes)) for each in maps]
    rows: dict[str, dict[str, Cell]] = {name: {} for name in (*names, "A − B")}
    for key, label in SCORES.items():
        values = [getattr(score, key) for score in found]
        for name, value, of_map in zip(names, values, drawn[key]):
            rows[name][label] = _with_interval(value, of_map, "{:.1f}")
        rows["A − B"][label] = _with_interval(values[0] - values[1], drawn[key][0] - drawn[key][1], "{:+.1f}")
    test = mcnemar(*(each == truth for each in maps))
    right = {"only A right": Cell(f"{test.only_first}", numbers={"n": test.only_first}),
             "only B right": Cell(f"{test.only_second}", numbers={"n": test.only_second}),
             "p": Cell(f"{test.p:.2g}" if test.p else "< 1e-300", numbers={"p": test.p})}
    title = (f"{scene}, rule {choice.rule}: {len(truth)} pixels, percent with {100 * (1 - ALPHA):g} % intervals "
             f"({choice.resamples} resamples of {blocks.shape[1]} blocks of {choice.block}×{choice.block} pixels, "
             f"seed {choice.seed})")
    how = "exact binomial" if test.exact else "χ² with continuity correction"
    return [Table(title, "map", rows, [NOTE, *notes_of_names(names)]),
            Table(f"{scene}, rule {choice.rule}: McNemar's test ({how})", "maps", {"A and B": right})]


def _with_interval(value: float, drawn: np.ndarray, form: str) -> Cell:
    low, high = interval(drawn)
    texts = [form.format(100 * number) for number in (value, low, high)]
    numbers = {"mean": 100 * value, "low": 100 * low, "high": 100 * high}
    return Cell(f"{texts[0]} [{texts[1]}, {texts[2]}]", numbers=numbers)
