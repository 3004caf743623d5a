"""The command that replays recorded values: parity."""

from __future__ import annotations

import logging
from pathlib import Path

from jsonargparse import ArgumentParser

from utils.released import parity as recorded

log = logging.getLogger(__name__)


def parity(words: list[str]) -> int:
    """Replay values recorded from the released code; exit code 0 only if every limit holds."""
    parser = ArgumentParser(prog="main.py parity", description=parity.__doc__)
    parser.add_argument("file", type=Path, help="recording: NAME.safetensors, with NAME.json beside it")
    lines = []
    for line in recorded.replay(parser.parse_args(words).file):
        lines.append(line)
        print(line, flush=True)
    failed = sum(not line.holds for line in lines)
    print(f"{len(lines) - failed} of {len(lines)} quantities within their limits")
    return 1 if failed else 0
