"""Trained methods again, from a run folder or from a checkpoint of the released code."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.errors import CheckpointError
from model.methods import Method, Task
from model.seeding import Streams
from utils.released import weights
from utils.run import checkpoint
from utils.run.build import build_method, choose_device
from utils.run.config import TrainConfig, check, parse_train
from utils.run.folder import RunFolder

log = logging.getLogger(__name__)


@dataclass
class Trained:
    """A method ready to predict, with the settings it was trained under; class names where they are known."""

    config: TrainConfig
    method: Method
    task: Task
    device: torch.device
    class_names: tuple[str, ...] | None


def load_run(run: RunFolder, rule: str = "last", gpu: int | None = None) -> Trained:
    """A run's networks as of its last finished epoch, the discriminator being the one that `rule` selected.

    Needs no scene.  Raises CheckpointError where the run has no finished epoch or no such rule, or files of it do not fit.
    """
    config = parse_train(["--config", str(run.config)] + ([] if gpu is None else ["--gpu", str(gpu)]))
    saved = checkpoint.load(run.checkpoint)
    checkpoint.check_configuration(run.checkpoint, saved["config"], config)
    state: dict[str, Any] = saved["state"]
    if not state["selected"]:
        raise CheckpointError(f"{run.path} has not finished its first epoch: there is nothing to apply yet.")
    if rule not in state["selected"]:
        raise CheckpointError(f"{run.path} holds no weights of the rule '{rule}', which is newer than the run; it has "
                              f"{', '.join(state['selected'])}.")
    if run.read_run().get("status") != "done":
        log.warning("%s has not finished: these are the weights of epoch %d of %d.", run.path,
                    state["selected"][rule]["epoch"], config.max_epoch)
    device = choose_device(config.gpu)
    task = Task(saved["bands"], len(saved["class_names"]), config.patch_size)
    method = build_method(config, task, Streams(config.seed, device), device)
    method.load_training_state(saved["method"])
    checkpoint.load_discriminator(method.discriminator, state["selected"][rule]["discriminator"], run.checkpoint)
    return Trained(config, method, task, device, tuple(saved["class_names"]))


def load_released(path: Path, kernel_activation: str, data_path: str | None, gpu: int | None = None) -> Trained:
    """A discriminator of the released code (best.pth).  Raises CheckpointError where it is none."""
    state, task, width = weights.read_weights(path)
    config = check(TrainConfig(method="erm", pro_dim=width, patch_size=task.patch_size, data_path=data_path,
                               kernel_activation=kernel_activation))
    device = choose_device(0 if gpu is None else gpu)
    method = build_method(config, task, Streams(0, device), device)
    checkpoint.load_discriminator(method.discriminator, state, path)
    return Trained(config, method, task, device, None)
