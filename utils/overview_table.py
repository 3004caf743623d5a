"""The layout `overview`: all pairs beside each other, one score a table."""

from __future__ import annotations

import pandas as pd

from utils.cells import (CONSTANT, NOT_HONEST, UNITS, by_seed, constant_cell, marks_of, notes, of_rule, rule_words,
                         score_cell, seeds_over_pairs)
from utils.markup import Cell, Table
from utils.selection import LAST, ORACLE
from utils.tables import SCORES

MEAN = "mean over pairs"
SHOWN = ("kappa", "aa")


def overview(runs: pd.DataFrame, rule: str = LAST.name) -> list[Table]:
    """κ, AA and source-validation OA under one rule: a row per method, a column per pair.  Where runs have an oracle,
    also how much choosing the epoch on the target's labels adds to κ."""
    chosen = of_rule(runs, rule)
    tables = [_beside(f"{SCORES[key]}, {rule_words(rule)} {UNITS}", chosen, key, ranked=True) for key in SHOWN]
    tables.append(_beside(f"Source-validation OA, {rule_words(rule)} {UNITS}", chosen, "source_val"))
    last, oracle = (runs[runs["rule"] == name] for name in (LAST.name, ORACLE.name))
    of_folder = oracle.set_index("folder")
    gained = last[last["folder"].isin(of_folder.index)]
    gained = gained.assign(kappa=gained["folder"].map(of_folder["kappa"]) - gained["kappa"],
                           planned=gained["folder"].map(of_folder["planned"]))
    if len(gained):
        tables.append(_beside(f"What the target's labels add: κ of the {NOT_HONEST} minus κ of rule {LAST.name} (points, "
                              "mean ± std over n seeds)", gained, "kappa"))
    return tables


def _beside(title: str, runs: pd.DataFrame, key: str, ranked: bool = False) -> Table:
    """A column per pair and the mean over them, for methods that have all; `ranked`: a score of the target, so that the
    best is marked and the constant answer is shown."""
    rows: dict[str, dict[str, Cell]] = {name: {"n": seeds_over_pairs(part)}
                                        for name, part in runs.groupby("name", sort=False)}
    pairs, common = list(runs["pair"].unique()), []
    for pair in pairs:
        parts = dict(list(runs[runs["pair"] == pair].groupby("name", sort=False)))
        marks, seeds = marks_of({name: by_seed(part, key) for name, part in parts.items()}) if ranked else ({}, [])
        common.append(seeds)
        for name, part in parts.items():
            rows[name][pair] = score_cell(part[key], _partial(part), *marks.get(name, ()))
    for row in rows.values():
        if len(pairs) > 1 and all(pair in row for pair in pairs):
            mean = sum(row[pair].numbers["mean"] for pair in pairs) / len(pairs)
            row[MEAN] = Cell(f"{mean:.1f}", numbers={"mean": mean})
    if ranked:
        rows[CONSTANT] = {pair: constant_cell(of_pair, key) for pair, of_pair in runs.groupby("pair", sort=False)}
    return Table(title, "method", rows, notes(runs, common))


def _partial(runs: pd.DataFrame) -> str:
    """A word where runs of this cell are unfinished."""
    n, planned = runs["folder"].nunique(), runs["planned"].iloc[0]
    return "" if n >= planned else f" (n={n}/{planned})"
