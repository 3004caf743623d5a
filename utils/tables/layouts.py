"""Layouts: finished runs (`collect`, `named`) -> tables."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from model.errors import UserError
from utils.run.folder import RunFolder, is_ceiling
from utils.run.metrics import SCORES
from utils.run.selection import LAST, NOT_HONEST, ORACLE, rule_words
from utils.tables.cells import (CONSTANT, UNITS, add_constant, by_seed, constant_cell, marks_of, notes, of_rule,
                                score_cell, score_table, seeds_cell, seeds_over_pairs, target_notes)
from utils.tables.cost import cost
from utils.tables.differences import ablation, switches
from utils.tables.drawings import drawings
from utils.tables.markup import Cell, Table
from utils.tables.published import published_tables
from utils.tables.runs import differing_settings, named, named_settings, read_each
from utils.tables.statistics import ALPHA, FEWEST_SEEDS, Ranks, rank_methods
from utils.text import MISSING

log = logging.getLogger(__name__)

CLASS_SCORES = {SCORES[key]: key for key in ("oa", "aa", "kappa")}      # below the classes
MEAN = "mean over pairs"
SHOWN = ("kappa", "aa")
BASE = "erm"
NOT_SET = {"samples_per_class": 0}       # no number of this setting, but that another one holds
SHARE_NOTE = (f"0: as {BASE}; 100: as the ceiling (the highest, where there are several), which is scored on half of "
              "the labelled target pixels. Missing where the ceiling is not above.")


def pairs(runs: pd.DataFrame, rule: str = LAST.name) -> list[Table]:
    """Per pair a table with all honest rules side by side and the constant answer below, and, where it was asked for,
    one of its own for `oracle`; `rule` has no effect."""
    tables = []
    for pair, of_pair in runs.groupby("pair", sort=False):
        honest = of_pair[of_pair["rule"] != ORACLE.name]
        rules = ", ".join(honest["rule"].unique())
        table = score_table(f"{pair}, rules {rules} {UNITS}", honest, "name")
        add_constant(table, of_pair)
        tables.append(table)
        oracle = of_pair[of_pair["rule"] == ORACLE.name]
        if len(oracle):
            tables.append(score_table(f"{pair}, {NOT_HONEST} {UNITS}", oracle, "name"))
    return tables


def summary(runs: pd.DataFrame, rule: str = LAST.name) -> list[Table]:
    """Per pair one table of one rule: source validation and scores of every method, the constant answer below."""
    tables = []
    for pair, of_pair in of_rule(runs, rule).groupby("pair", sort=False):
        table = score_table(f"{pair}, {rule_words(rule)} {UNITS}", of_pair, "name", rules_in_title=True)
        add_constant(table, of_pair)
        tables.append(table)
    return tables


def overview(runs: pd.DataFrame, rule: str = LAST.name) -> list[Table]:
    """κ, AA and source-validation OA under one rule: a row per method, a column per pair.  Where there are ceilings,
    also each method's share of the way to them; where runs have an oracle, how much choosing the epoch on the target's
    labels adds to κ."""
    chosen = of_rule(runs, rule)
    tables = [_beside(f"{SCORES[key]}, {rule_words(rule)} {UNITS}", chosen, key, ranked=True) for key in SHOWN]
    tables.append(_beside(f"Source-validation OA, {rule_words(rule)} {UNITS}", chosen, "source_val"))
    if chosen["ceiling"].any():
        tables.append(ceiling_shares(chosen, rule))
    last, oracle = (runs[(runs["rule"] == name) & ~runs["ceiling"]] for name in (LAST.name, ORACLE.name))
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


def ceiling_shares(chosen: pd.DataFrame, rule: str) -> Table:
    """How far each method gets on each pair from plain `erm` to the ceiling: (κ − κ_erm) / (κ_ceiling − κ_erm) of means
    over seeds; missing where there is no one row of `erm`, or no ceiling above it."""
    means = chosen.groupby(["pair", "name"], sort=False)["kappa"].mean()
    honest = chosen[~chosen["ceiling"] & (chosen["method"] != BASE)]
    rows = {name: {"n": seeds_over_pairs(part)} for name, part in honest.groupby("name", sort=False)}
    for pair, of_pair in chosen.groupby("pair", sort=False):
        base, top = (of_pair.loc[which, "name"].unique() for which in (of_pair["method"] == BASE, of_pair["ceiling"]))
        low = means[pair, base[0]] if len(base) == 1 else np.nan
        way = max((means[pair, name] for name in top), default=np.nan) - low
        for name in honest.loc[honest["pair"] == pair, "name"].unique():
            share = 100 * (means[pair, name] - low) / way if way > 0 else np.nan
            rows[name][pair] = Cell(MISSING) if np.isnan(share) else Cell(f"{share:.0f}", numbers={"mean": share})
    return Table(f"Share of the way from {BASE} to the ceiling, κ, {rule_words(rule)} (percent, of means over n seeds)",
                 "method", rows, [*target_notes(honest), SHARE_NOTE])


def _partial(runs: pd.DataFrame) -> str:
    """A word where runs of this cell are unfinished."""
    n, planned = runs["folder"].nunique(), runs["planned"].iloc[0]
    return "" if n >= planned else f" (n={n}/{planned})"


def per_class(runs: pd.DataFrame, rule: str = LAST.name) -> list[Table]:
    """Per pair: rows the classes and OA, AA, κ, columns the methods and the constant answer."""
    tables = []
    for pair, of_pair in of_rule(runs, rule).groupby("pair", sort=False):
        parts, rows, common = dict(list(of_pair.groupby("name", sort=False))), {}, []
        constant = _class_scores(of_pair, "constant_").iloc[0]
        scores = {name: _class_scores(part).set_axis(part["seed"]) for name, part in parts.items()}
        for row in constant.index:
            rows[row], seeds = _class_row({name: of_name[row] for name, of_name in scores.items()}, constant[row])
            common.append(seeds)
        rows["n"] = {name: seeds_cell(part) for name, part in parts.items()}
        tables.append(Table(f"{pair}: accuracy per class, {rule_words(rule)} {UNITS}",
                            "class", rows, notes(of_pair, common)))
    return tables


def _class_scores(runs: pd.DataFrame, prefix: str = "") -> pd.DataFrame:
    """A row per run, a column per class and per score of CLASS_SCORES; NaN for a class that the target lacks."""
    classes = pd.DataFrame(runs[f"{prefix}per_class"].to_list(), runs.index, runs["classes"].iloc[0], dtype=float)
    return classes.assign(**{label: runs[prefix + key] for label, key in CLASS_SCORES.items()})


def _class_row(values: dict[str, pd.Series], constant: float) -> tuple[dict[str, Cell], list[int]]:
    """The cells of one class or score, from scores indexed by seed; a class that the target lacks is missing."""
    if np.isnan(constant):
        return {name: Cell(MISSING) for name in (*values, CONSTANT)}, []
    marks, seeds = marks_of({name: dict(of_name.items()) for name, of_name in values.items()})
    cells = {name: score_cell(of_name, "", *marks.get(name, ())) for name, of_name in values.items()}
    return cells | {CONSTANT: Cell(f"{100 * constant:.1f}", numbers={"mean": 100 * constant})}, seeds


def sensitivity(runs: pd.DataFrame, rule: str = LAST.name) -> list[Table]:
    """Per pair, method and number (or list) among the settings in which otherwise equal runs differ: a row per value."""
    tables = []
    for name, group in alike(of_rule(runs, rule)):
        for pair, of_pair in group.groupby("pair", sort=False):
            for title, of_title in of_pair.groupby("title", sort=False):
                of_title = of_title.sort_values(["value", "seed"], kind="stable")
                table = score_table(f"{pair}: {title} over {name}, {rule_words(rule)} {UNITS}", of_title, "value",
                                    rules_in_title=True)
                table.corner = name
                add_constant(table, of_title)
                tables.append(table)
    if not tables:
        raise UserError("No two of these runs differ in one setting alone that is a number or a list.")
    return tables


def alike(runs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """For every setting that is a number or a list: the runs of groups that differ in it alone, with its value (a list as
    text) and the group's title in columns `value` and `title`."""
    texts = {text: json.loads(text) for text in runs["setting"].unique()}
    for name in differing_settings(list(texts.values())):
        values = {text: one.get(name) for text, one in texts.items()}
        if not all(isinstance(value, (int, float, list)) and not isinstance(value, bool) for value in values.values()):
            continue
        rest = {text: json.dumps(one | {name: None}, sort_keys=True) for text, one in texts.items()}
        shown = {text: ",".join(map(str, value)) if isinstance(value, list) else value for text, value in values.items()}
        label = rf" {re.escape(name)}=\S+"                 # of a switch, which a run's label names
        found = runs.assign(value=runs["setting"].map(shown), setting=runs["setting"].map(rest),
                            method=runs["method"].str.replace(label, "", regex=True))
        found = found[found["value"] != NOT_SET.get(name)]
        found = found[found.groupby(["pair", "method", "setting"])["value"].transform("nunique") > 1]
        if len(found):
            yield name, found.assign(title=named_settings(found))


