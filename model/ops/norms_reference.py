"""BatchNorm, ReLU and the weighted sum of branches, with gradients, in plain PyTorch: the specification of the CUDA
kernels (norm.cu, norm_grad.cu).

Half types are computed in float32.  Parameters and statistics are float32, or float64 as the images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def domain_statistics(x: Tensor, domains: int) -> Tensor:
    """Mean and biased variance of each channel in each of the domains, equal parts of x [N,C,H,W] -> [2,domains,C], of
    half types in float32."""
    variance, mean = torch.var_mean(_by_domain(x, domains), dim=(1, 3, 4), correction=0)
    return torch.stack([mean, variance])


def norm_relu_sum(inputs: Sequence[Tensor], gammas: Sequence[Tensor], betas: Sequence[Tensor], statistics: Tensor,
                  weights: Tensor | None, eps: Sequence[float]) -> Tensor:
    """sum_b weights[b] relu((x_b - mean) / sqrt(variance + eps) gamma_b + beta_b): inputs [N,C,H,W], parameters [C],
    statistics [branches,2,domains,C] -> [N,C,H,W]."""
    total = 0
    for b, (x, gamma, beta) in enumerate(zip(inputs, gammas, betas)):
        z = _normalised(x, statistics[b], eps[b]) * _wide(gamma) + _wide(beta)
        total = total + z.relu() * (1 if weights is None else weights[b])
    return total.flatten(0, 1).to(inputs[0].dtype)


def norm_relu_sum_backward(grad: Tensor, inputs: Sequence[Tensor], gammas: Sequence[Tensor], betas: Sequence[Tensor],
                           statistics: Tensor, weights: Tensor | None, eps: Sequence[float]) -> list[Tensor]:
    """The gradients of norm_relu_sum, through the statistics too, which are those of the inputs: of each input, of
    gammas and betas [branches,2,C], of the weights [branches]."""
    grads, parameters, through_weights = [], [], []
    grad = _by_domain(grad, statistics.shape[2])
    for b, (x, gamma, beta) in enumerate(zip(inputs, gammas, betas)):
        unit, weight = _normalised(x, statistics[b], eps[b]), 1 if weights is None else weights[b]
        d = torch.where(unit * _wide(gamma) + _wide(beta) <= 0, 0, grad)
        total, projected = d.sum((1, 3, 4)), (d * unit).sum((1, 3, 4))                              # [domains,C]
        rows = x.numel() // total.numel()
        slope = weight * gamma * (statistics[b, 1] + eps[b]).rsqrt()
        centred = d - _wide(total) / rows - unit * _wide(projected) / rows
        grads.append((_wide(slope) * centred).flatten(0, 1).to(x.dtype))
        parameters.append(weight * torch.stack([projected.sum(0), total.sum(0)]))
        through_weights.append((gamma * projected + beta * total).sum())
    return [*grads, torch.stack(parameters), torch.stack(through_weights)]


def _by_domain(x: Tensor, domains: int) -> Tensor:
    """[N,C,H,W] -> [domains,N/domains,C,H,W], half types as float32."""
    return (x if x.dtype == torch.float64 else x.float()).unflatten(0, (domains, -1))


def _normalised(x: Tensor, statistics: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) with statistics [2,domains,C]: [N,C,H,W] -> [domains,N/domains,C,H,W]."""
    mean, variance = statistics
    return (_by_domain(x, len(mean)) - _wide(mean)) * _wide((variance + eps).rsqrt())


def _wide(values: Tensor) -> Tensor:
    """[C] or [domains,C], to meet [domains,N/domains,C,H,W]."""
    return values.view(-1, 1, values.shape[-1], 1, 1)
