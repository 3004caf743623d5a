"""Commands that show what came out of runs: figures, study, tables, report, compare."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

from model.errors import ConfigError
from utils.figures import sheet, study as study_figures
from utils.figures.comparison import plot_ranks
from utils.figures.of_run import draw_run
from utils.figures.of_runs import LAYOUTS, gallery
from utils.report.report import make_report
from utils.run.flags import Parser
from utils.run.folder import finished_runs
from utils.run.selection import EVERY_RULE, LAST, RULES
from utils.tables import collect, layouts, markup, study as study_maker
from utils.tables.compare import Comparison, compare_runs
from utils.tables.runs import named
from utils.text import insert_table, write_text


def figures_parser() -> Parser:
    parser = Parser("figures", figures.__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of them")
    parser.add_argument("--gpu", type=Optional[int], default=None, help="CUDA device number; -1 = CPU; null = as the run")
    parser.add_argument("--data_path", type=Optional[str], default=None, help="folder of the scenes' files, if moved")
    parser.add_argument("--layout", choices=list(LAYOUTS), default=None,
                        help="maps of all methods side by side; their features in the plane; scores over the severity "
                             "of the simulated gap; every seed's score; scores over one setting at a time; source, "
                             "target and the domains that a method makes, in the plane; null = every run's own figures, in its folder")
    parser.add_argument("--rule", choices=[rule.name for rule in EVERY_RULE], default=LAST.name,
                        help="selection rule whose weights and scores are shown; a run's own figures under another one "
                             "than last go into a folder of its name")
    parser.add_argument("--out", type=Optional[Path], default=None,
                        help="folder for the figures of --layout; default: the first folder given")
    return parser


def figures(words: list[str]) -> None:
    """Draw the figures of every finished run below the given folders, or (--layout) figures that compare them."""
    choice = figures_parser().parse_args(words)
    if choice.layout:
        with writing("figures", out := choice.out or Path(choice.runs[0])):
            for name, figure in gallery(choice.layout, choice.runs, choice.rule, choice.gpu, choice.data_path).items():
                sheet.save(figure, out / f"{name}.png")
                print(out / f"{name}.png")
        return
    for run in finished_runs(choice.runs):
        for path in draw_run(run, choice.rule, choice.gpu, choice.data_path, progress=sys.stderr.isatty()):
            print(path)


def study_parser() -> Parser:
    parser = Parser("study", study.__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of them (recorded with --oracle)")
    parser.add_argument("--out", type=Optional[Path], default=None,
                        help="folder for the figures and tables; default: the first folder given")
    parser.add_argument("--insert", type=Optional[Path], default=None,
                        help="Markdown file whose parts between <!-- NAME --> and <!-- /NAME --> the tables replace, "
                             "NAME being FOLDER/scores, FOLDER/selection or FOLDER/norms, FOLDER that of --out")
    return parser


def study(words: list[str]) -> None:
    """Draw and tabulate what training did, from the records of all runs below the given folders, finished or not."""
    choice = study_parser().parse_args(words)
    points = study_maker.read(choice.runs)
    tables, out = study_maker.make_tables(points), choice.out or Path(choice.runs[0])
    with writing("study's tables and figures", out):
        for name, (text, numbers) in tables.items():
            write_text(out / f"{name}.md", f"{text}\n\nMade by `python main.py study {shlex.join(words)}`\n")
            write_text(out / f"{name}.csv", numbers.to_csv(index=False))
        for name, figure in study_figures.draw(points).items():
            sheet.save(figure, out / f"{name}.png")
    if choice.insert:
        study_maker.insert_tables(choice.insert, out.name, {name: text for name, (text, _) in tables.items()})
    print("\n\n".join(text for text, _ in tables.values()))


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


def tables_parser() -> Parser:
    parser = Parser("tables", tables.__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of them")
    parser.add_argument("--layout", choices=list(layouts.LAYOUTS), default="pairs",
                        help="scores per pair and selection rule; of one rule; pairs beside each other, one score a table; per "
                             "class; differences to the method without an ablation or to the recipe; scores over one "
                             "setting; costs; ranks over pairs (with a figure); gradient norms at start and end of "
                             "training")
    parser.add_argument("--rule", choices=[rule.name for rule in EVERY_RULE], default=LAST.name,
                        help="selection rule (layout pairs has all of them)")
    parser.add_argument("--published", action="store_true",
                        help="(pairs) the scenes are the real ones: show published numbers in tables of their own, "
                             "beside our oracle. Never say so of surrogate or simulated scenes")
    parser.add_argument("--out", type=Optional[Path], default=None,
                        help="folder for LAYOUT.md, .csv, .tex and runs.csv; default: the first folder given")
    parser.add_argument("--insert", type=Optional[Path], default=None,
                        help="Markdown file whose part between <!-- NAME --> and <!-- /NAME --> the tables replace, "
                             "NAME being FOLDER/LAYOUT of --out")
    return parser


def tables(words: list[str]) -> None:
    """Print tables of all finished runs below the given folders, and write them as Markdown, CSV and LaTeX."""
    choice = tables_parser().parse_args(words)
    runs = collect.collect(choice.runs)
    made, out = layouts.make(choice.layout, runs, choice.rule, choice.published), choice.out or Path(choice.runs[0])
    with writing("tables", out):
        text = _write_tables(out, choice.layout, made, "tables", words)
        write_text(out / "runs.csv", collect.as_csv(runs))
        if choice.layout == "ranks":
            sheet.save(plot_ranks(layouts.mean_ranks(named(runs), choice.rule)[1], made[0].title), out / "ranks.png")
    if choice.insert:
        insert_table(choice.insert, f"{out.name}/{choice.layout}", text)
    print(text)


def report_parser() -> Parser:
    parser = Parser("report", report.__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of them")
    parser.add_argument("--out", type=Optional[Path], default=None,
                        help="folder for index.html; default: the first folder given")
    parser.add_argument("--rule", choices=[rule.name for rule in RULES], default=LAST.name,
                        help="selection rule of the maps and figures, chosen at first in the tables")
    parser.add_argument("--gpu", type=Optional[int], default=None,
                        help="CUDA device number; -1 = CPU; null = as the run")
    parser.add_argument("--data_path", type=Optional[str], default=None, help="folder of the scenes' files, if moved")
    parser.add_argument("--no_maps", action="store_true",
                        help="leave out the maps, which need the scenes and the networks")
    parser.add_argument("--size_limit", type=float, default=40.0,
                        help="megabytes of the file; the page names at its end what finds no room")
    return parser


def report(words: list[str]) -> None:
    """Write one HTML file of all runs below the given folders: tables, maps, curves, settings, to open in a browser."""
    choice = report_parser().parse_args(words).as_dict()
    out = choice.pop("out") or Path(choice["runs"][0])
    page = make_report(choice.pop("runs"), **choice, command=f"python main.py report {shlex.join(words)}")
    with writing("report", out):
        write_text(out / "index.html", page)
    print(out / "index.html")


def compare_parser() -> Parser:
    parser = Parser("compare", compare.__doc__)
    parser.add_argument("first", help="run folder A")
    parser.add_argument("second", help="run folder B")
    parser.add_argument("--rule", choices=[rule.name for rule in RULES], default=LAST.name, help="selection rule")
    parser.add_class_arguments(Comparison, skip={"rule"})
    parser.add_argument("--out", type=Optional[Path], default=None, help="folder for compare.md, .csv and .tex")
    return parser


def compare(words: list[str]) -> None:
    """Compare two runs on their target's labelled pixels: McNemar's test, intervals by spatial block bootstrap."""
    choice = compare_parser().parse_args(words).as_dict()
    first, second, out = (choice.pop(name) for name in ("first", "second", "out"))
    made = compare_runs(first, second, Comparison(**choice))
    if out:
        with writing("comparison", out):
            _write_tables(out, "compare", made, "compare", words)
    print(markup.as_markdown(made))
