"""Test-time adaptation of trained weights to the unlabelled pixels of the scene that is mapped.

    bn    BatchNorm: the running statistics become those of the scene (Li et al., Pattern Recognition 80, 2018)
    tent  BatchNorm's scale and shift are trained first, to make the predictions decided: one pass over the scene with
          the entropy of the predictions as the loss and statistics of the batch (Wang et al., ICLR 2021)
    prior the shares of the classes: those of the scene are estimated by expectation-maximisation, and the probabilities
          multiplied by their ratio to those of training (Saerens, Latinne & Decaestecker, Neural Computation 14, 2002)
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from datasets.patches import PatchSampler
from model.errors import ConfigError
from model.methods import Method
from model.states import reestimate_statistics
from utils.trained.load import Trained

BN, TENT, PRIOR = "bn", "tent", "prior"
MOST_PIXELS = 8192            # of the scene, evenly spread
BATCH = 256
RATE = 1e-3                   # of Adam, as Tent has it
LEAST_SHARE = 1e-3            # of a class in a scene, so that none is ruled out (a half of an equal share at most)
STEADY, MOST_ROUNDS = 1e-6, 1000        # of a share from round to round, and rounds of expectation-maximisation


def adapt(method: Method, sampler: PatchSampler, how: str) -> None:
    """Adapt the classifier, in place, to a sampler's patches.  Raises ConfigError if it has no BatchNorm."""
    network = method.discriminator
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        raise ConfigError(f"The classifier of method '{method.settings.method}' has no BatchNorm to adapt.")
    if how == TENT:
        network.requires_grad_(False).train()
        parameters = [parameter.requires_grad_() for norm in norms for parameter in (norm.weight, norm.bias)]
        optimiser = torch.optim.Adam(parameters, lr=RATE)
        order = torch.randperm(len(sampler), generator=torch.Generator().manual_seed(0)).to(sampler.labels.device)
        for index in order.split(BATCH):
            if len(index) < 2:
                continue                                   # no statistics of a batch
            log_p = network(sampler.patches(index)).log_softmax(1)
            optimiser.zero_grad()
            (-(log_p.exp() * log_p).sum(1).mean()).backward()
            optimiser.step()
        network.requires_grad_(False)
    reestimate_statistics(network, sampler.in_order(BATCH))
    network.eval()


def training_shares(trained: Trained) -> np.ndarray:
    """Shares [K] of the classes in what a run trained on: of its training pixels, or equal ones with balanced batches.
    A class without a pixel counts as if it had one.  Raises ConfigError if the run does not tell them."""
    if trained.run is None:
        raise ConfigError("--adapt prior needs the class shares of the training pixels, which --weights do not tell. "
                          "Give a run (--run), or leave --adapt out.")
    counts = trained.run.read_run().get("training_pixels")
    if counts is None or len(counts) != trained.task.n_classes:
        raise ConfigError(f"{trained.run.run} does not say how many pixels of each class were trained on (older "
                          "programs did not write it), and --adapt prior needs that. Train it again, or leave "
                          "--adapt out.")
    weights = np.ones(len(counts)) if trained.config.balanced_batches == "on" else np.maximum(counts, 1)
    return weights / weights.sum()


def scene_shares(probabilities: np.ndarray, trained_on: np.ndarray) -> np.ndarray:
    """Shares [K] of the classes in a scene, from the probabilities [N, K] of its pixels under those of training [K]."""
    likelihood, shares = probabilities.astype(np.float64) / trained_on, trained_on
    for _ in range(MOST_ROUNDS):
        posterior = likelihood * shares
        before, shares = shares, (posterior / posterior.sum(1, keepdims=True)).mean(0)
        if np.abs(shares - before).max() < STEADY:
            break
    least = min(LEAST_SHARE, 0.5 / len(shares))
    return least + (1 - least * len(shares)) * shares
