"""What training looks like from inside: gradients of the loss terms, distance of the generated domains from the source,
and how the classifier fares on each domain.  Nothing here changes a state."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from model.graphs import uncompiled


def gradient_norms(domains: dict[str, Tensor], by_term: dict[str, dict[str, Tensor]],
                   parameters: list[nn.Parameter]) -> dict[str, Tensor]:
    """gradient_<term>: norm of the gradient that a loss term gives the parameters behind the domains [N, B, P, P].

    by_term: term -> domain -> the term's gradient on that domain, [N, B, P, P].
    """
    found = {}
    for term, on_domains in by_term.items():
        gradients = torch.autograd.grad([domains[name] for name in on_domains], parameters, list(on_domains.values()),
                                        retain_graph=True, allow_unused=True)
        found[f"gradient_{term}"] = torch.stack([g.norm() for g in gradients if g is not None]).norm()
    return found


def distances(x: Tensor, domains: dict[str, Tensor]) -> dict[str, Tensor]:
    """rms_ratio_<domain>, cosine_<domain>: root mean square of a domain over that of x, and mean cosine between their
    patches, [N, B, P, P] each."""
    found = {}
    for name, domain in domains.items():
        found[f"rms_ratio_{name}"] = domain.square().mean().sqrt() / x.square().mean().sqrt()
        found[f"cosine_{name}"] = functional.cosine_similarity(domain.flatten(1), x.flatten(1)).mean()
    return found


def of_classifier(classifier: nn.Module, domains: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
    """ce_<domain>: cross-entropy (nats) in evaluation mode on each domain [N, B, P, P], y [N]; of the network that
    trains, with its running statistics (weight_averaging and batchnorm_statistics 'source' evaluate another one)."""
    classifier.eval()
    with torch.inference_mode(), uncompiled():
        return {f"ce_{name}": functional.cross_entropy(classifier(image), y) for name, image in domains.items()}


def variance_ratios(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    """variance_ratio_<layer> per BatchNorm: the variance of clean patches over the running one, geometric mean over the
    channels; 1 = the running statistics fit clean patches.  Both come from `running_variances`."""
    return {f"variance_ratio_{name}": (after[name] / before[name]).log().mean().exp() for name in before}


def running_variances(network: nn.Module) -> dict[str, Tensor]:
    """Layer -> a copy of its running variance [C], clamped at the smallest normal float."""
    return {name: module.running_var.clamp_min(torch.finfo(module.running_var.dtype).tiny)
            for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
