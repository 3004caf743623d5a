"""Checkpoints: written atomically, read without running any code that they might carry, and checked before use."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.grid import Grid
from datasets.harmonize import Common
from model.errors import CheckpointError
from model.files import replacing
from model.methods import Method
from model.stored import leaves, read_stored, unusable
from utils.run.config import FREE_ON_RESUME, TrainConfig, same_setting, to_dict
from utils.run.records import misfit
from utils.run.selection import SOURCE_SCORES

DIGEST = "digest"        # a checkpoint's entry
RUN = {"config": dict[str, Any], "data": dict[str, str], "class_names": list[str], "bands": int, "device": str,
       "wavelengths?": list[float], "fwhm?": list[float], "preprocessing?": list[str], "said?": dict[str, str],
       "state": {"epoch": int, "seconds": float, "selected": {
           str: {"epoch": int, "source_val?": dict, "shifted_source?": dict, "target?": dict,
                 "discriminator": dict[str, Tensor]}}},
       "method": {"networks": dict[str, Tensor], "gradients": dict[str, Tensor],
                  "optimisers": {str: {"state": dict, "param_groups": list[dict]}}},
       "streams": dict[str, Any]}       # as utils/run/records.py says it
_KEPT = {"step": Tensor, "exp_avg": Tensor, "exp_avg_sq": Tensor}        # of Adam, per parameter
_GROUP = {"betas": tuple, "eps": float, "weight_decay": float}           # of Adam, beside the learning rate


def save(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values, with a digest of them; a crash leaves the old file whole."""
    write(path, content | {DIGEST: digest(content)})


def write(path: Path, content: dict[str, Any]) -> None:
    """The same without a digest.  The disk has all of it before it takes the old file's place."""
    stored = io.BytesIO()                       # so that an error of the disk stays one, whatever torch makes of it
    torch.save(content, stored)
    with replacing(path, sync=True) as file:
        file.write(stored.getbuffer())


def load(path: Path) -> dict[str, Any]:
    """Read a file of `save` or `write` onto the CPU (weights only); the networks and optimisers that take it move what
    they need.  Files of older programs have no digest.

    Raises CheckpointError if it is missing, damaged or of another kind, or would take far more memory than its size.
    """
    content = read_stored(Path(path), "a checkpoint", CheckpointError)
    written = content.pop(DIGEST, None)
    same = written is None or written == digest(content)
    if not same:
        raise CheckpointError(f"{path} is damaged: its values are not those that were written. Put it back from a "
                              "copy.")
    return content


def load_run(path: Path) -> dict[str, Any]:
    """Read a run's checkpoint.  Raises CheckpointError if it is missing, damaged or something else."""
    content = load(path)
    if wrong := misfit(content, RUN, "the file"):
        raise CheckpointError(f"{path} is not the checkpoint of a run: {wrong}.")
    lacking = [score for choice in content["state"]["selected"].values() for score in SOURCE_SCORES
               if score not in choice]
    if lacking and content["config"].get("training_sample_ratio") != 1:
        raise CheckpointError(f"{path} is not the checkpoint of a run: 'selected' lacks '{lacking[0]}'.")
    return content


