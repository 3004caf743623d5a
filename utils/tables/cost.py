"""What a method costs: parameters, operations, time and memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.errors import UserError
from model.methods import Task
from utils.run.config import TrainConfig
from utils.run.estimate import fresh_method, made_up
from utils.run.folder import RunFolder
from utils.run.records import damaged
from utils.run.selection import LAST
from utils.tables.cells import target_notes
from utils.tables.markup import Cell, Table
from utils.tables.runs import RunInfo, read_each, read_info
from utils.text import MISSING

CPU = torch.device("cpu")
_NEEDED = ("seconds", "peak_memory_mib", "device", "threads", "backend", "bands", "classes")      # of run.json
COUNTED = (4, 8, 12)      # batch sizes whose steps are counted; a step's operations are a polynomial of degree 2 in it
NOTE = ("Operations: two per multiply-add of the convolutions and matrix products of a training step in mid-run (forward "
        "and backward) and of a prediction, counted by torch.utils.flop_counter with backend 'reference'; involution, "
        "norms and what scikit-learn does are not in it. A step's are extrapolated from small batches. Patches/s "
        "(inference, patch by patch), seconds (of an epoch's steps; of the whole run, with every evaluation) and peak "
        "memory (of the process on a CPU, of the allocations on a GPU) are means of what the runs recorded, on the "
        "machine in the last column.")


@dataclass(frozen=True)
class Cost:
    """Trainable parameters of all networks and of the classifier alone; operations of a training step and of the
    prediction of one patch, 0 where nothing could be counted."""

    parameters: int
    classifier: int
    step: int
    patch: int


def cost(runs: pd.DataFrame, rule: str = LAST.name) -> list[Table]:
    """Per pair: a row per method, from records; `rule` has no effect.  Raises UserError if no run has them."""
    tables: list[Table] = []
    counted: dict[tuple[str, Task], Cost] = {}
    for pair, of_pair in runs.groupby("pair", sort=False):
        groups = {name: read_each(group["folder"].unique(), _recorded)
                  for name, group in of_pair.groupby("name", sort=False)}
        if rows := {name: _row(group, counted) for name, group in groups.items() if group}:
            tables.append(Table(f"{pair}: cost (n runs)", "method", rows, [*target_notes(of_pair), NOTE]))
    if not tables:
        raise UserError("None of these runs has the records that tell its cost; the warnings say what they lack.")
    return tables


@dataclass(frozen=True)
class _Recorded:
    """What run.json says, what the run is, the seconds of an epoch."""

    about: dict[str, Any]
    info: RunInfo
    seconds: float


def _recorded(run: RunFolder) -> _Recorded:
    about = run.read_run(*_NEEDED)
    if about["bands"] < 1 or not about["classes"]:
        raise damaged(run.run, "it names no bands or no classes")
    return _Recorded(about, read_info(run), seconds_per_epoch(run))


def _row(runs: list[_Recorded], counted: dict[tuple[str, Task], Cost]) -> dict[str, Cell]:
    """The first run stands for all in what is counted; counted: what runs of equal settings cost, added to."""
    about = [run.about for run in runs]
    recorded = {"patches/s": ([one["patches_per_second"] for one in about if "patches_per_second" in one], "{:,.0f}"),
                "s/epoch": ([run.seconds for run in runs], "{:.2f}"),
                "s/run": ([one["seconds"] for one in about], "{:.1f}"),
                "peak memory (MiB)": ([one["peak_memory_mib"] for one in about], "{:.0f}")}
    row = {"n": Cell(str(len(runs)), numbers={"n": len(runs)})} | _counted(runs[0], counted)
    for name, (values, form) in recorded.items():
        row[name] = Cell(form.format(np.mean(values)), numbers={"mean": np.mean(values), "n": len(values)}) if values \
            else Cell(MISSING)                      # not every committed record has the speed of inference
    machines = dict.fromkeys(f"{one['device']}, {one['threads']} thread{'s' * (one['threads'] > 1)}, backend "
                             f"{one['backend']}" for one in about)
    return row | {"trained on": Cell("; ".join(machines))}


def _counted(run: _Recorded, counted: dict[tuple[str, Task], Cost]) -> dict[str, Cell]:
    config, about = run.info.config, run.about
    key = run.info.setting, Task(about["bands"], len(about["classes"]), config.patch_size)
    if key not in counted:
        counted[key] = count(config, key[1])
    found = counted[key]
    return {"parameters": _number(found.parameters, "{:,.0f}"),
            "of the classifier": _number(found.classifier, "{:,.0f}"),
            "batch": _number(config.batch_size, "{:.0f}"), "GFLOP/step": _number(found.step / 1e9, "{:.3g}"),
            "MFLOP/patch": _number(found.patch / 1e6, "{:.3g}")}


def _number(value: float, form: str) -> Cell:
    return Cell(form.format(value), numbers={"mean": value}) if value else Cell(MISSING)


def seconds_per_epoch(run: RunFolder) -> float:
    """From the records of epochs, one of which may stand for several (eval_interval)."""
    records = run.records(run.epochs, "seconds")
    if not records or records[-1]["epoch"] < 1:
        raise damaged(run.epochs, "it holds no epoch")
    return sum(record["seconds"] for record in records) / records[-1]["epoch"]


def count(config: TrainConfig, task: Task) -> Cost:
    """Parameters and operations of a freshly built method with these settings."""
    plain = replace(config, backend="reference", precision="float32")
    found = []
    for n in COUNTED:
        method = fresh_method(plain, task, CPU)
        with FlopCounterMode(display=False) as counter:
            method.update(*made_up(task, n, CPU))
        found.append(counter.get_total_flops())
    with FlopCounterMode(display=False) as counter:
        method.predict(made_up(task, COUNTED[0], CPU)[0])
    trainable = [sum(p.numel() for p in network.parameters() if p.requires_grad)
                 for network in (method, method.discriminator)]
    return Cost(*trainable, extrapolated(COUNTED, found, config.batch_size), counter.get_total_flops() // COUNTED[0])


def extrapolated(at: tuple[int, ...], values: list[int], n: int) -> int:
    """The value at n of the polynomial through (at, values), by Lagrange's formula."""
    total = Fraction(0)
    for i, value in zip(at, values):
        term = Fraction(value)
        for j in at:
            if j != i:
                term *= Fraction(n - j, i - j)
        total += term
    return round(total)
