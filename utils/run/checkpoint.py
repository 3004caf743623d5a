"""Checkpoints: written atomically, read without running any code that they might carry."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.errors import CheckpointError
from utils.run.config import FREE_ON_RESUME, TrainConfig, to_dict

_DAMAGED = (RuntimeError, EOFError, OSError, KeyError, ValueError, IndexError, AttributeError, TypeError,
            pickle.UnpicklingError)          # what torch.load raises on a file that is cut or something else


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a file of tensors and plain values; a crash leaves the old file whole."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def load(path: Path) -> dict[str, Any]:
    """Read a file of `save` onto the CPU (weights only); the networks and optimisers that take it move what they need.

    Raises CheckpointError if it is missing or damaged.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path} does not exist.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint; it may be truncated, or hold more than tensors "
                              f"({str(error).splitlines()[0] if str(error) else type(error).__name__}).") from error


def configuration(config: TrainConfig) -> dict[str, Any]:
    """The settings that a checkpoint is bound to."""
    return {name: value for name, value in to_dict(config).items() if name not in FREE_ON_RESUME}


def check_configuration(path: Path, saved: dict[str, Any], config: TrainConfig) -> None:
    """Raise CheckpointError if a checkpoint was written under other settings; it names them."""
    ours = configuration(config)
    different = [f"{name} ({value} there, {ours.get(name)} here)" for name, value in sorted(saved.items())
                 if ours.get(name) != value]
    if different:
        raise CheckpointError(f"{path} belongs to another configuration: {', '.join(different)}.")


def check_data(path: Path, saved: dict[str, Any], sha256: dict[str, str], class_names: Sequence[str],
               device: str) -> None:
    """Raise CheckpointError if the scenes' files, the classes or the kind of device are no longer those that a
    checkpoint was written with: split and random streams would not be the same."""
    changed = sorted(name for name in saved["data"].keys() | sha256.keys() if saved["data"].get(name) != sha256.get(name))
    if changed:
        raise CheckpointError(f"{path} was written with other data: {', '.join(changed)} changed since. Put the old files "
                              "back, or start a new run.")
    if list(class_names) != saved["class_names"]:
        raise CheckpointError(f"{path} was written for the classes {', '.join(saved['class_names'])}.")
    if device != saved["device"]:
        raise CheckpointError(f"{path} was written on {saved['device']}; its random streams cannot go on on {device}. "
                              f"Choose a --gpu of that kind.")


def load_discriminator(discriminator: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    """Put weights into a discriminator; CheckpointError names the first tensor that does not fit.  Those that a module
    calls `growing` may have any number of rows."""
    ours, growing = discriminator.state_dict(), getattr(discriminator, "growing", ())
    missing, extra = sorted(ours.keys() - state.keys()), sorted(state.keys() - ours.keys())
    if missing or extra:
        raise CheckpointError(f"{path} is not this discriminator: " +
                              (f"it lacks {missing[0]}" if missing else f"it has {extra[0]} besides") + ".")
    for name, value in state.items():
        fixed = 1 if name in growing else 0
        if value.shape[fixed:] != ours[name].shape[fixed:]:
            raise CheckpointError(f"{path}: {name} has shape {tuple(value.shape)}, this configuration needs "
                                  f"{tuple(ours[name].shape)}. Was it trained with other bands, patch size or width?")
    discriminator.load_state_dict(state)
