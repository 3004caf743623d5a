"""Published numbers (configs/published.yaml) beside ours, for real scenes only."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from datasets.benchmark import BENCHMARK
from model.errors import UserError
from model.plain import read_yaml
from utils.run.folder import ROOT, RunFolder
from utils.run.records import BEGUN
from utils.run.selection import NOT_HONEST, ORACLE
from utils.tables.cells import score_cell, seeds_cell
from utils.tables.markup import Cell, Table

log = logging.getLogger(__name__)

FILE = ROOT / "configs" / "published.yaml"
SHOWN = {"OA": "oa", "AA": "aa", "kappa": "kappa"}
HEADINGS = {"OA": "OA", "AA": "AA", "kappa": "κ"}


def published_tables(runs: pd.DataFrame, by_word: bool, path: Path = FILE) -> list[Table]:
    """Per pair of real scenes, our scores under `oracle` and the published ones, from finished runs (`named`).

    A pair counts as real where its files have the digests that the file names, or by the user's word and the number of
    labelled target pixels, which crops and simulated scenes do not share.  Raises UserError if the word holds for no
    pair.
    """
    content = read_yaml(path)
    tables = []
    for pair, of_pair in runs.groupby("pair", sort=False):
        about = RunFolder(of_pair["folder"].iloc[0]).read_run(*BEGUN)
        name = f"{about['source']}-{about['target']}"
        if name in content["pairs"] and is_real(about, content["pairs"][name], by_word):
            tables.append(_table(pair, of_pair, name, content))
    if by_word and not tables:
        raise UserError(f"--published: there are published numbers of {', '.join(content['pairs'])} with all labelled "
                        "pixels of the benchmark; none of these runs has such a pair.")
    return tables


def is_real(about: dict[str, Any], digests: dict[str, str], by_word: bool) -> bool:
    """Whether a run (its run.json) was made on the scenes that were published on.

    digests: role/file -> SHA-256 of the files as the benchmark has them; empty where the project does not know them.
    """
    if digests and all(about["sha256"].get(file) == digest for file, digest in digests.items()):
        return True
    return by_word and about.get("labelled_target_pixels") == sum(BENCHMARK[about["target"]].class_counts)


def _table(pair: str, runs: pd.DataFrame, name: str, content: dict[str, Any]) -> Table:
    ours = runs[(runs["rule"] == ORACLE.name) & ~runs["ceiling"]]
    rows: dict[str, dict[str, Cell]] = {}
    for label, group in ours.groupby("name", sort=False):
        rows[f"{label} (ours)"] = {"n": seeds_cell(group)} | {
            HEADINGS[metric]: score_cell(group[key]) for metric, key in SHOWN.items()}
    for method, values in content["methods"].items():
        if name in values:
            rows[f"{method} (published)"] = {HEADINGS[metric]: _cell(entry) for metric, entry in values[name].items()}
    title = f"{pair}: PUBLISHED numbers beside ours, {NOT_HONEST} (percent, mean ± std; published n not stated)"
    few = [] if len(ours) else ["None of our runs was scored with --oracle: nothing of ours can stand beside these."]
    return Table(title, "method", rows, [*few, f"Published: {content['source']} {content['note']}"])


def _cell(entry: dict[str, float]) -> Cell:
    text = f"{entry['mean']:.2f}" + (f" ± {entry['std']:.2f}" if "std" in entry else "")
    return Cell(text, numbers=entry)
