"""What a part of S²AMSnet, or a switch of its recipe, does: differences to the same method with nothing changed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from model.errors import UserError
from model.settings import recipe_switches
from utils.run.folder import ceiling_label, method_label
from utils.run.metrics import SCORES
from utils.run.selection import LAST, rule_words
from utils.tables.cells import UNITS, add_constant, by_seed, of_rule, power_note, score_table
from utils.tables.markup import Cell, Table
from utils.tables.runs import named_settings
from utils.tables.statistics import cohen_dz, differences, holm, rank_biserial, signed_ranks
from utils.text import MISSING

log = logging.getLogger(__name__)

TESTED = "kappa"
NOTE = ("Δ: difference to the first row, percentage points, mean ± std over common seeds. p, r and d_z are those of "
        "Δ κ: two-sided Wilcoxon signed-rank test with Holm's correction over the rows, matched-pairs rank-biserial "
        "correlation, Cohen's d_z.")

Split = Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]     # settings -> what is changed ('' = nothing), rest


def ablation(runs: pd.DataFrame, rule: str = LAST.name) -> list[Table]:
    """Per pair and method: the method, and below it what taking out each part changes."""
    return _tables(runs, rule, "without", "– (the method)", _ablation)


def switches(runs: pd.DataFrame, rule: str = LAST.name) -> list[Table]:
    """Per pair and recipe: the recipe, and below it what flipping each switch changes."""
    return _tables(runs, rule, "switch", "– (the recipe)", _switches)


def _ablation(settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    rest = {name: value for name, value in settings.items() if name != "ablate"}
    return ", ".join(part.removeprefix("no_") for part in settings["ablate"]), rest


def _switches(settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    usual = recipe_switches(settings["recipe"])
    flipped = [f"{name}={settings[name]}" for name, value in usual.items() if settings[name] != value]
    return ", ".join(flipped), {name: value for name, value in settings.items() if name not in usual}


def _tables(runs: pd.DataFrame, rule: str, corner: str, unchanged: str, split: Split) -> list[Table]:
    """A table per pair and group of runs that differ in what `split` takes out of their settings."""
    runs, tables = _grouped(of_rule(runs, rule), split), []
    for (pair, title), group in runs.groupby(["pair", "title"], sort=False):
        if not group["change"].any():
            continue
        if group["change"].all():
            log.warning("%s: there is no run of %s without a change to compare with.", pair, title)
        rows = group.sort_values("change", key=lambda change: change != "", kind="stable")
        table = score_table(f"{pair}: {title}, {rule_words(rule)} {UNITS}", rows.replace({"change": {"": unchanged}}),
                            "change", rules_in_title=True)
        table.corner = corner
        add_constant(table, group)
        _add_differences(table, {change: part for change, part in rows.groupby("change", sort=False)})
        tables.append(table)
    if not tables:
        raise UserError("None of these runs takes anything out or flips anything: configs/sweep has sweeps that do.")
    return tables


def _grouped(runs: pd.DataFrame, split: Split) -> pd.DataFrame:
    """The runs with columns change and title, the title being the label of those without a change."""
    settings = [json.loads(text) for text in runs["setting"]]
    parts = [split(one) for one in settings]
    runs = runs.assign(change=[change for change, _ in parts],
                       setting=[json.dumps(rest, sort_keys=True) for _, rest in parts])
    unchanged = runs[runs["change"] == ""]
    labels = dict(zip(zip(unchanged["pair"], unchanged["setting"]), unchanged["method"]))
    usual = [method_label(one["method"], one["recipe"]) for one in settings]
    usual = [ceiling_label(label) if ceiling else label for label, ceiling in zip(usual, runs["ceiling"])]
    runs["method"] = [labels.get(key, label) for key, label in zip(zip(runs["pair"], runs["setting"]), usual)]
    return runs.assign(title=named_settings(runs))


def _add_differences(table: Table, parts: dict[str, pd.DataFrame]) -> None:
    """Columns Δ, p and effect sizes of every part against the one named ''."""
    base = parts.pop("", None)
    if base is None:
        return
    tested = {name: differences(by_seed(part, TESTED), by_seed(base, TESTED)) for name, part in parts.items()}
    corrected = dict(zip(tested, holm(signed_ranks(list(tested.values())))))
    for name, part in parts.items():
        for key, label in SCORES.items():
            table.rows[name][f"Δ {label}"] = _difference(differences(by_seed(part, key), by_seed(base, key)), len(part))
        found = tested[name]
        if len(found):
            effects = {"p": (corrected[name], "{:.3f}"), "r": (rank_biserial(found), "{:+.2f}"),
                       "d_z": (cohen_dz(found), "{:+.2f}")}
            table.rows[name] |= {key: _number(key, value, form) for key, (value, form) in effects.items()}
    table.notes += [NOTE, *power_note([[len(found) for found in tested.values()]], 2, "Δ κ")]


def _difference(found: np.ndarray, n: int) -> Cell:
    """Mean ± std in percentage points, with the number of common seeds where it is not n."""
    if not len(found):
        return Cell(MISSING)
    numbers, text = {"mean": 100 * found.mean(), "n": len(found)}, f"{100 * found.mean():+.1f}"
    if len(found) > 1:
        numbers["std"] = 100 * found.std(ddof=1)
        text += f" ± {numbers['std']:.1f}"
    return Cell(text + (f" (n={len(found)})" if len(found) < n else ""), numbers=numbers)


def _number(key: str, value: float, form: str) -> Cell:
    return Cell(MISSING) if np.isnan(value) else Cell(form.format(value), numbers={key: value})
