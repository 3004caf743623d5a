"""The commands by name: their help, README's table and the tests of every command are made from this list.

A command's module is loaded when the command is asked for.  Beside its function NAME(words) stands NAME_parser().
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from model.errors import ConfigError, nearest
from utils.run.flags import Parser

TRAIN = "train"                         # the command where none is named; main.py has it


@dataclass(frozen=True)
class Command:
    """A command: `module` holds its function and its parser; `arguments` and `summary` are what help and README say."""

    name: str
    module: str
    arguments: str
    summary: str

    def load(self) -> Callable[[list[str]], int | None]:
        """The function that runs the command with its words; its result is the exit code, None = 0."""
        return getattr(import_module(self.module), self.name)

    def parser(self) -> Parser:
        return getattr(import_module(self.module), f"{self.name}_parser")()


COMMANDS = {command.name: command for command in (
    Command(TRAIN, "utils.run.config", "--source_name SCENE --target_name SCENE",
            "train on one labelled scene, select without the target, score on the target"),
    Command("evaluate", "utils.commands.apply", "--run RUN [--scene SCENE]",
            "score a run's weights on a labelled scene"),
    Command("predict", "utils.commands.apply", "--run RUN --scene SCENE",
            "map a whole scene: a GeoTIFF and a picture"),
    Command("trust", "utils.commands.trust", "--run RUN [--scene SCENE]",
            "how far a scene is from what a run knows, and what its probabilities are worth"),
    Command("export", "utils.commands.export", "--run RUN [--format FORMAT]",
            "write a run's classifier for other programs: ONNX, PyTorch, the released code"),
    Command("figures", "utils.commands.results", "RUN ...",
            "draw a run's losses, spectra, patches, maps; with --layout, methods beside each other"),
    Command("tables", "utils.commands.results", "RUN ...",
            "mean ± std over seeds as Markdown, CSV and LaTeX"),
    Command("report", "utils.commands.results", "RUN ... --out FOLDER",
            "one HTML file of any runs: tables to sort, maps under a slider, curves, settings"),
    Command("compare", "utils.commands.results", "RUN RUN",
            "two maps of one target: McNemar's test and block-bootstrap intervals"),
    Command("study", "utils.commands.results", "RUN ...",
            "what training did over many runs: curves, and how well each score selects"),
    Command("sweep", "utils.commands.sweep", "FILE ...",
            "many runs: pairs × variants × seeds; done ones are skipped, broken ones resumed"),
    Command("paper", "utils.commands.paper", "[--data_path FOLDER]",
            "the whole paper: comparison, ablation, sensitivity; then every table and figure"),
    Command("transfer", "utils.commands.rescore", "RUN ... --target_name SCENE",
            "score finished runs on another target, without training again"),
    Command("refit", "utils.commands.rescore", "RUN ...",
            "score finished runs with BatchNorm re-estimated on clean source patches"),
    Command("bench", "utils.commands.checks", "",
            "speed and memory on this machine"),
    Command("parity", "utils.commands.checks", "FILE",
            "replay values recorded from the released code"),
    Command("describe", "utils.commands.describe", "FILE ...",
            "what cubes and scene files hold, in words and a picture; --write makes a scene file"),
    Command("prepare", "utils.commands.data", "PAIR",
            "fetch or convert the public originals of a benchmark pair"))}


def find(words: list[str]) -> tuple[Command, list[str]]:
    """The command that a command line names, `train` where it names none, and the words behind it.

    Raises ConfigError if the first word is neither a command nor a flag; it names the nearest command.
    """
    if not words or words[0].startswith("-"):
        return COMMANDS[TRAIN], words
    if words[0] not in COMMANDS:
        raise ConfigError(f"'{words[0]}' is not a command.{nearest(words[0], COMMANDS)} See: main.py --help")
    return COMMANDS[words[0]], words[1:]


def overview() -> str:
    """The commands, a line each, as `main.py --help` prints them."""
    width = max(map(len, COMMANDS))
    lines = [f"  {command.name.ljust(width)}  {command.summary}" for command in COMMANDS.values()]
    return "\n".join(["usage: main.py [train] [--SETTING VALUE ...]", "       main.py COMMAND ...", "",
                      "commands (main.py COMMAND --help says more):", *lines])


def markdown_table() -> str:
    """The commands as README shows them."""
    rows = [f"| `python main.py {' '.join(filter(None, (command.name, command.arguments)))}` | {command.summary} |"
            for command in COMMANDS.values()]
    return "\n".join(["| command | does |", "|---|---|", *rows])
