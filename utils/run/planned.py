"""What sweeps mean to run, written beside their runs: so that a table can say how much of it is there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from model.plain import read_json
from utils.run.config import TrainConfig, from_dict, to_dict
from utils.text import write_text

FILE = "planned.json"       # sweep -> list of {seeds, settings (those of all these runs, but for the seed)}


def write_plan(folder: Path, sweep: str, runs: Iterable[TrainConfig]) -> None:
    """Add a sweep's runs to the plan of the folder they go to; an older plan of this sweep is replaced."""
    seeds, settings = {}, {}
    for config in runs:
        values = {name: value for name, value in to_dict(config).items() if name not in ("seed", "resume", "run_name")}
        text = json.dumps(values, sort_keys=True)
        settings[text] = values
        seeds.setdefault(text, []).append(config.seed)
    plan = [{"seeds": seeds[text], "settings": values} for text, values in settings.items()]
    write_text(folder / FILE, json.dumps(_read(folder / FILE) | {sweep: plan}) + "\n")


def planned(folders: Iterable[str | Path]) -> Iterator[TrainConfig]:
    """The settings of all runs in the plans at or below some folders."""
    for folder in folders:
        for path in sorted(Path(folder).rglob(FILE)):
            for part in (part for plan in _read(path).values() for part in plan):
                yield from (from_dict(part["settings"] | {"seed": seed}) for seed in part["seeds"])


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    return read_json(path) if path.exists() else {}
