"""Commands that check this program on this machine: bench, parity."""

from __future__ import annotations

from pathlib import Path

from utils.bench.bench import BenchConfig, run_bench
from utils.released import parity as recorded
from utils.run.config import command_parser, parse_command
from utils.run.flags import Parser


def bench_parser() -> Parser:
    return command_parser(BenchConfig, "bench", BenchConfig.__doc__.splitlines()[0])


def bench(words: list[str]) -> None:
    """Measure, write JSON and table, print the table."""
    run_bench(parse_command(BenchConfig, words, bench_parser()), words)


def parity_parser() -> Parser:
    parser = Parser("parity", parity.__doc__)
    parser.add_argument("file", type=Path, help="recording: NAME.safetensors, with NAME.json beside it")
    return parser


def parity(words: list[str]) -> int:
    """Replay values recorded from the released code; exit code 0 only if every limit holds."""
    lines = []
    for line in recorded.replay(parity_parser().parse_args(words).file):
        lines.append(line)
        print(line, flush=True)
    failed = sum(not line.holds for line in lines)
    print(f"{len(lines) - failed} of {len(lines)} quantities within their limits")
    return 1 if failed else 0