def mean_ranks(runs: pd.DataFrame, rule: str = LAST.name) -> tuple[Table, Ranks]:
    """Ranks of the methods by mean κ over the pairs that all of them were run on.  Raises UserError if fewer than
    three methods share at least two pairs.  Ceilings stand below, without a rank."""
    every = of_rule(runs, rule)
    chosen = every[~every["ceiling"]]
    means = chosen.groupby(["name", "pair"], sort=False)["kappa"].mean().unstack("pair")
    complete = means.dropna()
    for name in means.index.difference(complete.index):
        log.warning("%s is left out: it was not run on every pair.", name)
    if len(complete) < 3 or complete.shape[1] < 2:
        raise UserError("Ranks need at least three methods with finished runs on the same two or more pairs.")
    ranks = rank_methods({name: row.to_list() for name, row in complete.iterrows()})
    rows = {name: {"n": seeds_over_pairs(chosen[chosen["name"] == name]),
                   "mean rank": Cell(f"{ranks.mean[name]:.2f}", numbers={"mean": ranks.mean[name], "n": ranks.n}),
                   **{pair: Cell(f"{100 * value:.1f}", numbers={"mean": 100 * value})
                      for pair, value in complete.loc[name].items()}}
            for name in sorted(ranks.mean, key=ranks.mean.get)}
    found = target_notes(runs)
    found.append(f"Friedman p = {ranks.p:.2g} over N = {ranks.n} pairs; mean ranks that differ by less than "
                 f"{ranks.critical_difference:.2f} are not told apart (Nemenyi, α = {ALPHA:g}).")
    if min(row["n"].numbers["n"] for row in rows.values()) < FEWEST_SEEDS:
        found.append(f"Some means are those of fewer than {FEWEST_SEEDS} seeds; their ranks may be chance.")
    for name, part in every[every["ceiling"]].groupby("name", sort=False):
        rows[name] = {"n": seeds_over_pairs(part)} | {
            pair: Cell(f"{value:.1f}", numbers={"mean": value})
            for pair, value in (100 * part.groupby("pair", sort=False)["kappa"].mean()).items() if pair in complete}
    title = f"Mean ranks over pairs by κ, {rule_words(rule)} (κ in percent, means over n seeds)"
    return Table(title, "method", rows, found), ranks


