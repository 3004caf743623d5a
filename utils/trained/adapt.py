"""Test-time adaptation: BatchNorm of trained weights set anew on the unlabelled pixels of the scene that is mapped.

    bn    the running statistics become those of the scene (Li et al., Pattern Recognition 80, 2018)
    tent  BatchNorm's scale and shift are trained first, to make the predictions decided: one pass over the scene with
          the entropy of the predictions as the loss and statistics of the batch (Wang et al., ICLR 2021)
"""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from datasets.patches import PatchSampler
from model.errors import ConfigError
from model.methods import Method
from model.states import reestimate_statistics

BN, TENT = "bn", "tent"
MOST_PIXELS = 8192            # of the scene, evenly spread
BATCH = 256
RATE = 1e-3                   # of Adam, as Tent has it


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
