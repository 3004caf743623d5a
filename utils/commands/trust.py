"""The command trust: may this map be believed?"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Optional

import numpy as np
from scipy.special import softmax

from datasets.grid import same_grid
from datasets.harmonize import check_patch, preprocess
from datasets.patches import PatchSampler, place
from datasets.scene import Scene
from model.errors import ConfigError
from utils.commands.results import writing
from utils.figures.sheet import save
from utils.figures.trust import plot_trust
from utils.run.build import read_scene, scene_sampler, spread_sampler
from utils.run.config import command_parser, parse_command
from utils.run.flags import Parser
from utils.run.folder import open_run
from utils.run.predict import probabilities
from utils.run.selection import EVERY_RULE, LAST, NOT_HONEST, ORACLE
from utils.text import grid, write_text
from utils.trained import trust as measures
from utils.trained.load import Trained, load_run
from utils.trained.trust import Calibration, Shift, calibration

log = logging.getLogger(__name__)

MOST = 4096               # pixels of each kind that are looked at, evenly spread


@dataclass
class Choice:
    """How far the map of a scene may be trusted.

    Args:
        run: run folder; of several the probabilities are averaged, and their agreement is told.
        scene: registered name or path of a scene file; null = the run's own target.
        rule: selection rule whose weights are used; oracle chose them on the target's labels.
        data_path: folder of the scenes' files, where it differs from the run's.
        gpu: CUDA device number; -1 = CPU; null = as the run.
        out: folder for trust_SCENE.md, .json and .png; null = the (first) run folder.
    """

    run: list[str] = field(default_factory=list)
    scene: Optional[str] = None
    rule: Literal[tuple(rule.name for rule in EVERY_RULE)] = LAST.name
    data_path: Optional[str] = None
    gpu: Optional[int] = None
    out: Optional[str] = None


def trust_parser() -> Parser:
    return command_parser(Choice, "trust", trust.__doc__)


def trust(words: list[str]) -> None:
    """Say how far a scene is from what trained weights know, and, where it has labels, what their probabilities are
    worth."""
    choice = parse_command(Choice, words, trust_parser())
    if not choice.run:
        raise ConfigError("Name the run whose map is to be believed: --run RUN_FOLDER.")
    members = [load_run(open_run(run), choice.rule, choice.gpu, choice.data_path) for run in choice.run]
    name = choice.scene or members[0].config.target_name
    if name is None:
        raise ConfigError("Name the scene: --scene NAME.")
    scene = read_scene(members[0].config, name)
    for trained in members:
        if trained.data.val is None:
            raise ConfigError(f"{trained.run.path} was trained on all labelled pixels: none is held out to compare with.")
        if trained.class_names != members[0].class_names:
            raise ConfigError(f"{trained.run.path} was trained on other classes than {choice.run[0]}.")
        check_patch(scene, trained.task.patch_size)
        if not same_grid(trained.grid, members[0].grid):
            raise ConfigError(f"{trained.run.path} sees other bands than {choice.run[0]}.")
    scene = members[0].common.bring(scene)
    found, held_out, t = shift_of(members, scene), _held_out(members), _temperature(members)
    calibrated = calibrations(members, scene, t) if scene.labels.any() else {}
    text = _page(choice, members, scene, found, held_out, t, calibrated)
    out = Path(choice.out or choice.run[0])
    with writing("report", out):
        write_text(out / f"trust_{scene.name}.md", text + "\n")
        write_text(out / f"trust_{scene.name}.json", json.dumps(_as_plain(scene, found, t, calibrated), indent=1) + "\n")
        save(plot_trust(found, scene.wavelengths, calibrated, found.sentence(scene.name)), out / f"trust_{scene.name}.png")
    print(text)


def shift_of(members: list[Trained], scene: Scene) -> Shift:
    """How far a scene is from what the members know; reads no label of it, not even which pixels have one."""
    samplers = [_unlabelled(trained, scene) for trained in members]
    shares = [_unlike(trained, sampler) for trained, sampler in zip(members, samplers)]
    answers = [probabilities(trained.method, sampler).argmax(1).cpu().numpy()
               for trained, sampler in zip(members, samplers)]
    first = members[0]
    return Shift(bands=measures.band_distances(_spectra(first.data.train), _spectra(samplers[0])),
                 norms=measures.norm_distances(first.method, samplers[0]),
                 unlike=float(np.mean([share for share, _ in shares])),
                 usual=float(np.mean([share for _, share in shares])), agreement=measures.agreement(answers))


def calibrations(members: list[Trained], scene: Scene, t: float) -> dict[str, Calibration]:
    """How the probabilities meet the labels of a scene, as trained and at the temperature of held-out source pixels."""
    samplers = [scene_sampler(scene, trained.config, trained.device) for trained in members]
    p, y = _averaged(members, samplers), samplers[0].labels.cpu().numpy()
    return {"as trained": calibration(p, y), f"T = {t:.2f}": calibration(softmax(_logits(p) / t, axis=1), y)}


def _unlabelled(trained: Trained, scene: Scene) -> PatchSampler:
    cube = place(preprocess(scene.cube, trained.config.scene_correction), trained.device)
    return spread_sampler(scene, cube, trained.config, MOST)


def _unlike(trained: Trained, sampler: PatchSampler) -> tuple[float, float]:
    training, held_out = (_thinned(one) for one in (trained.data.train, trained.data.val))
    return measures.unlike_shares(trained.method, training, held_out, sampler)


def _thinned(sampler: PatchSampler) -> PatchSampler:
    """At most MOST of a sampler's pixels, evenly spread."""
    step = -(-len(sampler) // MOST)
    return PatchSampler(sampler.cube, sampler.centres.cpu().numpy()[::step], sampler.labels.cpu().numpy()[::step],
                        sampler.patch_size, sampler.backend)


def _spectra(sampler: PatchSampler) -> np.ndarray:
    """Centre spectra [N, B] as the network sees them."""
    rows, columns = _thinned(sampler).centres.T
    return sampler.cube[:, rows, columns].T.cpu().numpy()


def _held_out(members: list[Trained]) -> Calibration:
    samplers = [trained.data.val for trained in members]
    return calibration(_averaged(members, samplers), samplers[0].labels.cpu().numpy())


def _temperature(members: list[Trained]) -> float:
    """That of the members' averaged probabilities on held-out source pixels."""
    samplers = [trained.data.val for trained in members]
    return measures.temperature(_logits(_averaged(members, samplers)), samplers[0].labels.cpu().numpy())


def _averaged(members: list[Trained], samplers: list[PatchSampler]) -> np.ndarray:
    return np.mean([probabilities(trained.method, sampler).double().cpu().numpy()
                    for trained, sampler in zip(members, samplers)], axis=0)


def _logits(p: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(p, np.finfo(np.float32).tiny))


def _page(choice: Choice, members: list[Trained], scene: Scene, found: Shift, held_out: Calibration, t: float,
          calibrated: dict[str, Calibration]) -> str:
    honest = f"\n\nWeights: {NOT_HONEST}." if choice.rule == ORACLE.name else ""
    worst = int(found.bands.argmax())
    place = f"{scene.wavelengths[worst]:.0f} nm" if scene.wavelengths is not None else f"band {worst + 1}"
    lines = [f"**{found.sentence(scene.name)}**{honest}",
             f"The band that differs most is at {place} ({found.bands[worst]:.1f} standard deviations). "
             + (f"Norms see {min(found.norms.values()):.1f} to {max(found.norms.values()):.1f} running deviations of "
                "change." if found.norms else "The classifier has no BatchNorm."),
             f"Temperature from held-out pixels of the training scene: {t:.2f} (above 1: they are answered too surely)."]
    rows = {"held-out source, as trained": held_out} | {f"{scene.name}, {name}": one for name, one in calibrated.items()}
    table = [["pixels", "ECE", "Brier", "−log p", "wrong (%)", "wrong of the surest half (%)"]]
    table += [[name, f"{one.ece:.3f}", f"{one.brier:.3f}", f"{one.nll:.2f}", f"{100 * one.risk[-1]:.1f}",
               f"{100 * one.risk[len(one.risk) // 2]:.1f}"] for name, one in rows.items()]
    lines.append(grid(table))
    if not calibrated:
        lines.append(f"{scene.name} has no labels: nothing here says how many of its pixels are right.")
    return "\n\n".join(lines)


def _as_plain(scene: Scene, found: Shift, t: float, calibrated: dict[str, Calibration]) -> dict:
    """The same for other programs."""
    return {"scene": scene.name, "sentence": found.sentence(scene.name), "level": found.level, "temperature": t,
            **asdict(found) | {"bands": found.bands.tolist()},
            "calibration": {name: {"ece": one.ece, "brier": one.brier, "nll": one.nll, "aurc": one.area}
                            for name, one in calibrated.items()}}
