"""From runs to cells: means over seeds, marks for the best and for what is not significantly worse, notes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from model.errors import UserError
from model.methods import REGISTRY, method_class
from utils.run.folder import CEILING, is_ceiling
from utils.run.metrics import SCORES
from utils.run.selection import ORACLE
from utils.tables.markup import BEST, LEVEL, Cell, Table
from utils.tables.statistics import ALPHA, FEWEST_SEEDS, against_best, smallest_p
from utils.text import percent

log = logging.getLogger(__name__)

TARGET_MARKS = {           # what a run takes from the target: column -> mark behind its name, note under a table
    "uses_target": (" †", "† sees unlabelled target patches while it trains."),
    "adapts": (" ‡", "‡ scene statistics at test time: it is applied with the target scene's own.")}
CEILING_NOTE = ("Ceiling: trained on half of the target's own labels, scored on the other half, which is apart by the "
                "patch; what is possible there, not compared.")
UNITS = "(percent, mean ± std over n seeds)"
CONSTANT = "constant answer"
MARKS = ("Bold: the best mean. Underlined: not significantly worse (one-sided Wilcoxon signed-rank tests of the best "
         f"against each other one over common {{}}, Holm's correction, α = {ALPHA:g}).")

Values = Mapping[str, Mapping[int, float]]          # row or column -> seed -> score


def score_table(title: str, runs: pd.DataFrame, by: str, rules_in_title: bool = False) -> Table:
    """A row per value of the column `by`, and for every rule a column of source validation and one per score, with the
    rule before its name where the title does not say it.

    A rule that not all runs of a row were scored by (a refit has the last epoch alone) says how many were; a score that
    no run of a row has shows as missing.
    """
    rows: dict[str, dict[str, Cell]] = {str(name): {"n": seeds_cell(group)}
                                        for name, group in runs.groupby(by, sort=False)}
    common: list[list[int]] = []
    folders = runs.groupby(by)["folder"].nunique()
    for rule, scored in runs.groupby("rule", sort=False):
        parts, prefix = dict(list(scored.groupby(by, sort=False))), "" if rules_in_title else f"{rule}: "
        few = {name: f" (n={len(part)})" if len(part) < folders[name] else ""
               for name, part in parts.items()}
        for name, part in parts.items():
            rows[str(name)][f"{prefix}source-validation OA"] = score_cell(part["source_val"], few[name])
        for key, label in SCORES.items():
            marks, seeds = marks_of({str(name): by_seed(part, key) for name, part in parts.items()})
            common.append(seeds)
            for name, part in parts.items():
                rows[str(name)][f"{prefix}{label}"] = score_cell(part[key], few[name], *marks.get(str(name), ()))
    return Table(title, "method", rows, notes(runs, common))


def add_constant(table: Table, runs: pd.DataFrame) -> None:
    """A last row: what always answering the target's largest class scores."""
    table.rows[CONSTANT] = {column: constant_cell(runs, key) for column in table.columns for key, name in SCORES.items()
                            if column.rpartition(": ")[2] == name}


def by_seed(runs: pd.DataFrame, key: str) -> dict[int, float]:
    return dict(zip(runs["seed"], runs[key]))


def marks_of(values: Values) -> tuple[dict[str, tuple[str, dict[str, float]]], list[int]]:
    """name -> (mark, p and effect sizes of the best one's lead), and the numbers of seeds that the best one shares with
    each other one; nothing of a ceiling, nor of a single name, since there is nothing to compare."""
    values = {name: scores for name, scores in values.items() if not is_ceiling(name)}
    if len(values) < 2:
        return {}, []
    best, tests = against_best(values)
    mean = {name: np.mean(list(scores.values())) for name, scores in values.items()}
    marks = {name: (BEST if np.isclose(mean[name], mean[best], atol=0) else LEVEL if found["p"] > ALPHA else "", found)
             for name, found in tests.items()}
    return marks | {best: (BEST, {})}, [len(values[best].keys() & values[name].keys()) for name in tests]


