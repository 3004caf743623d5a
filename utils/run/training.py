"""A training run under way: its parts, how far it is, and the checkpoint that keeps both."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from datasets.harmonize import Common
from model.errors import CheckpointError, RunFolderError, SystemRefusedError, UserError
from model.files import signals_later
from model.methods import Method, method_class
from model.seeding import Streams
from utils.process import refusals_told
from utils.run import checkpoint
from utils.run.build import Data, backend_of
from utils.run.config import TrainConfig, changed
from utils.run.folder import RunFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a run is: epochs trained, seconds they took, and per selection rule the epoch it selected so far, with
    its source scores and discriminator weights."""

    epoch: int = 0
    seconds: float = 0.0
    selected: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Training:
    """What a training run works with, and how far it is."""

    config: TrainConfig
    data: Data
    method: Method
    streams: Streams
    run: RunFolder
    progress: Progress = Progress()


def with_epochs(config: TrainConfig, data: Data) -> TrainConfig:
    """The settings with the epochs that have at least `steps` steps; as they are where max_epoch says how many."""
    if config.steps is None or method_class(config.method).fits_in_one_epoch:
        return config
    epochs = -(-config.steps // data.train.epoch_length(config.batch_size))
    log.info("%d epochs have at least %d steps.", epochs, config.steps)
    return changed(config, max_epoch=epochs)


def save(training: Training) -> None:
    """Have the disk hold the records, then write all that `restore` needs, atomically.  Signals wait meanwhile."""
    config, data = training.config, training.data
    with signals_later():
        training.run.sync_records()
        checkpoint.save(training.run.checkpoint, {
            "config": checkpoint.configuration(config), "data": data.sha256, "said": data.said,
            **data.common.entries(), "preprocessing": data.preprocessing, "device": data.train.cube.device.type,
            "state": vars(training.progress), "method": training.method.training_state(),
            "streams": training.streams.state_dict()})


def known(run: RunFolder, config: TrainConfig) -> Common:
    """The bands and classes of a run that is gone on with.  Raises CheckpointError where its checkpoint is damaged, or
    of other settings, before any scene is looked for."""
    saved = checkpoint.load_run(run.checkpoint)
    checkpoint.check_configuration(run.checkpoint, saved["config"], config)
    return checkpoint.common_of(saved)


def restore(training: Training) -> None:
    """Bring method, streams and progress to the checkpoint's state; drop records of epochs after it.

    Another number of threads is warned of.  Raises CheckpointError if the checkpoint is damaged, or belongs to other
    settings, data or another device; RunFolderError if records up to its epoch are missing.  The folder stays as it was
    then.
    """
    run, data = training.run, training.data
    saved = checkpoint.load_run(run.checkpoint)
    checkpoint.check_configuration(run.checkpoint, saved["config"], training.config)
    checkpoint.check_data(run.checkpoint, saved, data.sha256, data.said, data.source.class_names,
                          data.train.cube.device.type)
    if "trained_in" not in run.read_run():              # else its records are those of another folder, or one of them
        run.check_records(saved["state"]["epoch"], training.config)
    checkpoint.load_training_state(training.method, saved["method"], run.checkpoint)
    try:
        training.streams.load_state_dict(saved["streams"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{run.checkpoint}: its random streams are no generators' states.") from error
    training.progress = Progress(**{entry.name: saved["state"][entry.name] for entry in fields(Progress)})
    run.cut_records(training.progress.epoch)
    run.write_config(training.config)
    warn_of_other_bits(run, training.config, data)
    log.info("Going on with %s after epoch %d.", run.path, training.progress.epoch)


def warn_of_other_bits(run: RunFolder, config: TrainConfig, data: Data) -> None:
    """Warn if a run goes on with another number of threads or another backend: sums then run in another order."""
    device, before = data.train.cube.device, run.read_run()
    now = {"backend": backend_of(config, device)}
    if device.type == "cpu":
        now["threads"] = torch.get_num_threads()
    changed = [f"{name} {before[name]}, now {value}" for name, value in now.items() if before.get(name, value) != value]
    if changed:
        log.warning("%s goes on otherwise than it began (%s): its numbers will not be those of an unbroken run, bit by "
                    "bit. OMP_NUM_THREADS sets the threads, --backend the backend.", run.path, "; ".join(changed))


@contextmanager
def watched(training: Training) -> Iterator[None]:
    """What ends the training inside early stands in run.json afterwards: status `interrupted`, or `failed` with the
    error."""
    run = training.run
    try:
        with refusals_told():
            yield
    except KeyboardInterrupt:
        _note(run, status="interrupted")
        if run.checkpoint.exists():
            log.warning("Interrupted. Epoch %d is saved; go on with: python main.py --resume %s",
                        training.progress.epoch, run.path)
        raise
    except UserError as error:
        _note(run, status="failed", error=str(error))
        if isinstance(error, SystemRefusedError) and training.progress.epoch:
            log.warning("Epoch %d is saved. Once this is mended, go on with: python main.py --resume %s",
                        training.progress.epoch, run.path)
        raise


def _note(run: RunFolder, **entries: Any) -> None:
    """Set entries of run.json; where even that fails, the log says so, and the error that is under way goes on."""
    try:
        run.update_run(**entries)
    except (OSError, RunFolderError) as error:
        log.warning("%s still says that the run is under way: it cannot be written (%s).", run.run, error)
