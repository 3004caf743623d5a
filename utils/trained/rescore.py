"""Run folders that are made from a finished run's weights, without training again.

refit     With `batchnorm_statistics: source` BatchNorm's statistics are set again for every evaluation, and training
          does not depend on them: the last epoch of such a run can be made from a run that kept the running averages.
          What the other selection rules would have chosen can't, and is left out.
transfer  Training takes nothing from a target but its number of labelled pixels, which decides how often the source's
          index list is repeated, and not that under a sealed protocol.  Where it stays the same, a run with another
          target has the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from model.errors import ConfigError
from model.methods import method_class
from utils.run import checkpoint
from utils.run.build import backend_of, index_repeat
from utils.run.config import TrainConfig
from utils.run.environment import environment
from utils.run.folder import RunFolder, run_name
from utils.run.records import damaged, read_text
from utils.run.scoring import clean_patches, evaluate_source, score_run
from utils.run.selection import LAST, ORACLE, source_scores
from utils.text import write_text
from utils.trained.load import Trained, load_run

TRANSFER, REFIT = "transfer", "refit"        # the commands
SOURCE = "source"
_OF_THE_TRAINING = ("seconds", "peak_memory_mib", "git", "versions", "command", "stopped_early")


def derived_by(run: RunFolder) -> str | None:
    """The command that made a run folder from another one; None for a run that was trained there."""
    return run.read_run().get("derived_by")


def refit(run: RunFolder, save_path: str | None = None, data_path: str | None = None) -> RunFolder | None:
    """Make the run folder that training with `batchnorm_statistics: source` would have made of the given finished run,
    with the rule `last` alone; None where it is there already.

    save_path: the folder it is made in; None = beside the run.  Its run.json names the run whose weights it has; its
    one record per epoch is that of the last epoch, with the seconds of all.  Raises ConfigError if the run has these
    statistics already or has no BatchNorm, CheckpointError where its scenes' files have changed.
    """
    if run.read_config().batchnorm_statistics == SOURCE:
        raise ConfigError(f"{run.path} has BatchNorm's statistics from clean source patches already.")
    derived = Derived.begin(run, data_path, batchnorm_statistics=SOURCE, save_path=save_path or str(run.path.parent))
    if derived is None:
        return None
    trained = derived.trained
    data, method, saved = trained.data, trained.method, trained.saved
    checkpoint.check_data(run.checkpoint, saved, data.sha256, data.said, data.source.class_names,
                          trained.device.type)
    if not any(isinstance(module, _BatchNorm) for module in method.discriminator.modules()):
        raise ConfigError(f"{run.path}: the classifier of method '{trained.config.method}' has no BatchNorm.")
    method.load_training_state(saved["method"])
    if not (epochs := run.records(run.epochs, "losses", "seconds", "steps")):
        raise damaged(run.epochs, "it holds no record")
    with method.evaluating(clean_patches(trained.config, data)):
        record = epochs[-1] | {"seconds": sum(entry["seconds"] for entry in epochs)} | evaluate_source(method, data)
        weights = {name: value.clone() for name, value in method.discriminator.state_dict().items()}
    chosen = {"epoch": record["epoch"], **source_scores(record), "discriminator": weights}
    return derived.write(REFIT, {LAST.name: chosen}, {run.epochs.name: json.dumps(record) + "\n"})


def transfer(run: RunFolder, target_name: str | None = None, severity: float | None = None,
             data_path: str | None = None) -> RunFolder | None:
    """Make the run folder, beside the given finished run, that training with another target (or another severity of
    the simulated gap) would have made; None where it is there already.

    Its run.json names the run whose weights it has.  Records of the old target (oracle, validators) are left out.
    Raises ConfigError if the other target would have changed the training, or is no other one.
    """
    original = run.read_config()
    simulation = original.simulation if severity is None else replace(original.simulation, severity=severity)
    if original.ceiling:
        raise ConfigError(f"{run.path} is a ceiling, trained on its own target's labels; train one of the other.")
    target = target_name or original.target_name
    if (target, simulation) == (original.target_name, original.simulation):
        raise ConfigError("The run has this target already; name another one (--target_name), or another severity of "
                          "the simulated gap (--severity).")
    derived = Derived.begin(run, data_path, target_name=target, simulation=simulation, save_path=str(run.path.parent))
    if derived is None:
        return None
    _check_training(run, derived.trained)
    selected = {rule: choice for rule, choice in derived.trained.saved["state"]["selected"].items()
                if rule != ORACLE.name}                       # which looked at the other target
    return derived.write(TRANSFER, selected, {
        records.name: read_text(records) for records in (run.epochs, run.diagnostics) if records.exists()})


def _check_training(run: RunFolder, trained: Trained) -> None:
    """Raise ConfigError if the run's training is not what it would be with the other target."""
    config, data, saved = trained.config, trained.data, trained.saved["data"]
    if method_class(config.method).uses_target:
        raise ConfigError(f"{run.path}: method '{config.method}' trained on the unlabelled target; for another target, "
                          "train a run of its own.")
    if data.sha256 == saved:
        raise ConfigError(f"{run.path} was scored on these files already; name another target.")
    if data.test is None:
        raise ConfigError(f"{data.target.name} has no labelled pixel to score; 'main.py predict' maps it.")
    different = [name for name, digest in data.sha256.items()
                 if name.startswith("source/") and saved.get(name) != digest]
    if different:
        raise ConfigError(f"{run.path} was trained with other files: {', '.join(different)} changed.")
    n_target = run.read_run("labelled_target_pixels")["labelled_target_pixels"]
    repeat = index_repeat(config, len(data.train) + len(data.val or ()), n_target)
    if repeat != data.train.repeat:
        raise ConfigError(f"With {data.target.name} the source's index list would be repeated {data.train.repeat} "
                          f"times, not {repeat} times as in {run.path}: train a run of its own.")


