"""Commands that apply trained weights to a scene: evaluate, predict."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional

import numpy as np

from datasets.correction import NONE, Reference, reference_of
from datasets.classes import matched
from datasets.grid import on_grid
from datasets.harmonize import check_patch, preprocess, unit_spectra
from datasets.patches import PatchSampler, place
from datasets.scene import Scene
from datasets.writers import write_map
from model.errors import CheckpointError, ConfigError
from utils import text
from utils.figures import scenes, sheet
from utils.run.build import read_scene, scene_sampler, spread_sampler, warn_of_statistics
from utils.run.config import command_parser, parse_command
from utils.run.flags import Parser
from utils.run.folder import open_run
from utils.run.metrics import confusion_matrix, constant_answer, scores
from utils.run.predict import as_map, confusion_of, map_scene, probabilities, scene_probabilities
from utils.run.selection import EVERY_RULE, LAST, rule_words
from utils.trained.adapt import BN, LEAST_SHARE, MOST_PIXELS, PRIOR, TENT, adapt, scene_shares, training_shares
from utils.trained.load import Trained, load_released, load_run

log = logging.getLogger(__name__)

RuleName = Literal[tuple(rule.name for rule in EVERY_RULE)]


@dataclass
class Choice:
    """Trained weights applied to a scene: those of finished runs, or a checkpoint of the released code.

    Args:
        run: run folder; of several the probabilities are averaged.
        weights: best.pth of the released code, in place of a run.
        scene: registered name or path of a scene file; null = the run's own target.
        rule: selection rule whose weights are used; oracle chose them on the target's labels.
        kernel_activation: how the networks of --weights were trained: 'relu' as the released code, 'none' as the paper.
        data_path: folder of the scene's files, where it differs from the run's.
        statistics_from: scene (registered name or path of a scene file) whose mean spectrum a scene correction uses in
            place of the scene's own: a larger one of the same flight.
        adapt: to the scene's unlabelled pixels, first: BatchNorm's statistics are set anew ('bn'), or its parameters
            too, by the entropy of the predictions ('tent'); or probabilities are weighed by the shares of the classes
            there ('prior'); 'none' = as trained.
        gpu: CUDA device number; -1 = CPU; null = as the run.
        out: (predict) file for the map, a GeoTIFF; null = NAME_map.tif in the (first) run folder, or here.
    """

    run: list[str] = field(default_factory=list)
    weights: Optional[str] = None
    scene: Optional[str] = None
    rule: RuleName = LAST.name
    kernel_activation: Literal["relu", "none"] = "relu"
    data_path: Optional[str] = None
    statistics_from: Optional[str] = None
    adapt: Literal["none", "bn", "tent", "prior"] = "none"
    gpu: Optional[int] = None
    out: Optional[str] = None


@dataclass
class Member:
    """Trained weights, the scene with the bands that they see, and the statistics that their scene correction uses."""

    trained: Trained
    scene: Scene
    reference: Reference | None

    def unlabelled(self) -> PatchSampler:
        """Pixels of the scene, whatever their label, the same ones for every member."""
        config, device = self.trained.config, self.trained.device
        return spread_sampler(self.scene, place(self.cube(), device), config, MOST_PIXELS)

    def cube(self) -> np.ndarray:
        return preprocess(self.scene.cube, self.trained.config.scene_correction, self.reference)


def _apply(choice: Choice) -> tuple[list[Member], Scene, tuple[str, ...]]:
    """The trained methods, the scene that a command line names, and the names of the classes."""
    if (not choice.run) == (choice.weights is None):
        raise ConfigError("Give either --run RUN_FOLDER or --weights best.pth.")
    loaded = [load_run(open_run(run), choice.rule, choice.gpu, choice.data_path) for run in choice.run] or \
        [load_released(Path(choice.weights), choice.kernel_activation, choice.data_path, choice.gpu)]
    name = choice.scene or (loaded[0].config.target_name if choice.run else None)
    if name is None:
        raise ConfigError("Name the scene to apply the weights to: --scene NAME.")
    scene = read_scene(loaded[0].config, name)
    class_names = loaded[0].class_names or scene.class_names
    for trained, run in zip(loaded, choice.run):
        if trained.class_names != class_names:
            raise ConfigError(f"{run} was trained on other classes than {choice.run[0]}; their probabilities cannot be "
                              "averaged.")
    for trained in loaded:
        if len(class_names) != trained.task.n_classes:
            raise CheckpointError(f"The weights are for {trained.task.n_classes} classes; {scene.name} has "
                                  f"{len(class_names)}.")
        check_patch(scene, trained.task.patch_size)
        scene = trained.sealed(matched(scene, class_names, "the trained weights"))
    return _members(choice, loaded, scene), scene, class_names


def _members(choice: Choice, loaded: list[Trained], scene: Scene) -> list[Member]:
    """The trained methods with the statistics that they use, adapted if that is asked for."""
    correcting = [trained for trained in loaded if trained.config.scene_correction != NONE]
    if choice.statistics_from and not correcting:
        raise ConfigError("--statistics_from has no use: the weights were trained without --scene_correction.")
    if correcting:
        other = read_scene(loaded[0].config, choice.statistics_from) if choice.statistics_from else scene
        spread = correcting[0].run.read_run().get("source_spread") if correcting[0].run else None
        warn_of_statistics(other, _reference(correcting[0], other), spread)
    members = [Member(trained, _on_grid(trained, scene), _reference(trained, other) if trained in correcting else None)
               for trained in loaded]
    for member in members if choice.adapt in (BN, TENT) else ():
        adapt(member.trained.method, member.unlabelled(), choice.adapt)
    return members


def _on_grid(trained: Trained, scene: Scene) -> Scene:
    """The scene with the bands that the weights see."""
    return on_grid(scene, trained.grid, "the trained weights")


def _reference(trained: Trained, scene: Scene) -> Reference:
    return reference_of(unit_spectra(_on_grid(trained, scene).cube))


def _weights(choice: Choice, members: list[Member], scene: Scene, class_names: tuple[str, ...]) -> np.ndarray | None:
    """What the members' averaged probabilities are multiplied by, [K] float32; None where they stay as they are."""
    if choice.adapt != PRIOR:
        return None
    trained_on = np.mean([training_shares(member.trained) for member in members], axis=0)
    found = sum(probabilities(member.trained.method, member.unlabelled()).cpu() for member in members)
    shares = scene_shares(found.numpy() / len(members), trained_on)
    log.info("Class shares in %s, estimated (in training): %s", scene.name, ", ".join(
        f"{name} {100 * there:.1f} % ({100 * before:.1f} %)"
        for name, there, before in zip(class_names, shares, trained_on)))
    if gone := [name for name, share in zip(class_names, shares) if share < 2 * LEAST_SHARE]:
        log.warning("By --adapt prior %s has hardly any %s. Where that cannot be, the probabilities are not good "
                    "enough for it: leave it out.", scene.name, ", ".join(gone))
    return (shares / trained_on).astype(np.float32)


