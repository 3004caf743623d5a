"""Run folders that are made from a finished run's weights, without training anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from model.methods import Method
from utils import checkpoint
from utils.assembly import Data, backend_of, build_method, choose_device, load_data
from utils.config import TrainConfig
from utils.errors import ConfigError
from utils.records import RunFolder, environment, run_name, write_text
from utils.scoring import score_run
from utils.seeding import Streams

TRANSFER, REFIT = "transfer", "refit"        # the commands
_OF_THE_TRAINING = ("seconds", "peak_memory_mib", "git", "versions", "command", "stopped_early")


def derived_by(run: RunFolder) -> str | None:
    """The command that made a run folder from another one (older folders, which don't say, are transfer's); None for a
    run that was trained there."""
    about = run.read_run()
    return about.get("derived_by", TRANSFER) if "trained_in" in about else None


@dataclass
class Derived:
    """A run folder in the making.

    run: the finished run whose weights it has.  made: the folder that training with `config` would have.  data: the
    scenes of `config`.  saved: the content of the run's checkpoint.  method: freshly initialised.
    """

    run: RunFolder
    made: RunFolder
    config: TrainConfig
    device: torch.device
    data: Data
    saved: dict[str, Any]
    method: Method

    @classmethod
    def begin(cls, run: RunFolder, config: TrainConfig) -> Derived | None:
        """Read what it takes; None where the folder, in config.save_path, is done already.  Writes nothing.  Raises
        ConfigError where the folder is an unfinished run of its own, CheckpointError where the run has no weights."""
        made = RunFolder(f"{config.save_path}/{run_name(config)}")
        if made.read_run().get("status") == "done":
            return None
        if made.checkpoint.exists() and "trained_in" not in made.read_run():
            raise ConfigError(f"{made.path} is a run of its own, unfinished. Go on with it (--resume {made.path}) or "
                              "delete it.")
        saved, device = checkpoint.load(run.checkpoint), choose_device(config.gpu)
        data = load_data(config, device, Streams(config.seed, device).split)
        method = build_method(config, data.task, Streams(config.seed, device), device)
        return cls(run, made, config, device, data, saved, method)

    def write(self, command: str, selected: dict[str, dict[str, Any]], records: Mapping[str, str]) -> RunFolder:
        """Score the weights that each rule selected, and write the folder; status "done" comes last.

        records: name of a file of records per epoch -> its text.  run.json names the run that this one is made from and
        the command, and keeps what that one says of training.
        """
        made, about = self.made, self.run.read_run()
        made.path.mkdir(parents=True, exist_ok=True)
        made.write_config(self.config)
        made.update_run(trained_in=self.run.path.name, derived_by=command)
        for name, text in records.items():
            write_text(made.path / name, text)
        checkpoint.save(made.checkpoint, self.saved | {
            "config": checkpoint.configuration(self.config), "data": self.data.sha256,
            "state": self.saved["state"] | {"selected": selected}})
        made.begin(self.config, self.data, environment(self.device, backend_of(self.config, self.device)))
        score_run(made, self.method, self.data, selected)
        made.update_run(status="done", **{name: about[name] for name in _OF_THE_TRAINING if name in about})
        return made
