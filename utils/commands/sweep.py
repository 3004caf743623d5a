"""The command of many runs: sweep."""

from __future__ import annotations

from pathlib import Path

from utils.run.flags import Parser, tidy
from utils.sweep.cluster import HERE
from utils.sweep.sweep import SweepConfig, run_sweep


def sweep_parser() -> Parser:
    parser = Parser("sweep", sweep.__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="sweep file (configs/sweep), or several")
    parser.add_argument("--config", action="append", default=[], metavar="FILE",
                        help="settings over the sweep file's own config and settings, such as configs/cpu.yaml; may be "
                             "given several times; what a pair or a variant sets stays: it is what the sweep compares")
    parser.add_argument("--ray", nargs="?", const=HERE, default=None, metavar="ADDRESS",
                        help="run on a Ray cluster, several runs at a time: the one at ADDRESS, or this machine alone")
    parser.add_class_arguments(SweepConfig, skip={"config", "ray"})
    return parser


def sweep(words: list[str]) -> int:
    """Run every combination of a sweep file's pairs, variants and seeds; done runs are skipped, broken ones resumed."""
    parser = sweep_parser()
    choice = parser.instantiate(parser.parse_args(tidy(words, SweepConfig))).as_dict()
    return run_sweep(choice.pop("files"), SweepConfig(**choice))
