"""Numbers as text, Markdown tables, files replaced atomically."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from model.errors import UserError
from model.files import replacing

MISSING = "–"
UNSEEN = "\N{REPLACEMENT CHARACTER}"         # in place of a control character


def write_text(path: Path, text: str) -> None:
    """Replace a file's text atomically."""
    with replacing(path) as file:
        file.write(text.encode())


def duration(seconds: float) -> str:
    """18 ms, 2.4 s, 45 s, 4 min 10 s, 3 h 12 min, 5 d 3 h."""
    if seconds < 0.0995:
        return f"{max(1, round(1e3 * seconds))} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    for large, unit, small, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        whole, rest = divmod(round(seconds / small), large // small)
        if whole:
            return f"{whole} {unit} {rest} {part}"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """2.1 GB, 35 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 9.5e7 else f"{count / 1e6:.0f} MB"


def mean_std(values: pd.Series) -> str:
    """Percent, mean ± sample standard deviation (ddof 1); a single value stands alone."""
    return percent(100 * values.mean(), 100 * values.std(ddof=1) if len(values) > 1 else None)


def percent(mean: float, std: float | None) -> str:
    """61.2 ± 0.5; a mean without a deviation stands alone, one that is not known is missing."""
    if math.isnan(mean):
        return MISSING
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"


def markdown(table: pd.DataFrame, index: str) -> str:
    """A table of texts as Markdown (`grid`), each shown as it is."""
    rows = [[index, *table.columns], *([name, *row] for name, row in zip(table.index, table.values))]
    return grid([[shown(str(cell)) for cell in row] for row in rows])


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Rows of Markdown as a table, the first its head; columns padded so that it also reads well in a terminal."""
    rows = [[MISSING if cell == "nan" else cell for cell in row] for row in rows]
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, width)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in width) + "|")
    return "\n".join(lines)


def shown(text: str) -> str:
    """Text that Markdown and a terminal show as it is: no cell, element, comment or line of its own."""
    plain = printable(" ".join(text.splitlines()))
    plain = plain.replace("<", "&lt;").replace(">", "&gt;").replace("](", "]\\(")          # no element, no link
    return plain.replace("\\|", "\\\\|").replace("|", "\\|")


def printable(text: str) -> str:
    """Text without control characters and halves of surrogate pairs, which no UTF-8 file holds."""
    return "".join(UNSEEN if unicodedata.category(sign) in ("Cc", "Cs") else sign for sign in text)


def insert_table(path: Path, name: str, text: str) -> None:
    """Replace what stands between <!-- NAME --> and <!-- /NAME --> in a file.  Raises UserError if they are missing."""
    before, _, after = _parts(path, name)
    write_text(path, f"{before}\n{text}\n{after}")


def text_between(path: Path, name: str) -> str:
    """What stands between <!-- NAME --> and <!-- /NAME --> in a file.  Raises UserError if they are missing."""
    return _parts(path, name)[1].strip("\n")


def _parts(path: Path, name: str) -> tuple[str, str, str]:
    """A file's text up to the first mark, between the marks, and from the second one on."""
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text.") from error
    before, begin, rest = content.partition(f"<!-- {name} -->")
    between, end, after = rest.partition(f"<!-- /{name} -->")
    if not (begin and end):
        raise UserError(f"{path} has no part between <!-- {name} --> and <!-- /{name} -->.")
    return before + begin, between, end + after
