"""Many runs, one after the other: variants × seeds of a sweep file."""

from __future__ import annotations

import logging
import shlex
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

_KEYS = {"config", "settings", "variants", "seeds", "save_path"}


@dataclass
class SweepConfig:
    """What a sweep's command line can change.

    Args:
        seeds: seeds in place of the sweep file's.
        save_path: folder of the runs in place of the sweep file's.
        show: print the commands, for any scheduler, and run nothing.
    """

    seeds: Optional[list[int]] = None
    save_path: Optional[str] = None
    show: bool = False


def read_sweep(path: Path) -> dict[str, Any]:
    """A sweep file: `config` (files, layered), `settings` (of every run), `variants` (a list of settings), `seeds`,
    `save_path`.  Raises ConfigError where it is missing, damaged, or has another key."""
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; sweep files are in configs/sweep.")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict) or content.keys() != _KEYS:
        raise ConfigError(f"{path} must have exactly the keys {', '.join(sorted(_KEYS))}.")
    return content


def sweep_runs(path: Path, choice: SweepConfig) -> list[tuple[str, list[str]]]:
    """(run name, arguments) of every run, seed by seed, so that a partial table means something early."""
    content = read_sweep(path)
    save_path = choice.save_path or content["save_path"]
    common = [word for file in content["config"] for word in ("--config", str(file))] + _words(content["settings"])
    runs = []
    for seed in choice.seeds if choice.seeds is not None else content["seeds"]:
        for variant in content["variants"]:
            words = [*common, *_words(variant), "--seed", str(seed), "--save_path", save_path]
            runs.append((run_name(parse_train(words)), words))
    return runs


def _words(settings: dict[str, Any] | None) -> list[str]:
    """{name: value} -> command-line words; lists in brackets, booleans as true and false."""
    return [word for name, value in (settings or {}).items()
            for word in (f"--{name}", yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip())]


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
            elif code := subprocess.run(command).returncode:
                if code == 130:
                    raise KeyboardInterrupt
                failed.append(name)
                log.warning("%s failed (exit code %d); the others go on.", name, code)
    for name in failed:
        log.warning("failed: %s", name)
    return 1 if failed else 0
