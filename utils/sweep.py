"""Many runs, one after the other: variants × seeds of a sweep file."""

from __future__ import annotations

import logging
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import yaml
from tqdm import tqdm

from utils.config import parse_train
from utils.errors import ConfigError
from utils.records import ROOT, RunFolder, run_name

log = logging.getLogger(__name__)

_FORM = {"config": (list, str), "settings": (dict, None), "variants": (list, dict), "seeds": (list, int),
         "save_path": (str, None)}


@dataclass
class SweepFile:
    """What a sweep file holds: `config` files (layered) and `settings` of every run, `variants` (settings of some),
    `seeds`, and the folder of the runs."""

    config: list[str]
    settings: dict[str, Any]
    variants: list[dict[str, Any]]
    seeds: list[int]
    save_path: str


@dataclass
class SweepConfig:
    """What a sweep's command line can change.

    Args:
        seeds: seeds in place of the sweep file's.
        save_path: folder of the runs in place of the sweep file's.
        data_path: folder of the scenes' files, for every run.
        show: print the commands, for any scheduler, and run nothing.
    """

    seeds: Optional[list[int]] = None
    save_path: Optional[str] = None
    data_path: Optional[str] = None
    show: bool = False


def read_sweep(path: Path) -> SweepFile:
    """A sweep file, its keys and their form checked.  Raises ConfigError that names what is wrong."""
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; sweep files are in configs/sweep.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a valid YAML text file: {error}") from error
    if not isinstance(content, dict) or content.keys() != _FORM.keys():
        there = ", ".join(map(str, content)) if isinstance(content, dict) else "something else"
        raise ConfigError(f"{path} must have exactly the keys {', '.join(_FORM)}; it has {there}.")
    for key, (kind, member) in _FORM.items():
        if not isinstance(content[key], kind) or (member and not all(isinstance(each, member) for each in content[key])):
            raise ConfigError(f"{path}: '{key}' must be a {kind.__name__}{f' of {member.__name__}' if member else ''}.")
    return SweepFile(**content)


def sweep_runs(path: Path, choice: SweepConfig) -> list[tuple[str, list[str]]]:
    """(run name, arguments) of every run, seed by seed, so that a partial table means something early."""
    content = read_sweep(path)
    save_path = choice.save_path or content.save_path
    common = [word for file in content.config for word in ("--config", _file(file))] + _words(content.settings)
    if choice.data_path is not None:
        common += ["--data_path", choice.data_path]
    runs = []
    for seed in choice.seeds if choice.seeds is not None else content.seeds:
        for variant in content.variants:
            words = [*common, *_words(variant), "--seed", str(seed), "--save_path", save_path]
            runs.append((run_name(parse_train(words)), words))
    return runs


def _file(name: str) -> str:
    """A config file's path, as it stands or below the program's own folder."""
    return name if Path(name).exists() else str(ROOT / name)


def _words(settings: dict[str, Any]) -> list[str]:
    """{name: value} -> command-line words; lists in brackets, booleans as true and false."""
    return [word for name, value in settings.items()
            for word in (f"--{name}", value if isinstance(value, str) else
                         yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip())]


def run_sweep(path: Path, choice: SweepConfig) -> int:
    """Run what is not done; resume what was broken off; list failures at the end.  Exit code 1 if there are any."""
    runs = sweep_runs(path, choice)
    failed = []
    with tqdm(runs, unit="run", desc=path.stem, disable=choice.show) as bar:
        for name, words in bar:
            folder = RunFolder(Path(words[-1]) / name)
            if folder.read_run().get("status") == "done":
                continue
            words = ["--resume", str(folder.path)] if folder.checkpoint.exists() else [*words, "--run_name", name]
            command = [sys.executable, str(ROOT / "main.py"), "train", *words]
            if choice.show:
                print(shlex.join(command))
            elif code := _run(command):
                if code == 130:
                    raise KeyboardInterrupt
                failed.append(name)
                log.warning("%s failed (exit code %d); the others go on.", name, code)
    for name in failed:
        log.warning("failed: %s", name)
    return 1 if failed else 0


def _run(command: list[str]) -> int:
    """Run a command to its end.  An interruption is passed on to it, so that it can save and say how to go on."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
