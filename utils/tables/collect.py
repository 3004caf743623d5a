"""Records of many runs -> one frame, for tables and figures; a single run as text."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from model.errors import UserError
from utils.run.config import WITHOUT_EFFECT, with_defaults
from utils.run.folder import RunFolder, find_runs
from utils.run.metrics import SCORES
from utils.run.planned import planned
from utils.run.selection import ORACLE

log = logging.getLogger(__name__)

LISTS = ["per_class", "constant_per_class", "classes"]       # columns of `collect` that hold a value per class
NO_SETTING = WITHOUT_EFFECT | {"seed", "source_name", "target_name", "oracle"}


def collect(folders: list[str | Path]) -> pd.DataFrame:
    """One row per finished run and selection rule, from all run folders below `folders`.

    Columns: pair, method (label), setting (all other settings that can change a result and a digest of the data, as
    JSON), seed, planned (runs of this setting, with unfinished ones and those that a sweep has yet to begin; of the
    rule `oracle` without those that were not asked for it), rule, epoch, source_val and shifted_source (OA; missing in
    runs older than the rule), oa, aa, kappa, macro_f1 and per_class, the constant answer's scores as constant_*,
    classes, uses_target (whether training saw unlabelled target), folder; scores as fractions.  A folder that cannot be
    read, an unfinished run and a repetition of the same setting and seed are left out with a word.
    Raises UserError where nothing is left.
    """
    found: dict[tuple, _Found] = {}
    for run in find_runs(folders):
        try:
            new = _run_rows(run)
        except (OSError, json.JSONDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is left out: its records are damaged (%s: %s).", run.path, type(error).__name__, error)
            continue
        old = found.get(new.key)
        if old and old.rows and new.rows:
            log.warning("%s is left out: it repeats the setting and seed of another run.",
                        run.path if len(old.rows) >= len(new.rows) else old.rows[0]["folder"])
        if old is None or len(new.rows) > len(old.rows):      # finished before unfinished, with oracle before without
            found[new.key] = new
    like = {run.kind: run for run in found.values()}
    for seed, settings in planned(folders):                   # those that are not even begun
        if run := like.get(_kind(with_defaults(settings))):
            found.setdefault((*run.key[:-1], seed), replace(run, seed=seed, rows=[]))
    rows = [row for run in found.values() for row in run.rows]
    if not rows:
        raise UserError(f"No finished run with a labelled target below {', '.join(map(str, folders))}.")
    counts = Counter(key[:-1] for key in found)
    table = pd.DataFrame(rows)
    keys = list(zip(table["pair"], table["method"], table["setting"]))
    asked = set(table.loc[table["rule"] == ORACLE.name, "folder"])
    unasked = Counter(key for folder, key in dict(zip(table["folder"], keys)).items() if folder not in asked)
    table["planned"] = [counts[key] - (unasked[key] if rule == ORACLE.name else 0)
                        for key, rule in zip(keys, table["rule"])]
    return table.sort_values(["pair", "method", "setting", "seed"], kind="stable", ignore_index=True)


@dataclass(frozen=True)
class _Found:
    """What one run folder says: its place in a table, and a row per selection rule (none where it is unfinished).

    kind: the settings that it shares with the same run of another seed.
    """

    pair: str
    method: str
    setting: str
    seed: int
    kind: str
    rows: list[dict[str, Any]]

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.pair, self.method, self.setting, self.seed


def _run_rows(run: RunFolder) -> _Found:
    about, config = run.read_run(), with_defaults(yaml.safe_load(run.config.read_text()))
    settings = {name: value for name, value in config.items() if name not in NO_SETTING and value is not None}
    if about.get("initial_weights"):
        settings["htcnn_weights"] = ", ".join(digest[:8] for digest in about["initial_weights"].values())
    data = hashlib.sha256(json.dumps(about["sha256"], sort_keys=True).encode()).hexdigest()[:8]
    setting = json.dumps(settings | {"data": data}, sort_keys=True)
    place = {"pair": f"{about['source']} → {about['target']}", "method": about["label"], "setting": setting,
             "seed": about["seed"]}
    if about["status"] != "done":
        return _Found(**place, kind=_kind(config), rows=[])
    content = json.loads(run.evaluation.read_text())
    entries = content["rules"] | ({"oracle": content["oracle"]} if "oracle" in content else {})
    rows = [{**place, "rule": rule, "epoch": entry["epoch"], "source_val": entry["source_val"]["oa"],
             "shifted_source": entry.get("shifted_source", {}).get("oa"),
             **{key: entry["target"][key] for key in (*SCORES, "per_class")},
             **{f"constant_{key}": content["constant"][key] for key in (*SCORES, "per_class")},
             "classes": about["classes"], "uses_target": about.get("uses_target", False), "folder": str(run.path)}
            for rule, entry in entries.items() if "target" in entry]
    return _Found(**place, kind=_kind(config), rows=rows)


def _kind(config: dict[str, Any]) -> str:
    return json.dumps({name: value for name, value in config.items() if name not in WITHOUT_EFFECT | {"seed", "oracle"}},
                      sort_keys=True)


def named_settings(runs: pd.DataFrame) -> pd.Series:
    """How each run is called in a table: its label, and behind it the settings in which runs of one label differ."""
    names = pd.Series(runs["method"], copy=True)
    for _, of_label in runs.groupby(["pair", "method"]):
        settings = {text: json.loads(text) for text in of_label["setting"].unique()}
        differing = sorted({name for one in settings.values() for other in settings.values()
                            for name in one.keys() | other.keys() if one.get(name) != other.get(name)})
        for index, text in of_label["setting"].items():
            names[index] += "".join(f" {name}={settings[text].get(name)}" for name in differing)
    return names


def by_pair(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of `collect`, pair by pair, with what belongs to the pair, simulation and data, taken out of the setting
    into columns of their own, pairs on different data under different names, and the methods' names in a column `name`."""
    settings = runs["setting"].map(json.loads)
    runs = runs.assign(simulation=[setting.pop("simulation", {}) for setting in settings],
                       data=[setting.pop("data") for setting in settings],
                       setting=[json.dumps(setting, sort_keys=True) for setting in settings])
    runs["name"] = named_settings(runs)
    runs = runs.assign(scenes=runs["pair"], pair=pair_names(runs))
    return runs.sort_values("pair", kind="stable", ignore_index=True)


def pair_names(runs: pd.DataFrame) -> pd.Series:
    """The pairs' names; runs on different data are different pairs: told apart by the simulation, else by a digest.

    runs: columns pair, data (digest), simulation (its settings)."""
    names = runs["pair"].copy()
    for _, of_pair in runs.groupby("pair"):
        if of_pair["data"].nunique() == 1:
            continue
        simulations = of_pair["simulation"].map(
            lambda one: ", ".join(f"{key} {value:g}" for key, value in sorted(one.items(), reverse=True)))
        told = simulations.nunique() == of_pair["data"].nunique()
        names[of_pair.index] += " (" + (simulations if told else "data " + of_pair["data"]) + ")"
    return names