def evaluate_parser() -> Parser:
    return command_parser(Choice, "evaluate", evaluate.__doc__)


def evaluate(words: list[str]) -> None:
    """Score trained weights on a labelled scene."""
    choice = parse_command(Choice, words, evaluate_parser())
    members, scene, class_names = _apply(choice)
    if not scene.labels.any():
        raise ConfigError(f"{scene.name} has no labelled pixel to score that these weights were not trained on; "
                          "'main.py predict' maps it.")
    confusion = _confusion(members, len(class_names), _weights(choice, members, scene, class_names))
    result, constant = scores(confusion), scores(constant_answer(confusion.sum(1)))
    whose = choice.weights or f"{', '.join(choice.run)}, {rule_words(choice.rule)}"
    print(f"{scene.name}, weights of {whose}{_reads(choice, members)} ({result.n} pixels)")
    for name, score in (("these weights", result), ("constant answer", constant)):
        print(f"  {name:<34} OA {100 * score.oa:.2f}  AA {100 * score.aa:.2f}  kappa {100 * score.kappa:.2f}  "
              f"macro-F1 {100 * score.macro_f1:.2f}")
    for name, accuracy in zip(class_names, result.per_class):
        print(f"  {name:<34} {text.MISSING if accuracy is None else f'{100 * accuracy:.2f}'}")


def _confusion(members: list[Member], n_classes: int, weights: np.ndarray | None) -> np.ndarray:
    """Confusion matrix [K, K] of the weights, or of several ones' averaged probabilities, on the labelled pixels."""
    samplers = [scene_sampler(member.scene, member.trained.config, member.trained.device, member.reference)
                for member in members]
    if len(members) == 1 and weights is None:
        return confusion_of(members[0].trained.method, samplers[0], n_classes)
    total = sum(probabilities(member.trained.method, sampler).cpu() for member, sampler in zip(members, samplers))
    return confusion_matrix(samplers[0].labels.cpu().numpy(), _weighed(total.numpy(), weights).argmax(1), n_classes)


def _weighed(total: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    return total if weights is None else total * weights


def _reads(choice: Choice, members: list[Member]) -> str:
    """What is read of the scene beside its patches."""
    found = [f"statistics of {choice.statistics_from or 'the scene'}"] * any(member.reference for member in members)
    return "".join(f", {what}" for what in [*found, *[f"adapted by {choice.adapt}"] * (choice.adapt != "none")])


def predict_parser() -> Parser:
    return command_parser(Choice, "predict", predict.__doc__)


def predict(words: list[str]) -> None:
    """Map a whole scene: a GeoTIFF (classes 1..K, their names in its tags, 0 = no data) and a picture beside it."""
    choice = parse_command(Choice, words, predict_parser())
    if choice.out is not None and Path(choice.out).suffix.lower() not in (".tif", ".tiff"):
        raise ConfigError(f"--out {choice.out} must end in .tif: the map is a GeoTIFF, a picture is written beside it.")
    members, scene, class_names = _apply(choice)
    path = Path(choice.out) if choice.out else Path(choice.run[0] if choice.run else ".") / f"{scene.name}_map.tif"
    prediction = _map(members, _weights(choice, members, scene, class_names))
    prediction[~scene.cube.any(axis=2)] = 0
    write_map(path, prediction, scene, class_names)
    picture = scenes.plot_maps(scene.cube, scene.rgb_bands, scene.labels, prediction, class_names, scene.name)
    sheet.save(picture, path.with_suffix(".png"))
    print(f"{path}\n{path.with_suffix('.png')}")


def _map(members: list[Member], weights: np.ndarray | None) -> np.ndarray:
    """Class 1..K of every pixel: [H, W]."""
    def answer(of_scene: Callable[..., np.ndarray], member: Member) -> np.ndarray:
        trained = member.trained
        return of_scene(trained.method, member.cube(), trained.task.patch_size, trained.device,
                        trained.config.backend)

    if len(members) == 1 and weights is None:
        return answer(map_scene, members[0])
    total = answer(scene_probabilities, members[0])                                                       # [H, W, K]
    for member in members[1:]:
        total += answer(scene_probabilities, member)
    return as_map(_weighed(total, weights).argmax(2), total.shape[2])