def ranks(runs: pd.DataFrame, rule: str = LAST.name) -> list[Table]:
    """The table of `mean_ranks`."""
    return [mean_ranks(runs, rule)[0]]


def gradients(runs: pd.DataFrame, rule: str = LAST.name) -> list[Table]:
    """The table of `gradient_table`; `rule` has no effect."""
    rows = {name: {column: Cell(text) for column, text in row.items()}
            for name, row in gradient_table(runs).to_dict(orient="index").items()}
    return [Table("Gradients on the generators, geometric means over n seeds", "method", rows)]


def gradient_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Norms of the gradients that the MI and the consistency term give the generators (geometric means over runs), and
    the generated domains' distance from the source (means), at the start and at the end of training."""
    rows = []
    several = runs["pair"].nunique() > 1
    for (pair, name, folder), _ in runs.groupby(["pair", "name", "folder"], sort=False):
        name = f"{pair}, {name}" if several else name
        for records in filter(None, read_each([folder], _gradients)):
            rows += [{"name": name, "when": when, **record} for when, record in (("start", records[0]),
                                                                                ("end", records[-1]))]
    if not rows:
        raise UserError("None of these runs has gradient norms (only S²AMSnet records them).")
    table = {}
    for (name, when), of_name in pd.DataFrame(rows).groupby(["name", "when"], sort=False):
        mean = of_name.drop(columns=["name", "when", "epoch"]).mean()
        mi, consistency = (np.exp(np.log(of_name[key]).mean()) if key in of_name else np.nan
                           for key in ("gradient_mi", "gradient_consistency_max"))
        table[f"{name}, {when}"] = {
            "n": str(len(of_name)), "‖∇MI‖": f"{mi:.1e}", "‖∇C‖": f"{consistency:.1e}",
            "ratio": f"{mi / consistency:.1e}", "rms x̂ / rms x (a, b)": _two(mean, "rms_ratio", "{:.2f}"),
            "cos(x̂, x) (a, b)": _two(mean, "cosine", "{:.2f}")}
    return pd.DataFrame.from_dict(table, orient="index").replace({"nan": MISSING})


def _gradients(run: RunFolder) -> list[dict[str, Any]]:
    """The records that hold norms of gradients."""
    return [record for record in run.records(run.diagnostics) if any(key.startswith("gradient") for key in record)]


def _two(values: pd.Series, name: str, form: str) -> str:
    return ", ".join(form.format(values[key]) for key in (f"{name}_a", f"{name}_b") if key in values)


LAYOUTS: dict[str, Callable[[pd.DataFrame, str], list[Table]]] = {
    "pairs": pairs, "summary": summary, "overview": overview, "per_class": per_class, "ablation": ablation,
    "switches": switches, "sensitivity": sensitivity, "cost": cost, "ranks": ranks, "drawings": drawings,
    "gradients": gradients}


def make(layout: str, runs: pd.DataFrame, rule: str = LAST.name, published: bool = False) -> list[Table]:
    """The tables of one layout from the frame of `collect`; `published`: the user says that scenes are real."""
    runs = named(runs)
    found = LAYOUTS[layout](runs, rule)
    found = found + published_tables(runs, published) if layout == "pairs" else found
    return [ceilings_last(table) for table in found]


def ceilings_last(table: Table) -> Table:
    """The table with the rows and columns of ceilings at its end."""
    return replace(table, rows=_ordered({row: _ordered(table.rows[row]) for row in table.rows}))


def _ordered(of_names: dict[str, Any]) -> dict[str, Any]:
    """Rows, or the cells of a row, with those of ceilings at the end."""
    return {name: of_names[name] for name in sorted(of_names, key=is_ceiling)}
