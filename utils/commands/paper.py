"""The command paper: the runs of a paper of this field, then its tables and figures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from tqdm import tqdm

from datasets.errors import SceneNotFoundError
from model.errors import UserError
from utils.commands.results import figures, report, tables, writing
from utils.run.build import data_digests
from utils.run.config import TrainConfig
from utils.run.flags import Parser, tidy
from utils.run.folder import ROOT, find_runs
from utils.run.selection import LAST, ORACLE
from utils.sweep.process import Run
from utils.sweep.sweep import SweepConfig, planned_runs, run_planned
from utils.text import write_text

SWEEPS = {name: ROOT / "configs" / "sweep" / f"{name}.yaml" for name in ("table_pairs", "table_ablation", "sensitivity")}
PARTS = (                        # of each rule's folder: runs of which sweep, command, layout
    *(("table_pairs", tables, layout) for layout in ("summary", "overview", "per_class", "ranks")),
    *(("table_pairs", figures, layout) for layout in ("maps", "features", "domains", "seeds")),
    ("table_ablation", tables, "ablation"), ("sensitivity", tables, "sensitivity"), ("sensitivity", figures, "sensitivity"))
COST = ("table_pairs", tables, "cost")      # the same under every rule
LEFT_OUT = "missing.md"          # in the folder of the paper


@dataclass
class PaperConfig:
    """What a paper of this field shows, in one command.

    Args:
        data_path: folder of the scenes' files, for every pair; null = each pair's own.
        config: files of settings over the sweeps' own, such as configs/cpu.yaml.
        pairs: config files of pairs in place of the paper's three.
        seeds: seeds in place of the sweeps' (ten, for the sensitivity five).
        jobs: runs at a time; null = as many as cores and memory serve.
        gpu: CUDA device number for the figures; -1 = CPU; null = as the runs.
        out: folder of the runs, and of the tables and figures (last, oracle) and the page (index.html).
    """

    data_path: Optional[str] = None
    config: Sequence[str] = ()
    pairs: Optional[list[str]] = None
    seeds: Optional[list[int]] = None
    jobs: Optional[int] = None
    gpu: Optional[int] = None
    out: str = "runs/paper"


def paper_parser() -> Parser:
    parser = Parser("paper", paper.__doc__)
    parser.add_argument("--config", action="append", default=[], metavar="FILE",
                        help="settings over the sweeps' own, such as configs/cpu.yaml; may be given several times")
    parser.add_class_arguments(PaperConfig, skip={"config"})
    return parser


def paper(words: list[str]) -> int:
    """Run the comparison, the ablation and the sensitivity sweeps; then write every table and figure, under the rule
    last and, in a folder of its own, under oracle.  Done runs are skipped, broken ones resumed; what is missing is
    listed."""
    parser = paper_parser()
    choice = PaperConfig(**parser.instantiate(parser.parse_args(tidy(words, PaperConfig))).as_dict())
    missing: list[str] = []
    sweeping = SweepConfig(config=choice.config, pairs=choice.pairs, seeds=choice.seeds, jobs=choice.jobs,
                           save_path=choice.out, data_path=choice.data_path)
    planned = planned_runs(list(SWEEPS.values()), sweeping)
    there = {path: _with_data(runs, missing) for path, runs in planned.items()}
    if any(there.values()) and run_planned(there, sweeping):
        missing.append("Runs that failed. The log above names them; the same command tries them again.")
    _draw(choice, missing)
    text = "\n".join(["# What is missing", "", *(f"- {line}" for line in dict.fromkeys(missing or ["Nothing."]))])
    with writing("list of what is missing", Path(choice.out)):
        write_text(Path(choice.out) / LEFT_OUT, text + "\n")
    print(f"\n{text}")
    if (page := Path(choice.out).resolve() / "index.html").exists():
        print(f"\nTables and figures: {choice.out}/{LAST.name}, and chosen on the target's labels {choice.out}/{ORACLE.name}"
              f"\nAll of it on one page: {page}")
    return 1 if missing else 0


def _with_data(runs: list[tuple[Run, TrainConfig]], missing: list[str]) -> list[tuple[Run, TrainConfig]]:
    """The runs that are done or whose scenes are there; a line in `missing` for every pair that is not."""
    found: dict[tuple, str | None] = {}
    kept = []
    for run, config in runs:
        pair = (config.source_name, config.target_name, config.data_path)
        if not run.done and pair not in found:
            try:
                data_digests(config)
                found[pair] = None
            except SceneNotFoundError as error:
                found[pair] = f"{config.source_name} → {config.target_name}: {error}"
        if run.done or found[pair] is None:
            kept.append((run, config))
        else:
            missing.append(found[pair])
    return kept


def _draw(choice: PaperConfig, missing: list[str]) -> None:
    """Every table and figure of PARTS under both rules, and the page; a line in `missing` for what cannot be made."""
    places = [word for name in ("gpu", "data_path") if (value := getattr(choice, name)) is not None
              for word in (f"--{name}", str(value))]
    there = {sweep: bool(find_runs([Path(choice.out) / sweep])) for sweep in SWEEPS}
    missing += [f"Everything of {sweep}: it has no run yet." for sweep, found in there.items() if not found]
    steps = [(rule, *part) for rule, parts in ((LAST.name, (*PARTS, COST)), (ORACLE.name, PARTS)) for part in parts
             if there[part[0]]]
    for rule, sweep, command, layout in tqdm(steps, unit="table or figure", dynamic_ncols=True):
        folder = Path(choice.out) / rule / sweep.removeprefix("table_")
        words = [str(Path(choice.out) / sweep), "--layout", layout, "--rule", rule, "--out", str(folder)]
        with _listed(f"{rule}: {layout} of {sweep}", missing), _unprinted():
            command([*words, *(places if command is figures else [])])
    if any(there.values()):
        with _listed("the page", missing), _unprinted():
            report([*(str(Path(choice.out) / sweep) for sweep, found in there.items() if found), "--out", choice.out,
                    *places])


@contextmanager
def _listed(what: str, missing: list[str]) -> Iterator[None]:
    """A user's error inside becomes a line in `missing`."""
    try:
        yield
    except UserError as error:
        missing.append(f"{what}: {error}")


@contextmanager
def _unprinted() -> Iterator[None]:
    """What the commands inside print goes nowhere: it stands in their files."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield
