"""The released code's state dicts: their names in ours, its checkpoints read and written."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from model.discriminator import Discriminator
from model.errors import CheckpointError
from model.methods import Task
from utils.run import checkpoint
from utils.run.records import misfit

LARGEST = 1_000_000                     # side of a tensor
KEY = "Discriminator"                   # its best.pth is {'Discriminator': state_dict}

_STAGE = {"spectral.involution.": "Spectral_Weight_{}.f_inv_12.", "spectral.conv.": "Spectral_Weight_{}.f_inv_11.",
          "spectral_norm.": "Spectral_Weight_{}.bn_h.", "spatial.conv.": "Spatial_Weight_{}.Conv_weight.",
          "spatial_norm.": "Spatial_Weight_{}.bn_h."}
_DISCRIMINATOR = {"branch_logits": "Weight_Alpha", "fc.": "fc1.", "head.": "cls_head_src."}
_GENERATOR = {"output_logits": "Weight_Alpha{}", "adain.0.": "AdaIN{}.", "norm.": "bn{}.", "decoder.": "generate{}."}
_NETWORK = {"a": 1, "b": 2}             # our generator -> the number in Net1, AdaIN1, Spectral_Weight_11, …


def released_discriminator_name(name: str) -> str:
    """stages.0.spectral.conv.weight -> Spectral_Weight_1.f_inv_11.weight."""
    if match := re.match(r"stages\.(\d)\.(.+)", name):
        return _renamed(match[2], _STAGE, int(match[1]) + 1)
    return _renamed(name, _DISCRIMINATOR, "")


def released_generator_name(name: str) -> str:
    """a.stages.0.spectral.conv.weight -> Net1.Spectral_Weight_11.f_inv_11.weight (a generator under recipe `released`)."""
    network, rest = name.split(".", 1)
    number = _NETWORK[network]
    if match := re.match(r"stages\.(\d)\.(.+)", rest):
        return f"Net{number}." + _renamed(match[2], _STAGE, f"{number}{int(match[1]) + 1}")
    return f"Net{number}." + _renamed(rest, _GENERATOR, number)


def _renamed(name: str, table: dict[str, str], number: int | str) -> str:
    for ours, theirs in table.items():
        if name.startswith(ours):
            return theirs.format(number) + name[len(ours):]
    raise KeyError(f"{name} has no counterpart in the released code")


def export(path: Path, state: dict[str, Tensor]) -> None:
    """Write our discriminator's state dict as the released code's best.pth."""
    checkpoint.write(path, {KEY: {released_discriminator_name(name): value for name, value in state.items()}})


def read_weights(path: Path) -> tuple[dict[str, Tensor], Task, int]:
    """A released best.pth -> (state dict under our names, the sizes that its tensors tell, its width d).

    Tensors only are loaded, never code.  Raises CheckpointError if it is missing, damaged or something else.
    """
    theirs = checkpoint.load(path).get(KEY)
    if not isinstance(theirs, dict):
        raise CheckpointError(f"{path} is not a checkpoint of the released code: it holds no '{KEY}'.")
    if wrong := misfit(theirs, dict[str, Tensor], f"'{KEY}'"):
        raise CheckpointError(f"{path} is not a checkpoint of the released code: {wrong}.")
    try:
        width, bands, *_ = theirs["Spectral_Weight_1.f_inv_11.weight"].shape
        (_, inputs), (classes, *_) = theirs["fc1.weight"].shape, theirs["cls_head_src.weight"].shape
    except KeyError as error:
        raise CheckpointError(f"{path}: its '{KEY}' lacks {error}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: the tensors of its '{KEY}' have other shapes than the released code's.") from error
    if not 1 <= min(width, bands, inputs, classes) <= max(width, bands, inputs, classes) <= LARGEST:
        raise CheckpointError(f"{path}: '{KEY}' holds tensors that are empty, or have a side above {LARGEST:,}.")
    patch_size = 2 * math.isqrt(inputs // width) + 1
    with torch.device("meta"):                  # takes no memory: the sizes are those of single tensors yet
        like = Discriminator(bands, classes, patch_size, width).state_dict()
    ours = {released_discriminator_name(name): name for name in like}
    if extra := sorted(theirs.keys() - ours.keys()):
        raise CheckpointError(f"{path}: '{KEY}' holds {extra[0]}, which this discriminator does not have.")
    found = {ours[name]: value for name, value in theirs.items()}
    checkpoint.check_tensors(path, like, found, "this discriminator")
    return found, Task(bands, classes, patch_size), width