@dataclass
class Derived:
    """A run folder in the making.

    made: the folder that training with the changed settings would have.  trained: the finished run's networks under
    these settings.
    """

    made: RunFolder
    trained: Trained

    @classmethod
    def begin(cls, run: RunFolder, data_path: str | None, **changes: Any) -> Derived | None:
        """Read what it takes; None where the folder, in save_path, is done already.  Writes nothing.

        changes: settings that differ from the run's.  Raises ConfigError if the folder is an unfinished run of its
        own, CheckpointError where the run has no weights.
        """
        changes |= {"oracle": False, "validators": False}
        made = RunFolder(_folder(run.read_config(), changes))
        if made.path.exists():
            with made:                                # nobody else works there
                pass
        if made.read_run().get("status") == "done":
            return None
        if made.checkpoint.exists() and "trained_in" not in made.read_run():
            raise ConfigError(f"{made.path} is a run of its own, unfinished. Go on with it (--resume {made.path}) or "
                              "delete it.")
        return cls(made, load_run(run, data_path=data_path, **changes))

    def write(self, command: str, selected: dict[str, dict[str, Any]], records: Mapping[str, str]) -> RunFolder:
        """Score the weights that each rule selected, and write the folder; status "done" comes last.

        records: name of a file of records per epoch -> its text.  run.json names the run that this one is made from and
        the command, and keeps what that one says of training.  Raises RunFolderError if another process works there.
        """
        with self.made:
            return self._written(command, selected, records)

    def _written(self, command: str, selected: dict[str, dict[str, Any]], records: Mapping[str, str]) -> RunFolder:
        made, config, data = self.made, self.trained.config, self.trained.data
        run, about = self.trained.run, self.trained.run.read_run()
        if made.read_run().get("status") == "done":          # by another process, since `begin`
            return made
        made.write_config(config)
        made.update_run(trained_in=run.path.name, derived_by=command)
        for name, text in records.items():
            write_text(made.path / name, text)
        checkpoint.save(made.checkpoint, self.trained.saved | {
            "config": checkpoint.configuration(config), "data": data.sha256, "said": data.said,
            "state": self.trained.saved["state"] | {"selected": selected}})
        made.begin(config, data, environment(self.trained.device, backend_of(config, self.trained.device)))
        score_run(made, self.trained.method, data, selected)
        made.update_run(status="done", **{name: about[name] for name in _OF_THE_TRAINING if name in about})
        return made


def _folder(config: TrainConfig, changes: Mapping[str, Any]) -> str:
    """Where training with these changes would put its run."""
    made = replace(config, **changes)
    return f"{made.save_path}/{run_name(made)}"
