"""Simulated pairs that differ by their drawing alone, as one sample: a method's mean over pairs, tests over pairs."""

from __future__ import annotations

from typing import Any

import pandas as pd

from model.errors import UserError
from utils.run.folder import is_ceiling
from utils.run.metrics import SCORES
from utils.run.selection import LAST, rule_words
from utils.tables.cells import marks_of, notes, of_rule, score_cell
from utils.tables.markup import Cell, Table
from utils.tables.statistics import rank_methods

SHOWN = ("kappa", "aa")
MEAN = "mean"


def drawings(runs: pd.DataFrame, rule: str = LAST.name) -> list[Table]:
    """κ and AA under one rule: a row per method, a column per severity and gap, mean ± std over the drawn pairs (of
    means over seeds).  Raises UserError where no scenes were drawn more than once.  Ceilings stand below, untested."""
    chosen = of_rule(runs, rule)
    chosen = chosen.assign(drawn=[_but_for_the_drawing(*run) for run in zip(chosen["scenes"], chosen["simulation"])])
    several = chosen.groupby("drawn", sort=False)["pair"].nunique() > 1
    chosen = chosen[chosen["drawn"].isin(several[several].index)].sort_values("drawn", kind="stable")
    if chosen.empty:
        raise UserError("These runs have no simulated pair of more than one --simulation.seed.")
    if chosen["scenes"].nunique() == 1:
        chosen["drawn"] = chosen["drawn"].str.removeprefix(f"{chosen['scenes'].iloc[0]}, ")
    return [_table(chosen, key, rule) for key in SHOWN]


def _but_for_the_drawing(scenes: str, simulation: dict[str, Any]) -> str:
    """What pairs have in common that are one sample: scenes, severity, gap."""
    gap = f", {simulation['gap']} gap" if "gap" in simulation else ""
    return f"{scenes}, severity {simulation['severity']:g}{gap}"


def _table(runs: pd.DataFrame, key: str, rule: str) -> Table:
    means = runs.groupby(["drawn", "name", "pair"], sort=False)[key].mean()
    rows: dict[str, dict[str, Cell]] = {name: {} for name in runs["name"].unique()}
    tests, common = [], []
    for column in runs["drawn"].unique():
        of_name = {name: means[column][name].to_dict() for name in means[column].index.unique("name")}
        marks, shared = marks_of(of_name)
        common.append(shared)
        most = max(map(len, of_name.values()))
        for name, scores in of_name.items():
            few = f" (n={len(scores)})" if len(scores) < most else ""
            rows[name][column] = score_cell(pd.Series(scores), few, *marks.get(name, ()))
        tests.append(_friedman(column, of_name, most))
    for row in rows.values():
        if len(tests) > 1 and len(row) == len(tests):
            mean = sum(cell.numbers["mean"] for cell in row.values()) / len(row)
            row[MEAN] = Cell(f"{mean:.1f}", numbers={"mean": mean})
    title = f"{SCORES[key]} over drawn pairs, {rule_words(rule)} (percent, mean ± std over pairs)"
    return Table(title, "method", rows, [*notes(runs, common, "pairs"), *filter(None, tests)])


def _friedman(column: str, of_name: dict[str, dict[str, float]], most: int) -> str:
    """Friedman's test of the methods, ceilings aside, that have all pairs; nothing where they are fewer than three."""
    complete = {name: [scores[pair] for pair in sorted(scores)] for name, scores in of_name.items()
                if len(scores) == most and not is_ceiling(name)}
    if len(complete) < 3:
        return ""
    ranks = rank_methods(complete)
    order = ", ".join(f"{name} {rank:.1f}" for name, rank in sorted(ranks.mean.items(), key=lambda pair: pair[1]))
    return f"{column}: Friedman p = {ranks.p:.2g} over {most} pairs; mean ranks {order}."
