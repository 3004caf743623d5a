"""BatchNorm, ReLU and the weighted sum of branches as CUDA kernels (norm.cu, norm_grad.cu), registered as `s2amsnet::`
operators in the manner of cuda.py.

Images are taken in channels_last; others are copied into that layout first.  Results are in channels_last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.ops import norms_reference as reference
from model.ops.cuda import pack_of, start

BRANCHES = 2
MOST_SLICES = 256         # parts of a domain's rows, whose sums one thread adds up
ROWS_SUMMED, ROWS_MAPPED = 16, 8          # of a thread, where there are few of them
KERNELS = {"s2amsnet::normalise_branches": 3, "s2amsnet::normalise_branches_backward": 3}     # all others start one


def norm_relu_sum(inputs: Sequence[Tensor], norms: Sequence[nn.BatchNorm2d], weights: Tensor | None,
                  domains: int = 1, leak: float = 0.0) -> Tensor:
    """sum_b weights[b]·leaky_relu(norms[b](inputs[b]), leak): one or two inputs [N,C,H,W] -> [N,C,H,W] in
    channels_last.

    The norms are used and updated as they would be by calling them on each of the domains, equal parts of the batch,
    one after the other.
    """
    gammas, betas, eps = ([getattr(norm, name) for norm in norms] for name in ("weight", "bias", "eps"))
    weights = None if weights is None else weights.to(gammas[0].dtype)
    means, variances, batches = ([getattr(norm, name) for norm in norms] for name in
                                 ("running_mean", "running_var", "num_batches_tracked"))
    if not norms[0].training:
        return apply_norms(inputs, gammas, betas, means, variances, weights, eps, leak)
    before = [count.item() if norm.momentum is None else -1 for norm, count in zip(norms, batches)]
    momenta = [norm.momentum or 0.0 for norm in norms]
    return _NormReluSum.apply(len(norms), eps, leak, domains, before, momenta, weights,
                              *inputs, *gammas, *betas, *means, *variances, *batches)


class _NormReluSum(torch.autograd.Function):
    """Training mode.  PyTorch takes no gradient of an operator that changes its arguments, as running statistics are."""

    @staticmethod
    def forward(ctx, count: int, eps: list[float], leak: float, domains: int, before: list[int], momenta: list[float],
                weights: Tensor | None, *tensors: Tensor) -> Tensor:
        inputs, gammas, betas, *running = (list(tensors[i:i + count]) for i in range(0, len(tensors), count))
        y, statistics = normalise_branches(inputs, gammas, betas, weights, *running, before, momenta, eps, leak,
                                           domains)
        ctx.save_for_backward(statistics, weights, *tensors[:3 * count])
        ctx.eps, ctx.leak, ctx.learns = eps, leak, ctx.needs_input_grad[6] or any(ctx.needs_input_grad[7 + count:])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        statistics, weights, *saved = ctx.saved_tensors
        count = len(statistics)
        inputs, gammas, betas = (saved[i:i + count] for i in range(0, 3 * count, count))
        found = normalise_branches_backward(grad, inputs, gammas, betas, weights, statistics, ctx.eps, ctx.leak,
                                            ctx.learns)
        none = [None] * count
        gradients, through_weights = [*found[:count], *none, *none], None
        if ctx.learns:
            parameters, through_weights = found[count], None if weights is None else found[count + 1]
            gradients[count:] = [*parameters[:, 0], *parameters[:, 1]]
        return None, None, None, None, None, None, through_weights, *gradients, *none, *none, *none


# ---- operators ----

@torch.library.custom_op("s2amsnet::normalise_branches", mutates_args=("means", "variances", "batches"),
                         device_types="cpu")
def normalise_branches(inputs: list[Tensor], gammas: list[Tensor], betas: list[Tensor], weights: Tensor | None,
                       means: list[Tensor], variances: list[Tensor], batches: list[Tensor], before: list[int],
                       momenta: list[float], eps: list[float], leak: float, domains: int) -> tuple[Tensor, Tensor]:
    """Training mode: inputs [N,C,H,W], parameters [C], weights [branches] -> image [N,C,H,W], and the statistics
    [branches,2,domains,C] that it is made with (mean, biased variance).

    Each norm's running statistics (means, variances [C]) move towards those of each domain, one after the other, and its
    batches are counted.  before: its batches so far, where its statistics are plain averages, else -1.
    """
    statistics = torch.stack([reference.domain_statistics(x, domains) for x in inputs])
    rows = inputs[0].numel() // statistics[0, 0].numel()
    for b, measured in enumerate(statistics):
        for domain, (mean, variance) in enumerate(measured.unbind(1)):
            share = momenta[b] if before[b] < 0 else 1 / (before[b] + domain + 1)
            means[b] += share * (mean - means[b])
            variances[b] += share * (variance * (rows / max(rows - 1, 1)) - variances[b])
        batches[b] += domains
    return pixels(reference.norm_relu_sum(inputs, gammas, betas, statistics, weights, eps, leak)), statistics


@torch.library.custom_op("s2amsnet::normalise_branches_backward", mutates_args=(), device_types="cpu")
def normalise_branches_backward(grad: Tensor, inputs: list[Tensor], gammas: list[Tensor], betas: list[Tensor],
                                weights: Tensor | None, statistics: Tensor, eps: list[float], leak: float,
                                learns: bool) -> list[Tensor]:
    """Gradients of the inputs, and where the norms learn of gammas and betas [branches,2,C] and weights [branches]."""
    found = reference.norm_relu_sum_backward(grad, inputs, gammas, betas, statistics, weights, eps, leak)
    return [pixels(image) for image in found[:len(inputs)]] + (found[len(inputs):] if learns else [])


@torch.library.custom_op("s2amsnet::apply_norms", mutates_args=(), device_types="cpu")
def apply_norms(inputs: list[Tensor], gammas: list[Tensor], betas: list[Tensor], means: list[Tensor],
                variances: list[Tensor], weights: Tensor | None, eps: list[float], leak: float) -> Tensor:
    """Evaluation mode, without gradient: statistics [C] as they are."""
    statistics = torch.stack([torch.stack(pair)[:, None] for pair in zip(means, variances)])
    return pixels(reference.norm_relu_sum(inputs, gammas, betas, statistics, weights, eps, leak))


@normalise_branches.register_fake
def _(inputs, gammas, betas, weights, means, variances, batches, before, momenta, eps, leak, domains):
    statistics = gammas[0].new_empty(len(inputs), 2, domains, inputs[0].shape[1])
    return pixels(torch.empty_like(inputs[0])), statistics


@normalise_branches_backward.register_fake
def _(grad, inputs, gammas, betas, weights, statistics, eps, leak, learns):
    return _empty_gradients(inputs, statistics, learns)


@apply_norms.register_fake
def _(inputs, gammas, betas, means, variances, weights, eps, leak):
    return pixels(torch.empty_like(inputs[0]))


# ---- starting the kernels ----

def pixels(image: Tensor) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last)


def _empty_gradients(inputs: Sequence[Tensor], statistics: Tensor, learns: bool) -> list[Tensor]:
    count, _, _, channels = statistics.shape
    parameters = [statistics.new_empty(count, 2, channels), statistics.new_empty(count)] if learns else []
    return [pixels(torch.empty_like(x)) for x in inputs] + parameters


class _Call:
    """A pass over images: tensors as the kernels want them, and how the work is shared out."""

    def __init__(self, inputs: Sequence[Tensor], domains: int, eps: Sequence[float] = ()):
        self.inputs = [pixels(x) for x in inputs]
        self.count, self.domains, self.channels = len(inputs), domains, inputs[0].shape[1]
        self.rows = inputs[0].numel() // (domains * self.channels)
        self.eps = self.paired(list(map(np.float64, eps)))
        self.dtype, self.sums = (str(dtype).removeprefix("torch.") for dtype in
                                 (inputs[0].dtype, accumulator(inputs[0].dtype)))

    def paired(self, values: Sequence) -> tuple:
        """One branch's stands for the other where there is only one."""
        return (*values, *values)[:BRANCHES]

    def branches(self, *parts: Sequence[Tensor]) -> list[Tensor]:
        """x, gamma, beta, mean, variance of each branch, one after the other."""
        return [tensor for each in self.paired(list(zip(*parts))) for tensor in each]

    def slices(self, rows: int, most: int) -> int:
        """Parts of a domain's rows, of so many rows at least, or of more where there would be too many parts."""
        return max(1, min(most, -(-self.rows // rows)))

    def mix(self, branches: list[Tensor], weights: Tensor | None, running: list[Tensor | None], leak: float,
            before: list[int], momenta: list[float]) -> Tensor:
        """The image of branches whose statistics are there; where running ones are given, they move."""
        y = torch.empty_like(self.inputs[0])
        numbers = (*self.eps, np.float64(leak), *map(np.float64, self.paired(momenta)))
        self.images("norm_mix", [*branches, weights, *running, y], self.slices(ROWS_MAPPED, self.rows), numbers,
                    sizes=self.paired(before))
        return y

    def images(self, name: str, tensors: list[Tensor | None], slices: int, numbers: tuple = (), sizes: tuple = (),
               passes: int = 1) -> None:
        """Start a kernel whose threads take packs of channels of a slice's rows."""
        floating = [tensor for tensor in tensors if tensor is not None and tensor.is_floating_point()]
        pack = pack_of("norms", (self.channels,), [*self.inputs, *floating])
        start(f"{name}{pack}_{self.dtype}", tensors,
              (self.count, self.domains, self.channels, slices, self.rows, *sizes), passes * self.domains * slices * (self.channels // pack), numbers)

    def entries(self, name: str, tensors: list[Tensor], slices: int, work: int, numbers: tuple = ()) -> None:
        """Start a kernel with a thread per sum."""
        start(f"{name}_{self.sums}", tensors, (self.count, self.domains, self.channels, slices, self.rows), work,
              numbers)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type of sums, parameters and statistics of images of some type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@normalise_branches.register_kernel("cuda")
def launch_normalise(inputs: list[Tensor], gammas: list[Tensor], betas: list[Tensor], weights: Tensor | None,
                     means: list[Tensor], variances: list[Tensor], batches: list[Tensor], before: list[int],
                     momenta: list[float], eps: list[float], leak: float, domains: int) -> tuple[Tensor, Tensor]:
    call = _Call(inputs, domains, eps)
    slices = call.slices(ROWS_SUMMED, MOST_SLICES)
    statistics = gammas[0].new_empty(call.count, 2, domains, call.channels)
    partial = statistics.new_empty(call.count, domains, slices, 2, call.channels, dtype=torch.float64)
    call.images("norm_moments", [*call.paired(call.inputs), partial], slices, passes=call.count)
    call.entries("norm_finish_moments", [partial, statistics], slices, statistics[:, 0].numel())
    branches = call.branches(call.inputs, gammas, betas, statistics[:, 0], statistics[:, 1])
    running = [tensor for each in call.paired(list(zip(means, variances, batches))) for tensor in each]
    return call.mix(branches, weights, running, leak, before, momenta), statistics


@apply_norms.register_kernel("cuda")
def launch_apply(inputs: list[Tensor], gammas: list[Tensor], betas: list[Tensor], means: list[Tensor],
                 variances: list[Tensor], weights: Tensor | None, eps: list[float], leak: float) -> Tensor:
    call = _Call(inputs, 1, eps)
    return call.mix(call.branches(call.inputs, gammas, betas, means, variances), weights, [None] * 3 * BRANCHES, leak,
                    [-1], [0.0])


@normalise_branches_backward.register_kernel("cuda")
def launch_backward(grad: Tensor, inputs: list[Tensor], gammas: list[Tensor], betas: list[Tensor],
                    weights: Tensor | None, statistics: Tensor, eps: list[float], leak: float,
                    learns: bool) -> list[Tensor]:
    call, grad = _Call(inputs, statistics.shape[2], eps), pixels(grad)
    branches = call.branches(call.inputs, gammas, betas, statistics[:, 0], statistics[:, 1])
    slices = call.slices(ROWS_SUMMED, MOST_SLICES)
    partial = statistics.new_empty(call.domains, slices, call.count, 2, call.channels, dtype=torch.float64)
    sums = partial.new_empty(call.domains, call.count, 3, call.channels)
    found = _empty_gradients(inputs, statistics, learns)
    call.images("norm_sums", [grad, *branches, partial], slices, (*call.eps, np.float64(leak)))
    call.entries("norm_finish_sums", [partial, *branches, sums], slices, sums[:, :, 0].numel(), numbers=call.eps)
    parameters = found[call.count:] or [None, None]
    call.images("norm_gradients", [grad, *branches, weights, sums, *parameters, *call.paired(found[:call.count])],
                call.slices(ROWS_MAPPED, call.rows), (*call.eps, np.float64(leak)))
    return found
