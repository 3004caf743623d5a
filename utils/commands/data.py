"""The command that fetches scenes: prepare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Optional

from datasets.benchmark import BENCHMARK
from datasets.prepare import prepare as prepare_pair
from datasets.readers import DATA_ROOT
from utils.run.flags import Parser


def prepare_parser() -> Parser:
    parser = Parser("prepare", prepare.__doc__)
    parser.add_argument("pair", choices=["pavia", "hyrank", "houston"])
    parser.add_argument("--from", dest="originals", type=Optional[Path], default=None,
                        help="folder that holds the originals already; nothing is downloaded then")
    parser.add_argument("--out", type=Optional[Path], default=None,
                        help="folder of the benchmark's files; default: ./datasets/<pair>")
    parser.add_argument("--overwrite", action="store_true", help="convert again where the files are there already")
    return parser


def prepare(words: list[str]) -> None:
    """Fetch or convert the public originals of a benchmark pair."""
    choice = prepare_parser().parse_args(words)
    folder = next(scene.folder for scene in BENCHMARK.values() if scene.folder.lower() == choice.pair)
    for path in prepare_pair(choice.pair, choice.out or DATA_ROOT / folder, choice.originals,
                             progress=sys.stderr.isatty(), overwrite=choice.overwrite):
        print(path)
