"""Finished runs -> one frame of their scores, for tables and figures."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from model.errors import UserError
from utils.run.config import WITHOUT_EFFECT, TrainConfig, to_dict
from utils.run.folder import RunFolder
from utils.run.metrics import SCORES
from utils.run.planned import planned
from utils.run.records import damaged
from utils.run.selection import ORACLE, SOURCE_SCORES
from utils.tables.runs import RunInfo, read_runs

_PER_RULE = ("pair", "method", "setting", "seed", "rule", "epoch", "source_val", "shifted_source", *SCORES,
             *(f"constant_{score}" for score in SCORES), "uses_target", "adapts", "planned")       # a number or word each


def collect(folders: list[str | Path]) -> pd.DataFrame:
    """One row per finished run and selection rule, from all run folders at or below `folders` (see `read_runs`).

    Columns: those of RunInfo.columns.  rule, epoch, source_val and shifted_source (OA; NaN where no source pixel is
    held out), the target's scores and per_class, the constant answer's as constant_*; scores as fractions.  classes.
    planned: runs of this setting, with unfinished ones and those that a sweep has yet to begin, and for the rule
    `oracle` without those that have none.
    Raises UserError if there is no such run.
    """
    return scored(read_runs(folders, scores_of), folders)


def scored(found: list[tuple[RunInfo, list[dict[str, Any]]]], folders: list[str | Path]) -> pd.DataFrame:
    """The frame of `collect` from runs below `folders` that were read before, each with its `scores_of`."""
    rows = [info.columns | {"planned": 0} | of_rule for info, rules in found for of_rule in rules]
    if not rows:
        raise UserError(f"No finished run with a labelled target below {', '.join(map(str, folders))}.")
    runs = pd.DataFrame(rows)
    meant = _meant([info for info, _ in found], folders)
    settings = list(runs[["pair", "data", "method", "setting"]].itertuples(index=False, name=None))
    asked = set(runs.loc[runs["rule"] == ORACLE.name, "folder"])
    unasked = Counter(key for folder, key in dict(zip(runs["folder"], settings)).items() if folder not in asked)
    runs["planned"] = [meant[key] - (unasked[key] if rule == ORACLE.name else 0)
                       for key, rule in zip(settings, runs["rule"])]
    return runs.sort_values(["pair", "method", "setting", "data", "seed"], kind="stable", ignore_index=True)


def scores_of(run: RunFolder, info: RunInfo) -> list[dict[str, Any]]:
    """The scores of the weights that each rule selected, from evaluation.json; empty without a labelled target, and of
    an unfinished run."""
    if not info.finished:
        return []
    content, classes = run.read_evaluation(), info.classes
    if classes is None:
        raise damaged(run.run, "it lacks 'classes'")
    entries = content["rules"] | ({ORACLE.name: content["oracle"]} if "oracle" in content else {})
    constant = [content["constant"]] if "constant" in content else []
    if any(len(scores["per_class"]) != len(classes)
           for scores in [*constant, *(entry["target"] for entry in entries.values() if "target" in entry)]):
        raise damaged(run.evaluation, f"its scores are not of the {len(classes)} classes of run.json")
    return [{"rule": rule, "epoch": entry["epoch"],
             **{score: entry[score]["oa"] if score in entry else float("nan") for score in SOURCE_SCORES},
             **{key: entry["target"][key] for key in (*SCORES, "per_class")},
             **{f"constant_{key}": content["constant"][key] for key in (*SCORES, "per_class")}, "classes": classes}
            for rule, entry in entries.items() if "target" in entry]


def _meant(infos: list[RunInfo], folders: list[str | Path]) -> Counter:
    """How many seeds there are, or will be when the sweeps are through, of the settings (RunInfo.key without seed) that
    some run has."""
    keys = {info.key for info in infos}
    plans = list(planned(folders))
    like = {_but_for_the_seed(info.config): info for info in infos} if plans else {}
    for config, seeds in plans:
        if info := like.get(_but_for_the_seed(config)):
            keys |= {(*info.key[:-1], seed) for seed in seeds}
    return Counter(key[:-1] for key in keys)


def _but_for_the_seed(config: TrainConfig) -> str:
    return json.dumps({name: value for name, value in to_dict(config).items()
                       if name not in WITHOUT_EFFECT | {"seed", "oracle"}}, sort_keys=True)


def as_csv(runs: pd.DataFrame) -> str:
    """The frame of `collect` as a file: without folders and lists, the simulation and the data among the settings."""
    texts: dict[tuple, str] = {}                # equal settings are written once, and stand as one object in the frame
    for setting, simulation, data in zip(runs["setting"], runs["simulation"], runs["data"]):
        key = setting, *simulation.items(), data
        if key not in texts:
            texts[key] = json.dumps(json.loads(setting) | {"simulation": simulation, "data": data}, sort_keys=True)
    settings = [texts[setting, *simulation.items(), data]
                for setting, simulation, data in zip(runs["setting"], runs["simulation"], runs["data"])]
    return runs[list(_PER_RULE)].assign(setting=settings).to_csv(index=False)
