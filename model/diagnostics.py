"""What training looks like from inside: gradients of the loss terms, distance of the generated domains from the source,
and how the classifier fares on each domain.  Nothing here changes a state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from model.generator import NOISE_DIM, STAGES
from model.graphs import uncompiled

if TYPE_CHECKING:
    from model.s2amsnet import S2AMSnet


def of_generators(method: S2AMSnet, x: Tensor, domains: dict[str, Tensor]) -> dict[str, Tensor]:
    """gradient_<term>: norm of the gradient that a term of the max step, before its weight, gives the generators.
    rms_ratio_<g>, cosine_<g>: root mean square of x̂_g over that of x, and mean cosine between their patches."""
    parameters, found = list(method.generators.parameters()), {}
    for term, pulls in pulls_on_domains(method, x, domains).items() if parameters else ():
        gradients = torch.autograd.grad([domains[name] for name in pulls], parameters, list(pulls.values()),
                                        retain_graph=True, allow_unused=True)
        found[f"gradient_{term}"] = torch.stack([g.norm() for g in gradients if g is not None]).norm()
    for name in method.names:
        found[f"rms_ratio_{name}"] = domains[name].square().mean().sqrt() / x.square().mean().sqrt()
        found[f"cosine_{name}"] = functional.cosine_similarity(domains[name].flatten(1), x.flatten(1)).mean()
    return found


def pulls_on_domains(method: S2AMSnet, x: Tensor, domains: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Gradients of the max step's terms, before their weights, on the domains that they reach: term -> domain -> it.

    Term by term and group by group, as in the max step, so that no more memory is needed than there.
    """
    leaves, found = {name: domain.detach().requires_grad_() for name, domain in domains.items()}, {}

    def collect(terms: dict[str, Tensor], images: dict[str, Tensor]) -> None:
        for term, value in terms.items():
            gradients = torch.autograd.grad(value, list(images.values()), allow_unused=True)
            found.setdefault(term, {}).update({n: g for n, g in zip(images, gradients) if g is not None})

    for group in method.coupled_passes(leaves) if method.adversarial else ():
        collect(method.adversarial_terms(group), group)
    collect(method.semantic_terms(x, leaves), leaves)
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


def fixed_noise(method: S2AMSnet, n: int) -> Tensor:
    """The same z [generators·3, N, 2] at every call, scaled as the method's own."""
    noise = torch.randn((len(method.names) * STAGES, n, NOISE_DIM), generator=torch.Generator().manual_seed(0))
    return method.noise_scale * noise.to(method.device)
