"""BatchNorm, leaky ReLU and the weighted sum of branches, InstanceNorm, and their gradients, in plain PyTorch: the
specification of the CUDA kernels (norm.cu, norm_grad.cu, instance.cu).

Half types are computed in float32.  Parameters and statistics are float32, or float64 as the images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu


def domain_statistics(x: Tensor, domains: int) -> Tensor:
    """Mean and biased variance of each channel in each of the domains, equal parts of x [N,C,H,W] -> [2,domains,C], of
    half types in float32."""
    variance, mean = torch.var_mean(_by_domain(x, domains), dim=(1, 3, 4), correction=0)
    return torch.stack([mean, variance])


def norm_relu_sum(inputs: Sequence[Tensor], gammas: Sequence[Tensor], betas: Sequence[Tensor], statistics: Tensor,
                  weights: Tensor | None, eps: Sequence[float], leak: float) -> Tensor:
    """sum_b weights[b] act((x_b - mean) / sqrt(variance + eps) gamma_b + beta_b): inputs [N,C,H,W], parameters [C],
    statistics [branches,2,domains,C] -> [N,C,H,W]; act(z) = z for z > 0, else leak z."""
    total = 0
    for b, (x, gamma, beta) in enumerate(zip(inputs, gammas, betas)):
        z = _normalised(x, statistics[b], eps[b]) * _wide(gamma) + _wide(beta)
        total = total + leaky_relu(z, leak) * (1 if weights is None else weights[b])
    return total.flatten(0, 1).to(inputs[0].dtype)


def norm_relu_sum_backward(grad: Tensor, inputs: Sequence[Tensor], gammas: Sequence[Tensor], betas: Sequence[Tensor],
                           statistics: Tensor, weights: Tensor | None, eps: Sequence[float],
                           leak: float) -> list[Tensor]:
    """The gradients of norm_relu_sum, through the statistics too, which are those of the inputs: of each input, of
    gammas and betas [branches,2,C], of the weights [branches]."""
    grads, parameters, through_weights = [], [], []
    grad = _by_domain(grad, statistics.shape[2])
    for b, (x, gamma, beta) in enumerate(zip(inputs, gammas, betas)):
        unit, weight = _normalised(x, statistics[b], eps[b]), 1 if weights is None else weights[b]
        d = torch.where(unit * _wide(gamma) + _wide(beta) <= 0, leak * grad, grad)
        total, projected = d.sum((1, 3, 4)), (d * unit).sum((1, 3, 4))                              # [domains,C]
        rows = x.numel() // total.numel()
        slope = weight * gamma * (statistics[b, 1] + eps[b]).rsqrt()
        centred = d - _wide(total) / rows - unit * _wide(projected) / rows
        grads.append((_wide(slope) * centred).flatten(0, 1).to(x.dtype))
        parameters.append(weight * torch.stack([projected.sum(0), total.sum(0)]))
        through_weights.append((gamma * projected + beta * total).sum())
    return [*grads, torch.stack(parameters), torch.stack(through_weights)]


def instance_norm(x: Tensor, styles: Tensor | None, residual: Tensor | None, eps: float,
                  leak: float) -> tuple[Tensor, Tensor]:
    """act((1 + gamma) (x - mean) rstd + beta) + residual with (gamma, beta) = styles [N,2C] or zeros: [N,C,H,W] ->
    [N,C,H,W], and mean and rstd [N,2,C], over the pixels of a channel of a sample."""
    wide = _by_domain(x, len(x))[:, 0]
    variance, mean = torch.var_mean(wide, dim=(2, 3), correction=0)
    statistics = torch.stack([mean, (variance + eps).rsqrt()], 1)
    y = leaky_relu(_styled(wide, statistics, styles)[1], leak)
    return (y if residual is None else y + residual).to(x.dtype), statistics


def instance_norm_backward(grad: Tensor, x: Tensor, statistics: Tensor, styles: Tensor | None,
                           leak: float) -> list[Tensor]:
    """The gradients of instance_norm, through its statistics too: of x, and of styles where there are any."""
    unit, z = _styled(_by_domain(x, len(x))[:, 0], statistics, styles)
    grad = _by_domain(grad, len(x))[:, 0]
    d = torch.where(z <= 0, leak * grad, grad)
    total, projected = d.sum((2, 3)), (d * unit).sum((2, 3))                                         # [N,C]
    centred = d - (total[:, :, None, None] + unit * projected[:, :, None, None]) / x[0, 0].numel()
    slope = statistics[:, 1] * (1 if styles is None else 1 + styles[:, :x.shape[1]])
    more = [] if styles is None else [torch.cat([projected, total], 1)]
    return [(slope[:, :, None, None] * centred).to(x.dtype), *more]


def _styled(x: Tensor, statistics: Tensor, styles: Tensor | None) -> tuple[Tensor, Tensor]:
    """(x - mean) rstd, and that with gain and offset: [N,C,H,W] each."""
    unit = (x - statistics[:, 0, :, None, None]) * statistics[:, 1, :, None, None]
    if styles is None:
        return unit, unit
    gamma, beta = styles[:, :, None, None].chunk(2, 1)
    return unit, unit * (1 + gamma) + beta


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
