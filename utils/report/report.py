"""Runs -> one HTML file that holds all there is to see of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd

from model.errors import ConfigError
from utils.report import drawn, facts, grids
from utils.report.album import Album
from utils.report.facts import Runs
from utils.report.page import rendered
from utils.run.environment import version
from utils.run.metrics import SCORES
from utils.tables import layouts
from utils.tables.published import published_tables

FURTHER = ("overview", "ablation", "switches", "sensitivity", "ranks", "drawings", "cost",
           "gradients")             # layouts
ROOM_OF_WORDS = 100_000     # bytes for captions and what is left out


def make_report(folders: list[str], rule: str, gpu: int | None, data_path: str | None, no_maps: bool,
                size_limit: float, command: str) -> str:
    """The page of all runs at or below some folders, of at most `size_limit` megabytes.

    rule: of the maps and figures.  gpu, data_path: where they differ from the runs'.  command: what makes the page.
    What cannot be shown (a run without weights, a scene that is not there, figures beyond the size) is named at the
    page's end.  Raises UserError if there is no run, ConfigError if the tables alone are larger.
    """
    with _said_once():
        runs = facts.read(folders, rule)
        content = _content(runs, rule) | {"made_by": command}
        words = len(rendered(content | {"headings": {}, "viewers": [], "left_out": runs.left_out}).encode())
        room = 1e6 * size_limit - words - ROOM_OF_WORDS
        if room < 0:
            raise ConfigError(f"The report's tables and settings alone take {(words + ROOM_OF_WORDS) / 1e6:.1f} MB. "
                              "Give a larger --size_limit, or fewer runs.")
        album = Album(room, left_out=runs.left_out)
        viewers = [] if no_maps else drawn.maps(runs, rule, gpu, data_path, album)
        drawn.figures(runs, folders, rule, album)
    if album.full:
        album.left_out.append(f"{album.full} figures: no room in the file (--size_limit).")
    return rendered(content | {"headings": album.headings, "viewers": viewers, "left_out": album.left_out})


def _content(runs: Runs, rule: str) -> dict[str, Any]:
    """What the template shows beside the pictures."""
    infos = [info for info, _ in runs.every]
    of_rule = runs.scores[runs.scores["rule"] == rule]
    scores = {row["folder"]: {key: row[key] for key in SCORES} for row in of_rule.to_dict("records")}
    shared, configurations = facts.settings(runs.every, runs.names)
    results = [grid.narrowed() for grid in grids.score_grids(runs.scores, rule)] if len(runs.scores) else []
    pairs = list(dict.fromkeys(pair for pair, _ in runs.names.values()))
    methods = list(dict.fromkeys(name for _, name in runs.names.values()))
    title = pairs[0] if len(pairs) == 1 else f"{len(methods)} method{'s' * (len(methods) > 1)} on {len(pairs)} pairs"
    return {"title": title, "pairs": pairs, "methods": methods,
            "seeds": sorted({info.seed for info in infos}), "count": len(infos),
            "finished": sum(info.finished for info in infos), "rule": rule, "results": results,
            "further": _further(runs.scores, rule),
            "runs": grids.run_grid(runs.every, runs.names, scores, rule).narrowed(),
            "data": grids.data_grid(facts.pairs(runs.every, runs.names)).narrowed(),
            "files": facts.files(runs.every, runs.names), "shared": shared, "configurations": configurations,
            "programs": facts.programs(runs.every), "version": version()}


def _further(scores: pd.DataFrame, rule: str) -> list[grids.Grid]:
    """The tables of other layouts, where the runs hold something for them."""
    if not (scores["rule"] == rule).any():
        return []
    made = {layout: drawn.made(lambda: {"tables": layouts.LAYOUTS[layout](scores, rule)}).get("tables", [])
            for layout in FURTHER}
    made["published"] = published_tables(scores, by_word=False)
    return [grids.of_table(f"{layout}-{number}", layouts.ceilings_last(table))
            for layout, tables in made.items() for number, table in enumerate(tables)]


@contextmanager
def _said_once() -> Iterator[None]:
    """No message is logged twice: the runs are read, and their tables made, more than once."""
    said: set[str] = set()

    def new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not (text in said or said.add(text))
    handlers = list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(new)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(new)