def score_cell(values: pd.Series, suffix: str = "", mark: str = "", tests: Mapping[str, float] | None = None) -> Cell:
    """Mean ± std of fractions, in percent; tests: p and effect sizes that stand behind the cell."""
    known = values.to_numpy(float)
    if np.isnan(known).any():
        known = known[~np.isnan(known)]
    numbers = {"mean": 100 * known.mean() if len(known) else np.nan, "n": len(values)}
    if len(values) > 1:
        numbers["std"] = 100 * known.std(ddof=1) if len(known) > 1 else np.nan
    return Cell(percent(numbers["mean"], numbers.get("std")) + suffix, mark, numbers | dict(tests or {}))


def seeds_cell(runs: pd.DataFrame) -> Cell:
    """n, as n/planned where runs are unfinished."""
    n, planned = runs["folder"].nunique(), runs["planned"].iloc[0]
    return Cell(str(n) if n == planned else f"{n}/{planned}", numbers={"n": n})


def seeds_over_pairs(runs: pd.DataFrame) -> Cell:
    """n of a method, as a range where its pairs have different ones."""
    counts = runs.groupby("pair")["folder"].nunique()
    low, high = counts.min(), counts.max()
    return Cell(str(low) if low == high else f"{low}–{high}", numbers={"n": low})


def constant_cell(runs: pd.DataFrame, key: str) -> Cell:
    value = runs[f"constant_{key}"].iloc[0]
    return Cell(f"{100 * value:.1f}", numbers={"mean": 100 * value})


def notes(runs: pd.DataFrame, common: list[list[int]], over: str = "seeds") -> list[str]:
    """What stands under a table: what its marks mean, and whether anything can be significant.

    common: per compared row or column, how many seeds, or what else the tests are `over`, the best one shares with each
    other one.
    """
    return target_notes(runs) + ([MARKS.format(over), *power_note(common, 1, over=over)] if any(common) else [])


def target_notes(runs: pd.DataFrame) -> list[str]:
    """What the marks of these runs mean."""
    return [note for column, (_, note) in TARGET_MARKS.items() if runs[column].any()] + \
        backbone_note(runs["method"]) + [CEILING_NOTE] * bool(runs["ceiling"].any())


def backbone_note(names: Iterable[str]) -> list[str]:
    """Which of these, labels or names that begin with one, are another paper's losses on the backbone of S²AMSnet."""
    methods = {name.removeprefix(CEILING).split()[0].rstrip(")") for name in names}
    found = sorted(name for name in methods & REGISTRY.keys() if method_class(name).borrows_backbone)
    note = f"{', '.join(found)}: losses of the method on the backbone of S²AMSnet, not its authors' network."
    return [note] * bool(found)


def notes_of_names(names: Iterable[str]) -> list[str]:
    """What the marks behind these names mean."""
    names = list(names)
    return [note for mark, note in TARGET_MARKS.values() if any(mark in name for name in names)] + \
        backbone_note(names) + [CEILING_NOTE] * any(CEILING in name for name in names)


def power_note(common: list[list[int]], sides: int, what: str = "Marks", over: str = "seeds") -> list[str]:
    """A note, and a warning in the log, where so few seeds (or what else the tests are `over`) can show nothing.

    common: per family of comparisons, the seeds of each one.  sides: of the tests.  what: is tested.
    """
    families = [family for family in common if family]
    if not families:
        return []
    fewest = min(min(family) for family in families)
    if fewest < FEWEST_SEEDS:
        log.warning("With fewer than %d common %s no difference can be significant.", FEWEST_SEEDS, over)
    p, family = min((smallest_p(max(family), len(family), sides), family) for family in families)
    if p > ALPHA:
        return [f"{what}: nothing can be significant here; with {max(family)} common "
                f"{over if max(family) != 1 else over.removesuffix('s')} "
                f"and {len(family)} comparison{'s' * (len(family) > 1)} the smallest p that can be reached is {p:.2g}."]
    if fewest < FEWEST_SEEDS:
        return [f"{what}: nothing can be significant where there are fewer than {FEWEST_SEEDS} common {over}."]
    return []


def of_rule(runs: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The rows of one rule.  Raises UserError if there are none."""
    found = runs[runs["rule"] == rule]
    if found.empty:
        why = "train with --oracle for it" if rule == ORACLE.name else \
            "a refit, and a run that trains on all labels, is scored at its last epoch alone"
        raise UserError(f"None of these runs has a score of the rule '{rule}'; {why}.")
    return found
