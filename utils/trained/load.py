"""Trained methods again, from a run folder or from a checkpoint of the released code."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from datasets.grid import Grid
from datasets.harmonize import Common
from datasets.scene import Scene
from datasets.splits import split_halves
from model.errors import CheckpointError
from model.methods import Method, Task
from model.seeding import Streams
from utils.released import weights
from utils.run import checkpoint
from utils.run.build import Data, build_method, choose_device, load_data
from utils.run.config import TrainConfig, changed, read_config
from utils.run.folder import RunFolder
from utils.run.selection import LAST, NOT_HONEST, ORACLE

log = logging.getLogger(__name__)


@dataclass
class Trained:
    """A method ready to predict.

    config: the settings it was trained under.  class_names: where they are known.  run, saved: the run folder and the
    content of its checkpoint; None and nothing for a checkpoint of the released code.
    """

    config: TrainConfig
    method: Method
    task: Task
    device: torch.device
    class_names: tuple[str, ...] | None
    run: RunFolder | None = None
    saved: dict[str, Any] | None = None

    @cached_property
    def data(self) -> Data:
        """The scenes of the settings, the source split as in training; read when first asked for."""
        return load_data(self.config, self.device, Streams(self.config.seed, self.device).split, self.common)

    @property
    def common(self) -> Common | None:
        """The bands and classes that every scene is brought to; None where they are not known."""
        return None if self.saved is None else checkpoint.common_of(self.saved)

    @property
    def grid(self) -> Grid:
        return self.common.grid if self.common else Grid(self.task.bands)

    def sealed(self, scene: Scene) -> Scene:
        """The scene with the labels that training did not see: all of them, but for a ceiling on its own target those
        of the half that it is scored on."""
        target = {f"target/{name}": digest for name, digest in scene.sha256.items()}
        if not self.config.ceiling or not target.items() <= self.saved["data"].items():
            return scene
        return split_halves(scene, self.config.patch_size, Streams(self.config.seed, self.device).split)[1]


def load_run(run: RunFolder, rule: str = LAST.name, gpu: int | None = None, data_path: str | None = None,
             **changes: Any) -> Trained:
    """A run's networks as of its last finished epoch, with the discriminator that `rule` selected.

    gpu, data_path: where they differ from the run's.  changes: other settings to apply the weights under.
    Needs no scene.  Raises CheckpointError if the run has no finished epoch or no such rule, or files of it do not fit.
    """
    original, saved = run.read_config(), checkpoint.load_run(run.checkpoint)
    checkpoint.check_configuration(run.checkpoint, saved["config"], original)
    selected = saved["state"]["selected"]
    if not selected:
        raise CheckpointError(f"{run.path} has not finished its first epoch: there is nothing to apply yet.")
    if rule not in selected:
        kept = " Those are kept by runs that train with --oracle." if rule == ORACLE.name else ""
        raise CheckpointError(f"{run.path} holds no weights of the rule '{rule}'; it has {', '.join(selected)}.{kept}")
    if rule == ORACLE.name:
        log.warning("%s: %s. No score of these weights on this target says how a scene without labels would fare.",
                    run.path, NOT_HONEST)
    if run.read_run().get("status") != "done":
        log.warning("%s has not finished: these are the weights of epoch %d of %d.", run.path, selected[rule]["epoch"],
                    original.max_epoch)
    places = {"gpu": gpu, "data_path": data_path}
    config = changed(original, **{name: value for name, value in places.items() if value is not None}, **changes)
    device = choose_device(config.gpu, config.precision, config.deterministic)
    task = Task(saved["bands"], len(saved["class_names"]), config.patch_size)
    method = build_method(config, task, Streams(config.seed, device), device)
    checkpoint.load_training_state(method, saved["method"], run.checkpoint)
    checkpoint.load_discriminator(method.discriminator, selected[rule]["discriminator"], run.checkpoint)
    return Trained(config, method, task, device, tuple(saved["class_names"]), run, saved)


def load_released(path: Path, kernel_activation: str, data_path: str | None, gpu: int | None = None) -> Trained:
    """A discriminator of the released code (best.pth).  Raises CheckpointError if the file is something else."""
    state, task, width = weights.read_weights(path)
    config = read_config(method="erm", pro_dim=width, patch_size=task.patch_size, data_path=data_path,
                         kernel_activation=kernel_activation)
    device = choose_device(0 if gpu is None else gpu)
    method = build_method(config, task, Streams(0, device), device)
    checkpoint.load_discriminator(method.discriminator, state, path)
    return Trained(config, method, task, device, None)
