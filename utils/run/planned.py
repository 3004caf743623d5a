"""What sweeps mean to run, written beside their runs: so that a table can say how much of it is there."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from model.errors import ConfigError, RunFolderError
from utils.run.config import TrainConfig, completed, from_dict, to_dict
from utils.run.records import read_json
from utils.text import write_text

log = logging.getLogger(__name__)

FILE = "planned.json"       # sweep -> list of {seeds, settings (those of all these runs, but for the seed)}
PLANS = {str: [{"seeds": list[int], "settings": dict}]}      # as utils/run/records.py says it


def write_plan(folder: Path, sweep: str, runs: Iterable[TrainConfig]) -> None:
    """Add a sweep's runs to the plan of the folder they go to; an older plan of this sweep is replaced."""
    seeds, settings = {}, {}
    for config in runs:
        values = {name: value for name, value in to_dict(config).items() if name not in ("seed", "resume", "run_name")}
        text = json.dumps(values, sort_keys=True)
        settings[text] = values
        seeds.setdefault(text, []).append(config.seed)
    plan = [{"seeds": seeds[text], "settings": values} for text, values in settings.items()]
    path = folder / FILE
    older = read_json(path, PLANS) if path.exists() else {}
    write_text(path, json.dumps(older | {sweep: plan}) + "\n")


def planned(folders: Iterable[str | Path]) -> Iterator[tuple[TrainConfig, list[int]]]:
    """The settings in the plans at or below some folders, each with its seeds in place of its own; a damaged plan is
    left out with a warning."""
    for path in (path for folder in folders for path in sorted(Path(folder).rglob(FILE))):
        try:
            yield from [(from_dict(completed(part["settings"])), part["seeds"])
                        for plan in read_json(path, PLANS).values() for part in plan]
        except (RunFolderError, ConfigError) as error:
            log.warning("%s is left out: %s", path, error)
