"""What was run: the runs of a report, their data, settings, commands and programs."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from model.errors import RunFolderError, UserError
from utils.run.config import to_dict
from utils.run.folder import RunFolder
from utils.run.records import BEGUN
from utils.run.selection import LAST
from utils.tables.collect import scored, scores_of
from utils.tables.runs import RunInfo, differing_settings, named, read_runs
from utils.text import printable

OF_THE_PAIR = {"source_name", "target_name", "simulation", "seed", "run_name", "resume"}     # said elsewhere
Run = tuple[RunInfo, dict[str, Any]]                # a run, and what its run.json says


@dataclass(frozen=True)
class Configuration:
    """A method under one name: its runs' commands, and the settings that not all runs of the report share."""

    name: str
    settings: list[tuple[str, str]]
    commands: list[tuple[str, str]]


@dataclass
class Runs:
    """The runs of a report, in the order of pairs.

    every: each with its run.json.  names: folder -> pair and method.  scores: those of finished runs (`collect`,
    `named`), without a row where no target was scored.  shown: the finished runs that pictures may show, with the
    scores of the rule where they have them.  left_out: what the page cannot show, and why, in words.
    """

    every: list[Run]
    names: dict[str, tuple[str, str]]
    scores: pd.DataFrame
    shown: pd.DataFrame
    left_out: list[str] = field(default_factory=list)


def read(folders: list[str], rule: str) -> Runs:
    """All runs at or below some folders.  Raises UserError if there is none."""
    found = read_runs(folders, lambda run, info: (run.read_run(*BEGUN), scores_of(run, info)))
    if not found:
        raise UserError(f"No run below {', '.join(folders)}. Give run folders, or the folder of a sweep.")
    frame = _printable(named(pd.DataFrame([info.columns for info, _ in found])))
    of_folder = {info.folder: (info, about) for info, (about, _) in found}
    names = {row["folder"]: (row["pair"], row["name"]) for row in frame.to_dict("records")}
    scores = pd.DataFrame(columns=["rule", "pair"])
    if any(rules for _, (_, rules) in found):
        scores = _printable(named(scored([(info, rules) for info, (_, rules) in found], folders)))
    of_rule = scores[scores["rule"] == rule]
    unscored = frame[frame["finished"] & ~frame["pair"].isin(of_rule["pair"])]
    parts = [part for part in (of_rule, unscored) if len(part)]
    runs = Runs([of_folder[folder] for folder in names], names, scores, pd.concat(parts) if parts else unscored)
    for info, about in runs.every:
        if not info.finished:
            runs.left_out.append(f"Scores and maps of {info.folder}: it has not finished (status {about['status']}).")
    return runs


def _printable(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs under names that figures can draw; those of scenes come from run.json."""
    return runs.assign(**{column: runs[column].map(printable) for column in ("pair", "scenes", "name")})


def settings(runs: list[Run], names: dict[str, tuple[str, str]]) -> tuple[list[tuple[str, str]], list[Configuration]]:
    """The settings that all runs share, and the configurations.  names: folder -> pair and method."""
    flat = {info.folder: {key: value for key, value in to_dict(info.config).items() if key not in OF_THE_PAIR}
            for info, _ in runs}
    differing = set(differing_settings(list(flat.values())))
    first = next(iter(flat.values()))
    shared = [(key, _text(value)) for key, value in first.items() if key not in differing]
    found: dict[str, Configuration] = {}
    for info, about in runs:
        name = names[info.folder][1]
        own = [(key, _text(value)) for key, value in flat[info.folder].items() if key in differing]
        found.setdefault(name, Configuration(name, own, [])).commands.append((info.folder, command(info, about)))
    return shared, list(found.values())


def command(info: RunInfo, about: dict[str, Any]) -> str:
    """The command line that made a run, as it was recorded, else the one that repeats it."""
    words = about.get("command")
    if not (isinstance(words, list) and words and all(isinstance(word, str) for word in words)):
        words = ["--config", f"{info.folder}/config.yaml"]
    derived = about.get("derived_by")
    return f"python main.py {shlex.join(words)}" + (f"   # and then {derived}" if derived else "")


def pairs(runs: list[Run], names: dict[str, tuple[str, str]]) -> dict[str, tuple[list[str], list[int], list[int]]]:
    """Per pair the classes, and of each the pixels that were trained on and those that were scored on."""
    found: dict[str, tuple[list[str], list[int], list[int]]] = {}
    for info, about in runs:
        if info.classes is None or info.ceiling or names[info.folder][0] in found:
            continue
        found[names[info.folder][0]] = info.classes, about.get("training_pixels", []), _scored_on(info)
    return found


def _scored_on(info: RunInfo) -> list[int]:
    """The target's labelled pixels of each class; empty where none were scored."""
    if not info.finished:
        return []
    try:
        confusion = RunFolder(info.folder).evaluation_of(LAST.name).get("confusion", [])
    except RunFolderError:                        # such a run has no scores in the report either, which the log says
        return []
    return [sum(row) for row in confusion]


def files(runs: list[Run], names: dict[str, tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Per pair the SHA-256 of its scenes' files."""
    return {names[info.folder][0]: about["sha256"] for info, about in runs}


def programs(runs: list[Run]) -> list[tuple[str, str]]:
    """What the runs say of where they were made: commit, platform, device, backend, versions; each with its values."""
    found: dict[str, dict[str, None]] = {}
    for _, about in runs:
        said = {key: about.get(key) for key in ("git", "platform", "device", "backend", "threads")}
        for key, value in (said | about.get("versions", {})).items():
            if value is not None:
                found.setdefault("commit" if key == "git" else key, {})[str(value)] = None
    return [(key, ", ".join(values)) for key, values in found.items()]


def _text(value: Any) -> str:
    """A setting as config.yaml has it."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
