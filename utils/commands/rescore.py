"""Commands that score finished runs again without training: transfer, refit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Optional

from model.errors import UserError
from utils.run.flags import Parser
from utils.run.folder import RunFolder, finished_runs
from utils.trained import rescore

log = logging.getLogger(__name__)


def transfer_parser() -> Parser:
    parser = Parser("transfer", transfer.__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of them")
    parser.add_argument("--target_name", type=Optional[str], default=None, help="the other scene")
    parser.add_argument("--severity", type=Optional[float], default=None, help="another severity of the simulated gap")
    parser.add_argument("--data_path", type=Optional[str], default=None, help="folder of the scenes' files, if moved")
    return parser


def transfer(words: list[str]) -> None:
    """Score finished runs on another target, each into a run folder of its own beside them, without training again."""
    choice = transfer_parser().parse_args(words)
    _derive(rescore.TRANSFER, choice.runs, lambda run: rescore.transfer(run, choice.target_name, choice.severity, choice.data_path))


def refit_parser() -> Parser:
    parser = Parser("refit", refit.__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of them")
    parser.add_argument("--save_path", type=Optional[str], default=None, help="folder of the new ones; default: beside")
    parser.add_argument("--data_path", type=Optional[str], default=None, help="folder of the scenes' files, if moved")
    return parser


def refit(words: list[str]) -> None:
    """Score the last epoch of finished runs with BatchNorm's statistics re-estimated on clean source patches
    (batchnorm_statistics: source), each into a run folder of its own, without training again."""
    choice = refit_parser().parse_args(words)
    _derive(rescore.REFIT, choice.runs, lambda run: rescore.refit(run, choice.save_path, choice.data_path))


def _derive(command: str, folders: list[str], make: Callable[[RunFolder], RunFolder | None]) -> None:
    """Make a run folder of every finished run below the folders but those that the command itself made.  One that can't
    be made does not stop the others; raises UserError at the end."""
    runs = [run for run in finished_runs(folders) if rescore.derived_by(run) != command]
    if not runs:
        raise UserError(f"No finished run below {', '.join(folders)}.")
    failed = 0
    for run in runs:
        try:
            made = make(run)
            print(made.path if made else f"{run.path}: scored there already", flush=True)
        except UserError as error:
            failed += 1
            log.warning("%s: %s", run.path, error)
    if failed:
        raise UserError(f"{failed} of {len(runs)} runs could not be scored; the reasons stand above.")
