"""Replay values of the released code's way from the files to a batch (docs/fidelity.md, "Recorded values")."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.harmonize import unit_spectra
from datasets.patches import PatchSampler, place
from datasets.scene import Scene
from datasets.splits import labelled_pixels, split_scene
from utils.released.recording import Line, ParityFileError

MARKS = {"cube", "labels"}           # what a recording of this kind holds
EXACT, ROUNDED = 0.0, 1e-6           # limits: of what is counted or chosen, and of spectra
LAYOUTS = (torch.contiguous_format, torch.channels_last)         # each has a gather of its own


class DataRecording:
    """A recorded data path with checked access: cube [H, W, B], labels [H, W], and what the released code makes of
    them, in whole numbers, float32 or bool."""

    def __init__(self, path: Path, tensors: dict[str, Tensor]):
        self.path, self.tensors = path, tensors
        self.cube = self.get("cube", (-1, -1, -1))
        self.labels = self.get("labels", self.cube.shape[:2])
        if not self.cube.size or not np.isfinite(self.cube).all() or self.cube.min() < 0 or not self.cube.max() > 0:
            raise ParityFileError(f"{path}: cube must hold finite values, none below 0 and some above.")
        if self.labels.dtype.kind != "i" or not 0 <= self.labels.min() <= self.labels.max() <= self.labels.size \
                or not self.labels.any():
            raise ParityFileError(f"{path}: labels must be whole numbers from 0, and some above 0.")
        self.patches, self.ratios = self._numbers("patches", r"[1-9]\d?"), self._numbers("train", r"0\.\d{1,6}")
        if wrong := [size for size in self.patches if int(size) % 2 == 0 or int(size) // 2 > min(self.labels.shape)]:
            raise ParityFileError(f"{path}: patches_{wrong[0]} must have an odd size that the scene can be mirrored "
                                  "for.")

    def _numbers(self, kind: str, number: str) -> list[str]:
        """The numbers N of the tensors KIND_N."""
        found = [name.removeprefix(f"{kind}_") for name in self.tensors if name.startswith(f"{kind}_")]
        if wrong := [each for each in found if not re.fullmatch(number, each) or not float(each)]:
            raise ParityFileError(f"{self.path}: {kind}_{wrong[0]} is no quantity of a data path.")
        return sorted(found, key=float)

    def get(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A recorded tensor, its shape checked (-1: any size)."""
        if name not in self.tensors:
            raise ParityFileError(f"{self.path} lacks {name}.")
        value = self.tensors[name]
        if value.dtype not in (torch.float32, torch.int64, torch.int32, torch.bool):
            raise ParityFileError(f"{self.path}: {name} holds {value.dtype}, which no such quantity is.")
        if value.dim() != len(shape) or any(want not in (-1, have) for want, have in zip(shape, value.shape)):
            raise ParityFileError(f"{self.path}: {name} has shape {tuple(value.shape)}, its scene says {tuple(shape)}.")
        return value.numpy()


def replay(path: Path, tensors: dict[str, Tensor]) -> Iterator[Line]:
    """A line per quantity: preprocessing, labelled pixels, patches of every size, the split at every ratio.

    Spectra are compared by their largest difference, the others by how many values differ.  Raises ParityFileError if
    the recording lacks something or holds what no such scene has.
    """
    recording = DataRecording(path, tensors)
    names = tuple(f"class {k}" for k in range(1, recording.labels.max() + 1))
    scene = Scene("the recorded scene", recording.cube.astype(np.float32), recording.labels.astype(np.int64), names)
    spectra, (positions, classes) = unit_spectra(scene.cube), labelled_pixels(scene.labels)
    yield Line("preprocessed", _largest(recording.get("preprocessed", spectra.shape) - spectra), ROUNDED)
    for name, ours in (("centres", positions), ("classes", classes + 1)):
        yield Line(name, float((recording.get(name, ours.shape) != ours).sum()), EXACT)
    for size in map(int, recording.patches):
        recorded = recording.get(f"patches_{size}", (len(positions), spectra.shape[2], size, size))
        samplers = (PatchSampler(place(spectra, torch.device("cpu")), positions, classes, size, "reference",
                                 memory_format=layout) for layout in LAYOUTS)
        differences = [_largest(sampler.patches(torch.arange(len(sampler))).numpy() - recorded) for sampler in samplers]
        yield Line(f"patches_{size}", float(np.max(differences)), ROUNDED)
    for ratio in recording.ratios:
        recorded, trained = recording.get(f"train_{ratio}", scene.shape), np.zeros(scene.shape, bool)
        split = split_scene(scene, float(ratio), "released", 1, np.random.default_rng(0), complete=False)
        trained[tuple(split.train.T)] = True
        yield Line(f"train_{ratio}", float((recorded != trained).sum()), EXACT)


def _largest(difference: np.ndarray) -> float:
    return float(np.abs(difference).max())
