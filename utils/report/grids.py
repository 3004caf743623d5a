"""Tables of the report's page, which its reader sorts and filters: a line per score, class or run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import pandas as pd

from utils.run.metrics import SCORES
from utils.run.selection import NOT_HONEST, ORACLE, RULES
from utils.tables import layouts
from utils.tables.cells import UNITS
from utils.tables.markup import Cell, Table
from utils.tables.runs import RunInfo
from utils.text import MISSING, duration, percent

MOST_ROWS = 20_000         # of a table; a browser takes seconds to sort more
EVERY = ""                 # the choice of a filter that leaves all rows
METHOD = "method"


@dataclass(frozen=True)
class Entry:
    """A cell as the page shows it: `mark` is that of markup.Cell, `value` what the column is sorted by, else the
    text."""

    text: str
    mark: str = ""
    value: float | None = None


@dataclass
class Grid:
    """A table of the page.  filters: column -> the value that is chosen at first; its reader chooses another one."""

    name: str
    title: str
    head: list[str]
    rows: list[list[Entry]]
    filters: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self):
        if len(self.rows) > MOST_ROWS:
            self.notes = [f"The first {MOST_ROWS:,} of {len(self.rows):,} rows; main.py tables has all.", *self.notes]
            self.rows = self.rows[:MOST_ROWS]

    def narrowed(self) -> Grid:
        """Without the filters' columns that hold one value alone, which the title says instead."""
        values = {name: {row[self.head.index(name)].text for row in self.rows} for name in self.filters}
        single = {name: next(iter(found)) for name, found in values.items() if len(found) == 1}
        kept = [place for place, name in enumerate(self.head) if name not in single]
        said = ", ".join(f"{name} {value}" if name != "pair" else value for name, value in single.items())
        return replace(self, title=f"{self.title}: {said}" if said else self.title,
                       head=[self.head[place] for place in kept],
                       rows=[[row[place] for place in kept] for row in self.rows],
                       filters={name: value for name, value in self.filters.items() if name not in single})


def score_grids(runs: pd.DataFrame, rule: str) -> Iterator[Grid]:
    """Scores and accuracies per class of all pairs, methods and honest rules, the rule chosen at first; those of
    `oracle` in tables of their own."""
    honest = [one.name for one in RULES if (runs["rule"] == one.name).any()]
    oracle = [ORACLE.name], ORACLE.name, "-oracle", f", {NOT_HONEST}"
    for rules, chosen, name, said in ((honest, rule, "", ""), oracle):
        if runs["rule"].isin(rules).any():
            yield _scores(f"scores{name}", f"Scores on the target{said} {UNITS}", runs, rules, chosen)
            yield _classes(f"classes{name}", f"Accuracy per class{said} {UNITS}", runs, rules, chosen)


def _scores(name: str, title: str, runs: pd.DataFrame, rules: list[str], chosen: str) -> Grid:
    columns, rows, notes = [*SCORES.values(), "source-validation OA", "n"], [], []
    for pair, rule, table in _tables(runs, rules, layouts.summary):
        rows += [[Entry(pair), Entry(method), *(entry(table.cell(method, column)) for column in columns), Entry(rule)]
                 for method in table.rows]
        notes += table.notes
    return Grid(name, title, ["pair", METHOD, *columns, "rule"], rows,
                {"pair": EVERY, "rule": chosen, METHOD: EVERY}, list(dict.fromkeys(notes)))


def _classes(name: str, title: str, runs: pd.DataFrame, rules: list[str], chosen: str) -> Grid:
    rows, notes = [], []
    for pair, rule, table in _tables(runs, rules, layouts.per_class):
        classes = dict.fromkeys(chain.from_iterable(runs.loc[runs["pair"] == pair, "classes"]))
        rows += [[Entry(pair), Entry(one), Entry(method), entry(cell), Entry(rule)]
                 for one in classes for method, cell in table.rows[one].items()]
        notes += table.notes
    return Grid(name, title, ["pair", "class", METHOD, "accuracy", "rule"], rows,
                {"pair": EVERY, "rule": chosen, "class": EVERY, METHOD: EVERY}, list(dict.fromkeys(notes)))


def _tables(runs: pd.DataFrame, rules: Sequence[str], make: Callable[[pd.DataFrame, str], list[Table]]
            ) -> Iterator[tuple[str, str, Table]]:
    """The one table of a layout that every pair has under every rule, where it has it."""
    for pair, of_pair in runs.groupby("pair", sort=False):
        for rule in rules:
            if (of_pair["rule"] == rule).any():
                yield pair, rule, layouts.ceilings_last(make(of_pair, rule)[0])


def entry(cell: Cell) -> Entry:
    """A table's cell; it is sorted by the first of its numbers."""
    return Entry(cell.text, cell.mark, next(iter(cell.numbers.values()), None))


def of_table(name: str, table: Table) -> Grid:
    """Any table of utils/tables as it is."""
    rows = [[Entry(row), *(entry(table.cell(row, column)) for column in table.columns)] for row in table.rows]
    return Grid(name, table.title, [table.corner, *table.columns], rows, {}, table.notes)


def run_grid(found: list[tuple[RunInfo, dict[str, Any]]], names: dict[str, tuple[str, str]],
             scores: dict[str, dict[str, float]], rule: str) -> Grid:
    """A line per run.  found: each run and its run.json.  names: folder -> pair and method.  scores: folder -> those of
    the target under the rule, where there are some."""
    head = ["pair", METHOD, "status", "seed", "evaluations", *SCORES.values(), "time", "trained on", "folder"]
    rows = []
    for info, about in found:
        seconds, of_run = about.get("seconds"), scores.get(info.folder, {})
        rows.append([*map(Entry, names[info.folder]), Entry(about["status"]), _number(info.seed), _number(info.epochs),
                     *(_share(of_run.get(key)) for key in SCORES),
                     Entry(MISSING) if seconds is None else Entry(duration(seconds), value=seconds),
                     Entry(about.get("device", MISSING)), Entry(info.folder)])
    return Grid("runs", f"Every run (percent, rule {rule})", head, rows,
                {"pair": EVERY, METHOD: EVERY, "status": EVERY})


def data_grid(pairs: dict[str, tuple[list[str], list[int], list[int]]]) -> Grid:
    """Classes and pixels.  pairs: name -> classes, training pixels of each, labelled target pixels of each."""
    rows = [[Entry(pair), Entry(one), *(_number(counts[k]) if k < len(counts) else Entry(MISSING)
                                        for counts in (training, target))]
            for pair, (classes, training, target) in pairs.items() for k, one in enumerate(classes)]
    head = ["pair", "class", "source, trained on", "target, scored on"]
    return Grid("data", "Classes and labelled pixels", head, rows, {"pair": EVERY})


def _number(value: int) -> Entry:
    return Entry(f"{value:,}", value=value)


def _share(value: float | None) -> Entry:
    return Entry(MISSING) if value is None else Entry(percent(100 * value, None), value=value)
