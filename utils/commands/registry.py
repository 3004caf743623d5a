"""The commands by name."""

from __future__ import annotations

from collections.abc import Callable

from utils.bench.bench import bench
from utils.commands.apply import evaluate, export, predict
from utils.commands.checks import parity
from utils.commands.data import prepare
from utils.commands.rescore import refit_statistics, rescore
from utils.commands.results import compare, draw, study, tables
from utils.commands.sweep import sweep

TABLE: dict[str, Callable[[list[str]], int | None]] = {
    "evaluate": evaluate, "predict": predict, "export": export, "figures": draw, "parity": parity, "bench": bench,
    "sweep": sweep, "tables": tables, "compare": compare, "study": study, "transfer": rescore,
    "refit": refit_statistics, "prepare": prepare}
