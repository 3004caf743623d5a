"""Run folders that are made from a finished run's weights, without training anew."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from datasets.patches import source_repeat
from model.errors import ConfigError
from model.methods import Method, method_class
from model.seeding import Streams
from utils.run import checkpoint
from utils.run.build import Data, backend_of, build_method, choose_device, load_data
from utils.run.config import TrainConfig, check, parse_train
from utils.run.folder import RunFolder, environment, run_name
from utils.run.scoring import clean_patches, evaluate_source, score_run, source_scores
from utils.run.selection import LAST
from utils.text import write_text

TRANSFER, REFIT = "transfer", "refit"        # the commands
_OF_THE_TRAINING = ("seconds", "peak_memory_mib", "git", "versions", "command", "stopped_early")
SOURCE = "source"


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


def refit(run: RunFolder, save_path: str | None = None, data_path: str | None = None) -> RunFolder | None:
    """Make the run folder that training with `batchnorm_statistics: source` would have made of the given finished run,
    with the rule `last` alone; None where it is there already.

    save_path: the folder it is made in; None = beside the run.  Its run.json names the run whose weights it has; its
    one record per epoch is that of the last epoch, with the seconds of all.  Raises ConfigError where the run has these
    statistics already or has no BatchNorm, CheckpointError where its scenes' files have changed.
    """
    config = parse_train(["--config", str(run.config)])
    if config.batchnorm_statistics == SOURCE:
        raise ConfigError(f"{run.path} has BatchNorm's statistics from clean source patches already.")
    config.batchnorm_statistics, config.oracle, config.validators = SOURCE, False, False
    config.save_path, config.data_path = save_path or str(run.path.parent), data_path or config.data_path
    derived = Derived.begin(run, config)
    if derived is None:
        return None
    data, method, saved = derived.data, derived.method, derived.saved
    checkpoint.check_data(run.checkpoint, saved, data.sha256, data.source.class_names, derived.device.type)
    if not any(isinstance(module, _BatchNorm) for module in method.discriminator.modules()):
        raise ConfigError(f"{run.path}: the classifier of method '{config.method}' has no BatchNorm.")
    method.load_training_state(saved["method"])
    epochs = run.records(run.epochs)
    with method.evaluating(clean_patches(config, data)):
        record = epochs[-1] | {"seconds": sum(entry["seconds"] for entry in epochs)} | evaluate_source(method, data)
        weights = {name: value.clone() for name, value in method.discriminator.state_dict().items()}
    chosen = {"epoch": record["epoch"], **source_scores(record), "discriminator": weights}
    return derived.write(REFIT, {LAST.name: chosen}, {run.epochs.name: json.dumps(record) + "\n"})


def transfer(run: RunFolder, target_name: str | None = None, severity: float | None = None,
             data_path: str | None = None) -> RunFolder | None:
    """Make the run folder, beside the given finished run, that training with another target (or another severity of
    the simulated gap) would have made; None where it is there already.

    Its run.json names the run whose weights it has.  Records of the old target (oracle, validators) are left out.
    Raises ConfigError where the other target would have changed the training, or is no other one.
    """
    original = parse_train(["--config", str(run.config)])
    config = _changed(original, target_name, severity, data_path)
    config.save_path = str(run.path.parent)
    derived = Derived.begin(run, config)
    if derived is None:
        return None
    _check_training(derived)
    return derived.write(TRANSFER, derived.saved["state"]["selected"], {
        records.name: records.read_text() for records in (run.epochs, run.diagnostics) if records.exists()})


def _changed(original: TrainConfig, target_name: str | None, severity: float | None, data_path: str | None
             ) -> TrainConfig:
    """The settings of the run that is to be made."""
    config = copy.deepcopy(original)
    config.oracle = config.validators = False
    config.target_name = target_name or config.target_name
    config.data_path = data_path or config.data_path
    if severity is not None:
        config.simulation.severity = severity
    if (config.target_name, config.simulation) == (original.target_name, original.simulation):
        raise ConfigError("The run has this target already; name another one (--target_name), or another severity of "
                          "the simulated gap (--severity).")
    return check(config)


def _check_training(derived: Derived) -> None:
    """Raise ConfigError where the run's training is not what it would be with the other target."""
    run, config, data, saved = derived.run, derived.config, derived.data, derived.saved["data"]
    if method_class(config.method).uses_target:
        raise ConfigError(f"{run.path}: method '{config.method}' trained on the unlabelled target; for another target, "
                          "train a run of its own.")
    if data.sha256 == saved:
        raise ConfigError(f"{run.path} was scored on these files already; name another target.")
    if data.test is None:
        raise ConfigError(f"{data.target.name} has no labelled pixel to score; 'main.py predict' maps it.")
    changed = [name for name, digest in data.sha256.items() if name.startswith("source/") and saved.get(name) != digest]
    if changed:
        raise ConfigError(f"{run.path} was trained with other files: {', '.join(changed)} changed.")
    repeat = source_repeat(len(data.train) + len(data.val), run.read_run()["labelled_target_pixels"],
                           config.training_sample_ratio, config.re_ratio)
    if repeat != data.train.repeat:
        raise ConfigError(f"With {data.target.name} the source's index list would be repeated {data.train.repeat} "
                          f"times, not {repeat} times as in {run.path}: train a run of its own.")
