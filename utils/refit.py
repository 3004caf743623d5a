"""A trained run scored with BatchNorm's statistics re-estimated on clean source patches, without training anew.

With `batchnorm_statistics: source` the statistics are set anew for every evaluation, and training does not depend on
them: the last epoch of such a run can be made from a run that kept the running averages.  What the other selection
rules would have chosen can't, and is left out.
"""

from __future__ import annotations

import json

from torch.nn.modules.batchnorm import _BatchNorm

from utils import checkpoint
from utils.config import parse_train
from utils.derived import REFIT, Derived
from utils.errors import ConfigError
from utils.records import RunFolder
from utils.scoring import clean_patches, evaluate_source, source_scores
from utils.selection import LAST

SOURCE = "source"


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
