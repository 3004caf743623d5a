"""Run folders that are made from a finished run's weights, without training anew."""

from __future__ import annotations

from typing import Any

import torch

from model.methods import Method
from utils import checkpoint
from utils.assembly import Data, backend_of
from utils.config import TrainConfig
from utils.errors import ConfigError
from utils.records import RunFolder, environment, run_name
from utils.scoring import score_run

TRANSFER, REFIT = "transfer", "refit"        # the commands
_OF_THE_TRAINING = ("seconds", "peak_memory_mib", "git", "versions", "command", "stopped_early")


def derived_folder(config: TrainConfig) -> RunFolder | None:
    """The folder that training with these settings would have in config.save_path; None where it is done already.
    Raises ConfigError where it is an unfinished run of its own."""
    made = RunFolder(f"{config.save_path}/{run_name(config)}")
    if made.read_run().get("status") == "done":
        return None
    if made.checkpoint.exists() and "trained_in" not in made.read_run():
        raise ConfigError(f"{made.path} is a run of its own, unfinished. Go on with it (--resume {made.path}) or delete it.")
    return made


def derived_by(run: RunFolder) -> str | None:
    """The command that made a run folder from another one; None for a run that was trained there."""
    about = run.read_run()
    return about.get("derived_by", TRANSFER) if "trained_in" in about else None


def write_derived(command: str, run: RunFolder, made: RunFolder, config: TrainConfig, data: Data, method: Method,
                  saved: dict[str, Any], device: torch.device) -> None:
    """Write everything but the records per epoch: settings, checkpoint (`saved`, a checkpoint's content, under the new
    settings and data), scores, and run.json, which names the run that it is made from and the command, and keeps what
    that one says of training."""
    made.path.mkdir(parents=True, exist_ok=True)
    made.write_config(config)
    made.update_run(trained_in=run.path.name, derived_by=command)
    checkpoint.save(made.checkpoint, saved | {"config": checkpoint.configuration(config), "data": data.sha256})
    made.begin(config, data, environment(device, backend_of(config, device)))
    score_run(made, method, data, saved["state"]["selected"])
    about = run.read_run()
    made.update_run(status="done", **{name: about[name] for name in _OF_THE_TRAINING if name in about})
