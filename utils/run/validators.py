"""Label-free validators of the literature, for comparison with `shifted-source`.

They use unlabelled target: the classifier's outputs on target pixels, no label.  They are recorded (--validators) and
never used for training or selection.  Each is returned so that higher is better.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from datasets.patches import PatchSampler
from model.methods import Method
from utils.run.predict import BATCH

USES = "unlabelled target"
TEMPERATURE = 0.05        # of SND, the paper's


def validate(method: Method, unlabelled: PatchSampler) -> dict[str, float | str]:
    """All validators of a method, in evaluation mode, on unlabelled target patches; and what they use."""
    logits = torch.cat([method.predict(x) for x, _ in unlabelled.in_order(BATCH)]).double()
    return {"entropy": entropy(logits), "im": information_maximisation(logits),
            "snd": soft_neighbourhood_density(logits), "uses": USES}


def _entropy(log_p: Tensor) -> Tensor:
    """Entropy (nats) of distributions along the last axis, from their logarithms; 0·log 0 = 0."""
    return torch.special.entr(log_p.exp()).sum(-1)


def entropy(logits: Tensor) -> float:
    """−mean H(p) of p = softmax(logits [N, K]), nats: confident answers are taken for good ones.

    Morerio, Cavazza, Murino, "Minimal-entropy correlation alignment", ICLR 2018.
    """
    return -float(_entropy(logits.log_softmax(1)).mean())


def information_maximisation(logits: Tensor) -> float:
    """H(mean p) − mean H(p) of p = softmax(logits [N, K]), nats: confident, but not always the same answer.

    Musgrave, Belongie, Lim, "Three new validators and a large-scale benchmark ranking", arXiv 2208.07360.
    """
    log_p = logits.log_softmax(1)
    return float(_entropy(log_p.logsumexp(0) - math.log(len(logits))) - _entropy(log_p).mean())


def soft_neighbourhood_density(logits: Tensor, temperature: float = TEMPERATURE) -> float:
    """Mean entropy (nats) of each sample's distribution over the others, softmax(cosine / temperature) of the outputs
    p = softmax(logits [N, K]): dense neighbourhoods are taken for good classes.  Raises ValueError for N < 2.

    Saito et al., "Tune it the right way: unsupervised validation of domain adaptation via soft neighborhood density",
    ICCV 2021.
    """
    if len(logits) < 2:
        raise ValueError("soft_neighbourhood_density needs at least two samples")
    outputs = functional.normalize(logits.softmax(1), dim=1)
    similarity = outputs @ outputs.T / temperature
    similarity.fill_diagonal_(-torch.inf)             # no sample is a neighbour of its own
    return float(_entropy(similarity.log_softmax(1)).mean())
