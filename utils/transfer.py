"""A trained run scored on another target, without training anew.

Training takes nothing from a target but its number of labelled pixels, which decides how often the source's index list
is repeated.  Where that stays the same, a run with another target would have the same weights, so a run folder can be
made from these.
"""

from __future__ import annotations

import copy

from datasets.patches import source_repeat
from model.methods import method_class
from utils.config import TrainConfig, check, parse_train
from utils.derived import TRANSFER, Derived
from utils.errors import ConfigError
from utils.records import RunFolder


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
