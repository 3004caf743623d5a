"""The commands that make tables: tables, compare."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

from jsonargparse import ArgumentParser

from utils import figures, layouts, markup, tables as records
from utils.compare import Comparison, compare_runs
from utils.errors import ConfigError
from utils.rank_figure import plot_ranks
from utils.records import write_text
from utils.selection import LAST, ORACLE, RULES


@contextmanager
def writing(what: str, out: Path) -> Iterator[None]:
    """Make the folder; where it or what is written inside cannot be, raise ConfigError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ConfigError(f"The {what} cannot be written to {out} ({error.strerror}). Choose another --out.") from error


def _write_tables(out: Path, name: str, made: list[markup.Table], command: str, words: list[str]) -> str:
    """NAME.md, NAME.csv and NAME.tex in a folder; gives the Markdown, without the line that says how it was made."""
    text = markup.as_markdown(made)
    write_text(out / f"{name}.md", f"{text}\n\nMade by `python main.py {command} {shlex.join(words)}`\n")
    write_text(out / f"{name}.csv", markup.as_csv(made))
    write_text(out / f"{name}.tex", markup.as_latex(made) + "\n")
    return text


def tables(words: list[str]) -> None:
    """Print tables of all finished runs below the given folders, and write them as Markdown, CSV and LaTeX."""
    parser = ArgumentParser(prog="main.py tables", description=tables.__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of them")
    parser.add_argument("--layout", choices=list(layouts.LAYOUTS), default="pairs",
                        help="scores per pair and selection rule; pairs beside each other, one score a table; per "
                             "class; differences to the method without an ablation or to the recipe; scores over one "
                             "setting; costs; ranks over pairs (with a figure); gradient norms at start and end of "
                             "training")
    parser.add_argument("--rule", choices=[rule.name for rule in (*RULES, ORACLE)], default=LAST.name,
                        help="selection rule (layout pairs has all of them)")
    parser.add_argument("--published", action="store_true",
                        help="(pairs) the scenes are the real ones: show published numbers in tables of their own, "
                             "beside our oracle. Never say so of surrogate or simulated scenes")
    parser.add_argument("--out", type=Optional[Path], default=None,
                        help="folder for LAYOUT.md, .csv, .tex and runs.csv; default: the first folder given")
    parser.add_argument("--insert", type=Optional[Path], default=None,
                        help="Markdown file whose part between <!-- NAME --> and <!-- /NAME --> the tables replace, "
                             "NAME being FOLDER/LAYOUT of --out")
    choice = parser.parse_args(words)
    runs = records.collect(choice.runs)
    made, out = layouts.make(choice.layout, runs, choice.rule, choice.published), choice.out or Path(choice.runs[0])
    with writing("tables", out):
        text = _write_tables(out, choice.layout, made, "tables", words)
        write_text(out / "runs.csv", runs.drop(columns=["folder", *records.LISTS]).to_csv(index=False))
        if choice.layout == "ranks":
            figures.save(plot_ranks(layouts.mean_ranks(layouts.prepared(runs), choice.rule)[1], made[0].title),
                         out / "ranks.png")
    if choice.insert:
        records.insert(choice.insert, f"{out.name}/{choice.layout}", text)
    print(text)


def compare(words: list[str]) -> None:
    """Compare two runs on their target's labelled pixels: McNemar's test, intervals by spatial block bootstrap."""
    parser = ArgumentParser(prog="main.py compare", description=compare.__doc__)
    parser.add_argument("first", help="run folder A")
    parser.add_argument("second", help="run folder B")
    parser.add_argument("--rule", choices=[rule.name for rule in RULES], default=LAST.name, help="selection rule")
    parser.add_class_arguments(Comparison, skip={"rule"})
    parser.add_argument("--out", type=Optional[Path], default=None, help="folder for compare.md, .csv and .tex")
    choice = parser.parse_args(words).as_dict()
    first, second, out = (choice.pop(name) for name in ("first", "second", "out"))
    made = compare_runs(first, second, Comparison(**choice))
    if out:
        with writing("comparison", out):
            _write_tables(out, "compare", made, "compare", words)
    print(markup.as_markdown(made))
