"""Tables as Markdown, CSV and LaTeX (booktabs)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from utils.text import MISSING, grid, shown

BEST, LEVEL = "best", "not significantly worse"
NUMBERS = ("mean", "std", "n", "p", "r", "d_z", "low", "high")
_MARKDOWN = {"": "{}", BEST: "**{}**", LEVEL: "<ins>{}</ins>"}
_LATEX = {"": "{}", BEST: r"\textbf{{{}}}", LEVEL: r"\underline{{{}}}"}
_SYMBOLS = {"\\": r"\textbackslash{}", "x̂": r"$\hat{x}$", "d_z": "$d_z$", **{sign: f"\\{sign}" for sign in "&%$#_{}"},
            "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", "±": r"$\pm$", "→": r"$\rightarrow$",
            "–": "--", "×": r"$\times$", "·": r"$\cdot$", "−": "$-$", "≤": r"$\leq$", "†": r"$\dagger$", "‡": r"$\ddagger$", "²": "$^2$",
            "κ": r"$\kappa$", "α": r"$\alpha$", "τ": r"$\tau$", "χ": r"$\chi$", "Δ": r"$\Delta$", "∇": r"$\nabla$",
            "‖": r"$\|$"}
_SIGN = re.compile("|".join(map(re.escape, _SYMBOLS)))


@dataclass(frozen=True)
class Cell:
    """What a cell shows, how it is marked, and the numbers behind it (some of NUMBERS, in the table's unit)."""

    text: str
    mark: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Table:
    """A titled table: row name -> column name -> cell; what is not there is missing.  `corner` names the rows."""

    title: str
    corner: str
    rows: dict[str, dict[str, Cell]]
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """In the order in which they first appear."""
        return list(dict.fromkeys(column for row in self.rows.values() for column in row))

    def cell(self, row: str, column: str) -> Cell:
        return self.rows[row].get(column, Cell(MISSING))


def as_markdown(tables: Sequence[Table]) -> str:
    """Title, table and notes of each."""
    parts = []
    for table in tables:
        rows = [[shown(table.corner), *map(shown, table.columns)]]
        rows += [[shown(row), *(_MARKDOWN[cell.mark].format(shown(cell.text)) for _, cell in cells)]
                 for row, cells in _cells(table)]
        parts += [f"**{shown(table.title)}**", grid(rows), *map(shown, table.notes)]
    return "\n\n".join(parts)


def as_csv(tables: Sequence[Table]) -> str:
    """A line per cell that is not missing: table, row, column, the text as shown, the numbers, the mark."""
    lines = [{"table": table.title, "row": row, "column": column, "text": cell.text,
              **{key: cell.numbers.get(key) for key in NUMBERS}, "mark": cell.mark}
             for table in tables for row, cells in _cells(table) for column, cell in cells if cell.text != MISSING]
    return pd.DataFrame(lines).to_csv(index=False, float_format="%.6g", lineterminator="\n")


def as_latex(tables: Sequence[Table]) -> str:
    r"""A table environment each, for \usepackage{booktabs}; columns named "rule: score" are grouped by rule."""
    return "\n\n".join(_latex(table) for table in tables)


def _latex(table: Table) -> str:
    columns = table.columns
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escaped(table.title)}}}",
             rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule"]
    if any(": " in column for column in columns):
        lines += _group_lines(columns)
    lines.append(_line([table.corner, *(column.rpartition(": ")[2] for column in columns)]))
    lines.append(r"\midrule")
    for row, cells in _cells(table):
        texts = [_LATEX[cell.mark].format(escaped(cell.text)) for _, cell in cells]
        lines.append(" & ".join([escaped(row), *texts]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {escaped(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"])


def _group_lines(columns: Sequence[str]) -> list[str]:
    """The heading above the columns 'rule: score', and the rules below it."""
    cells, rules, start = [""], [], 2
    groups: list[tuple[str, int]] = []
    for name in (column.rpartition(": ")[0] for column in columns):
        if groups and name and groups[-1][0] == name:
            groups[-1] = (name, groups[-1][1] + 1)
        else:
            groups.append((name, 1))
    for name, count in groups:
        cells.append(rf"\multicolumn{{{count}}}{{c}}{{{escaped(name)}}}" if name else "")
        rules += [rf"\cmidrule(lr){{{start}-{start + count - 1}}}"] if name else []
        start += count
    return [" & ".join(cells) + r" \\", "".join(rules)]


def _line(texts: Sequence[str]) -> str:
    return " & ".join(map(escaped, texts)) + r" \\"


def _cells(table: Table) -> Iterator[tuple[str, list[tuple[str, Cell]]]]:
    """Every row's name, and its cells under their columns' names."""
    columns = table.columns
    for row in table.rows:
        yield row, [(column, table.cell(row, column)) for column in columns]


def escaped(text: str) -> str:
    """Plain text for LaTeX: its special characters and our symbols as commands."""
    return _SIGN.sub(lambda found: _SYMBOLS[found[0]], text)
