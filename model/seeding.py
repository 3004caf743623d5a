"""One random generator per purpose, all from one seed, so that no purpose disturbs another."""

from __future__ import annotations

import json

import numpy as np
import torch

PURPOSES = ("split", "initialisation", "mixing", "batches", "augmentation", "noise", "gain", "target")
_NUMPY = ("split", "initialisation", "mixing")    # scalar draws: shuffles, seeds, Beta-distributed lambdas
_ON_DEVICE = ("augmentation", "noise", "gain", "target")     # drawn where the patches lie


class Streams:
    """The run's generators, one attribute per purpose: numpy's for scalar draws, torch's for tensors."""

    def __init__(self, seed: int, device: torch.device):
        for purpose, sequence in zip(PURPOSES, np.random.SeedSequence(seed).spawn(len(PURPOSES))):
            if purpose in _NUMPY:
                generator = np.random.default_rng(sequence)
            else:
                generator = torch.Generator(device if purpose in _ON_DEVICE else "cpu")
                generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
            setattr(self, purpose, generator)

    def state_dict(self) -> dict[str, torch.Tensor | str]:
        """Every generator's state, as a checkpoint keeps it."""
        return {purpose: json.dumps(getattr(self, purpose).bit_generator.state) if purpose in _NUMPY
                else getattr(self, purpose).get_state() for purpose in PURPOSES}

    def load_state_dict(self, state: dict[str, torch.Tensor | str]) -> None:
        """Set every generator's state."""
        for purpose in PURPOSES:
            generator = getattr(self, purpose)
            if purpose in _NUMPY:
                generator.bit_generator.state = json.loads(state[purpose])
            else:
                generator.set_state(state[purpose])
