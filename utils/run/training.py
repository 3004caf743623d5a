"""A training run under way: its parts, how far it is, and the checkpoint that keeps both."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch

from model.methods import Method
from model.seeding import Streams
from utils.run import checkpoint
from utils.run.build import Data, backend_of
from utils.run.config import TrainConfig
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


def save(training: Training) -> None:
    """Write all that `restore` needs, atomically."""
    config, data = training.config, training.data
    checkpoint.save(training.run.checkpoint, {
        "config": checkpoint.configuration(config), "data": data.sha256, "class_names": list(data.source.class_names),
        "bands": data.task.bands, "device": data.train.cube.device.type, "state": vars(training.progress),
        "method": training.method.training_state(), "streams": training.streams.state_dict()})


def restore(training: Training) -> None:
    """Bring method, streams and progress to the checkpoint's state; drop records of epochs after it.

    Another number of threads is warned of.  Raises CheckpointError if the checkpoint is damaged, or belongs to other
    settings, data or another device.
    """
    run, data = training.run, training.data
    saved = checkpoint.load(run.checkpoint)
    checkpoint.check_configuration(run.checkpoint, saved["config"], training.config)
    checkpoint.check_data(run.checkpoint, saved, data.sha256, data.source.class_names, data.train.cube.device.type)
    training.method.load_training_state(saved["method"])
    training.streams.load_state_dict(saved["streams"])
    training.progress = Progress(**saved["state"])
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