def digest(content: Any) -> str:
    """SHA-256 of nested values: the tensors' types, shapes and bytes, the others as text."""
    found = hashlib.sha256()
    for name, value in leaves(content):
        if isinstance(value, Tensor):
            found.update(f"{name}:{value.dtype}{tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        else:
            found.update(f"{name}={value!r}".encode())
    return found.hexdigest()


def configuration(config: TrainConfig) -> dict[str, Any]:
    """The settings that a checkpoint is bound to."""
    return {name: value for name, value in to_dict(config).items() if name not in FREE_ON_RESUME}


def check_configuration(path: Path, saved: dict[str, Any], config: TrainConfig) -> None:
    """Raise CheckpointError if a checkpoint was written under other settings; it names them."""
    ours = configuration(config)
    different = [f"{name} ({value} there, {ours.get(name)} here)" for name, value in sorted(saved.items())
                 if not same_setting(name, ours.get(name), value)]
    if different:
        raise CheckpointError(f"{path} belongs to another configuration: {', '.join(different)}.")


def common_of(saved: dict[str, Any]) -> Common:
    """Bands and classes that a checkpoint's networks see; older ones do not tell wavelengths."""
    nm = {name: np.array(saved[name]) for name in ("wavelengths", "fwhm") if name in saved}
    return Common(Grid(saved["bands"], **nm), tuple(saved["class_names"]))


def check_data(path: Path, saved: dict[str, Any], sha256: dict[str, str], said: dict[str, str],
               class_names: Sequence[str], device: str) -> None:
    """Raise CheckpointError if the scenes' files, what the scene files say, the classes or the kind of device are no
    longer those that a checkpoint was written with: split and random streams would not be the same."""
    changed = sorted(name for name in saved["data"].keys() | sha256.keys() if saved["data"].get(name) != sha256.get(name))
    if changed:
        raise CheckpointError(f"{path} was written with other data: {', '.join(changed)} changed since. Put the old files "
                              "back, or start a new run.")
    before = saved.get("said", said)                                 # older checkpoints do not tell
    if changed := sorted(name for name in before.keys() | said.keys() if before.get(name) != said.get(name)):
        raise CheckpointError(f"{path}: the scene files say something else now: {', '.join(changed)} changed since the run "
                              "was begun. Put the old words back, or start a new run.")
    if list(class_names) != saved["class_names"]:
        raise CheckpointError(f"{path} was written for the classes {', '.join(saved['class_names'])}.")
    if device != saved["device"]:
        raise CheckpointError(f"{path} was written on {saved['device']}; its random streams cannot go on on {device}. "
                              f"Choose a --gpu of that kind.")


def load_discriminator(discriminator: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Put weights into a discriminator; CheckpointError names the first tensor that does not fit.  Those that a module
    calls `growing` may have any number of rows."""
    check_tensors(path, discriminator.state_dict(), state, "this discriminator", getattr(discriminator, "growing", ()))
    if broken := unusable(state.items()):
        raise CheckpointError(f"{path}: {broken}; these weights cannot be applied.")
    discriminator.load_state_dict(state)


def load_training_state(method: Method, state: dict[str, Any], path: Path) -> None:
    """Put networks, optimisers and gradients into a method.  Raises CheckpointError if they are not of such a method,
    or not finite; the method stays as it was then."""
    growing = [f"discriminator.{name}" for name in getattr(method.discriminator, "growing", ())]
    parameters = dict(method.named_parameters())
    check_tensors(path, method.state_dict(), state["networks"], "this method", growing)
    if broken := unusable((name, value) for name, value in state["networks"].items()
                          if name in parameters or name.endswith("running_var")):
        raise CheckpointError(f"{path}: {broken}; the run cannot go on from it.")
    for name, gradient in state["gradients"].items():
        own = parameters.get(name)
        if own is None or (gradient.shape, gradient.dtype) != (own.shape, own.dtype):
            raise CheckpointError(f"{path}: the gradient of {name} does not fit this method.")
    for name, optimiser in method.optimisers.items():
        if name not in state["optimisers"] or not _fits(optimiser, state["optimisers"][name]):
            raise CheckpointError(f"{path}: the state of the optimiser '{name}' does not fit this method.")
    method.load_training_state(state)


def check_tensors(path: Path, ours: dict[str, Tensor], state: dict[str, Any], what: str,
                  growing: Sequence[str] = ()) -> None:
    """Raise CheckpointError if a state dict has other names, shapes or types than ours; it names the first one.

    growing: names of tensors whose number of rows may differ.
    """
    missing, extra = sorted(ours.keys() - state.keys()), sorted(map(str, state.keys() - ours.keys()))
    if missing or extra:
        raise CheckpointError(f"{path} is not {what}: " +
                              (f"it lacks {missing[0]}" if missing else f"it has {extra[0]} besides") +
                              ". Where another version of the program made it, take that one, or train anew.")
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.dtype != ours[name].dtype:
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(f"{path}: {name} is {kind}, not {ours[name].dtype}: these are no weights of {what}.")
        fixed = 1 if name in growing else 0
        if value.dim() != ours[name].dim() or value.shape[fixed:] != ours[name].shape[fixed:]:
            raise CheckpointError(f"{path}: {name} has shape {tuple(value.shape)}, this configuration needs "
                                  f"{tuple(ours[name].shape)}. Was it trained with other bands, patch size or width?")


def _fits(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> bool:
    """Whether a state has the optimiser's groups, and for each parameter what Adam keeps, in its shape."""
    own = optimiser.state_dict()
    if len(own["param_groups"]) != len(state["param_groups"]):
        return False
    for one, other in zip(own["param_groups"], state["param_groups"]):
        if one["params"] != other.get("params") or not isinstance(other.get("lr"), (float, Tensor)) \
                or any(misfit(other.get(name), shape, name) for name, shape in _GROUP.items()):
            return False
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    return all(isinstance(index, int) and 0 <= index < len(parameters) and not misfit(kept, _KEPT, "it")
               and kept["exp_avg"].shape == kept["exp_avg_sq"].shape == parameters[index].shape
               for index, kept in state["state"].items())
