"""Run folders -> what each run is, every run once, and what runs are called beside each other."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from datasets.correction import NONE
from model.errors import ConfigError, RunFolderError
from utils.run.config import WITHOUT_EFFECT, TrainConfig, completed, from_dict, to_dict
from utils.run.folder import RunFolder, find_runs, run_label
from utils.run.records import BEGUN, damaged, settings_in, settings_text, without_seed
from utils.tables.cells import TARGET_MARKS
from utils.text import MISSING

log = logging.getLogger(__name__)

NO_SETTING = WITHOUT_EFFECT | {"seed", "source_name", "target_name", "oracle", "simulation"}

Content = TypeVar("Content")


@dataclass(frozen=True)
class RunInfo:
    """What a run is.

    pair: SOURCE → TARGET.  data: digest of the scenes' files.  method: the run's label.  setting: all other settings
    that can change a result, as JSON.  epochs: number of recorded evaluations.  uses_target: training saw unlabelled
    target.  adapts: the weights are applied with the target scene's own statistics.  ceiling: training saw half of the
    target's labels.  classes: their names, None where run.json lacks them.
    """

    pair: str
    data: str
    method: str
    setting: str
    seed: int
    finished: bool
    epochs: int
    uses_target: bool
    adapts: bool
    ceiling: bool
    folder: str
    config: TrainConfig
    classes: list[str] | None

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """Runs that share it are repetitions of one another."""
        return self.pair, self.data, self.method, self.setting, self.seed

    @property
    def columns(self) -> dict[str, Any]:
        """The run as columns of a frame; simulation: the settings of the simulated pair."""
        names = ("pair", "method", "setting", "data", "seed", "folder", "finished", "uses_target", "adapts", "ceiling")
        return {name: getattr(self, name) for name in names} | {"simulation": to_dict(self.config.simulation)}

    def goes_before(self, other: RunInfo) -> bool:
        """Whether this run stays of two repetitions: the finished one, else the one with an oracle, else the longer."""
        one, two = ((run.finished, run.config.oracle, run.epochs) for run in (self, other))
        return one > two


def read_info(run: RunFolder, known: dict[str, _Read] | None = None) -> RunInfo:
    """What run.json and config.yaml of a run folder say.  Raises RunFolderError if they don't say it.

    known: settings read before, to which these are added, so that those which differ in the seed alone are read once.
    """
    about = run.read_run(*BEGUN)
    read = _read(run, {} if known is None else known)
    setting = read.setting
    if weights := about.get("initial_weights"):              # a run made from another one's weights read none
        own = {"htcnn_weights": ", ".join(digest[:8] for digest in weights.values())}
        setting = json.dumps(json.loads(setting) | own, sort_keys=True)
    return RunInfo(pair=f"{about['source']} → {about['target'] or MISSING}", data=_digest(about["sha256"]),
                   method=read.method, setting=setting, seed=read.config.seed,
                   finished=about["status"] == "done", epochs=len(run.records(run.epochs)),
                   uses_target=about["uses_target"], adapts=read.config.scene_correction != NONE,
                   ceiling=read.config.ceiling, folder=str(run.path), config=read.config, classes=about.get("classes"))


@dataclass(frozen=True)
class _Read:
    """What config.yaml says: the settings, the run's label, and the settings of RunInfo."""

    config: TrainConfig
    method: str
    setting: str


def _read(run: RunFolder, known: dict[str, _Read]) -> _Read:
    text = settings_text(run.config)
    common, seed = without_seed(text) or (None, None)
    if common in known:
        return replace(known[common], config=replace(known[common].config, seed=seed))
    try:
        config = from_dict(completed(settings_in(text, run.config)))
        method = run_label(config)
    except ConfigError as error:
        raise damaged(run.config, str(error).rstrip(".")) from error
    settings = {name: value for name, value in to_dict(config).items() if name not in NO_SETTING and value is not None}
    read = _Read(config, method, json.dumps(settings, sort_keys=True))
    if common is not None:
        known[common] = read
    return read


def _digest(sha256: dict[str, str]) -> str:
    """Eight hex digits of all scenes' files, under their roles and names."""
    return hashlib.sha256(json.dumps(sha256, sort_keys=True).encode()).hexdigest()[:8]


def read_runs(folders: Iterable[str | Path], content: Callable[[RunFolder, RunInfo], Content]
              ) -> list[tuple[RunInfo, Content]]:
    """Every run at or below some folders, once, with what `content` reads of it.

    Left out with a warning are run folders that are damaged, and of two repetitions the one that the other
    `goes_before`, or else the later one.
    """
    found: dict[tuple, tuple[RunInfo, Content]] = {}
    known: dict[str, _Read] = {}
    for run in find_runs(folders):
        try:
            info = read_info(run, known)
            new = info, content(run, info)
        except RunFolderError as error:
            _leave_out(run, error)
            continue
        if old := found.get(info.key):
            new, old = (new, old) if info.goes_before(old[0]) else (old, new)
            log.warning("%s is left out: it repeats the setting and seed of another run.", old[0].folder)
        found[info.key] = new
    return list(found.values())


def read_each(folders: Iterable[str], content: Callable[[RunFolder], Content]) -> list[Content]:
    """What `content` reads of each of some runs; a damaged one is left out with a warning."""
    found = []
    for run in map(RunFolder, folders):
        try:
            found.append(content(run))
        except RunFolderError as error:
            _leave_out(run, error)
    return found


def _leave_out(run: RunFolder, error: RunFolderError) -> None:
    log.warning("%s is left out: its records are damaged: %s", run.path, error)


def named(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs (RunInfo.columns, and any others), pair by pair, ceilings last, under the names that tables have for them.

    New columns: name (of the method, see `named_settings`), scenes (SOURCE → TARGET).  The column pair tells runs on
    different data apart.
    """
    runs = runs.assign(name=named_settings(runs), scenes=runs["pair"], pair=pair_names(runs))
    return runs.sort_values(["pair", "ceiling"], kind="stable", ignore_index=True)


def named_settings(runs: pd.DataFrame) -> pd.Series:
    """Each run's label, the settings in which runs of one label differ, and its marks."""
    names = runs["method"].copy()
    for _, of_label in runs.groupby(["pair", "method"]):
        settings = {text: json.loads(text) for text in of_label["setting"].unique()}
        differing = differing_settings(list(settings.values()))
        added = {text: "".join(f" {name}={one.get(name)}" for name in differing) for text, one in settings.items()}
        names[of_label.index] += of_label["setting"].map(added)
    for column, (mark, _) in TARGET_MARKS.items():
        names += np.where(runs[column], mark, "")
    return names


def differing_settings(settings: list[dict[str, Any]]) -> list[str]:
    """The names, sorted, under which not all of some settings have the same value."""
    first = settings[0]
    return sorted({name for one in settings for name in one.keys() | first.keys() if one.get(name) != first.get(name)})


def pair_names(runs: pd.DataFrame) -> pd.Series:
    """The pairs' names; runs on different data are different pairs, told apart by the simulation, else by a digest."""
    names = runs["pair"].copy()
    for _, of_pair in runs.groupby("pair"):
        if of_pair["data"].nunique() == 1:
            continue
        simulations = of_pair["simulation"].map(
            lambda one: ", ".join(f"{key} {value:g}" if key != "gap" else f"{value} {key}"
                                  for key, value in sorted(one.items(), reverse=True)))
        told = simulations.nunique() == of_pair["data"].nunique()
        names[of_pair.index] += " (" + (simulations if told else "data " + of_pair["data"]) + ")"
    return names
