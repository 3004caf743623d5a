"""The C++ kernels of norms against PyTorch's own."""

import pytest
import torch
from test_ops_cpu import image, needs_kernels, relative, value_and_gradients
from torch import nn
from torch.nn import functional

from model.layers import AdaIN, BlurDownsample, styled
from model.ops import norms_cpu


@needs_kernels
@pytest.mark.parametrize("domains", [1, 3])
@pytest.mark.parametrize("channels,size", [(1, 3), (7, 5), (25, 4), (48, 3)])
@pytest.mark.parametrize("count", [1, 2])
def test_norm_relu_sum_equals_its_parts(channels, size, count, domains):
    """Output, all gradients, running statistics; then evaluation mode."""
    weights = torch.tensor([0.3, 0.7][:count], requires_grad=True) if count == 2 else None
    inputs = [image(6, channels, size, size, seed=i) for i in range(count)]
    results = []
    for operator in (norms_cpu.norm_relu_sum, plain_norm_relu_sum):
        norms = [nn.BatchNorm2d(channels, momentum=momentum) for momentum in (0.1, None)[:count]]
        for i, norm in enumerate(norms):
            norm.weight.data, norm.bias.data = image(channels, seed=3 + i).data, image(channels, seed=5 + i).data
        wanted = [*inputs, *(p for norm in norms for p in norm.parameters()), *([weights] if count == 2 else [])]
        for _ in range(2):
            found = value_and_gradients(lambda *_: operator([x * 3 + 50 for x in inputs], norms, weights, domains), wanted)
        buffers = [buffer.float() for norm in norms for buffer in norm.buffers()]
        for norm in norms:
            norm.eval()
        with torch.no_grad():
            evaluated = operator([x * 3 + 50 for x in inputs], norms, weights)
        results.append(([found[0], *buffers, evaluated], found[1:]))
    (values, gradients), (true_values, true_gradients) = results
    assert all(relative(ours, theirs) < 1e-5 for ours, theirs in zip(values, true_values))
    for ours, theirs in zip(gradients, true_gradients):
        assert relative(ours, theirs) < 1e-4 or theirs.norm() < 1e-3       # of x: nothing is left in one value's norm


def plain_norm_relu_sum(inputs, norms, weights, domains=1):
    normalised = [torch.cat([norm(part) for part in x.chunk(domains)]) for norm, x in zip(norms, inputs)]
    branches = [functional.relu(x) for x in normalised]
    return sum(branches if weights is None else [w * branch for w, branch in zip(weights, branches)])


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 2, 2, 1), (3, 5, 4, 7), (2, 3, 3, 8), (4, 5, 5, 24), (2, 13, 13, 16)], ids=str)
@pytest.mark.parametrize("relu, blur, residual", [(True, True, False), (True, False, False), (False, False, True),
                                                  (False, True, True)])
def test_instance_norm_equals_its_parts(shape, relu, blur, residual):
    """In float64 the parts are the truth.  x lies far from zero."""
    def parts(x, *more):
        y = functional.instance_norm(x.permute(0, 3, 1, 2), eps=1e-5)
        y = functional.relu(y) if relu else y
        y = (BlurDownsample(shape[3]).to(x.dtype)(y) if blur else y).permute(0, 2, 3, 1)
        return y + more[0] if more else y

    def fused(x, *more):
        return norms_cpu.instance_norm(x, relu=relu, blur=blur, residual=more[0] if more else None)

    x = (image(*shape) * 2 + 30).detach()
    given = [x] + ([image(*parts(x).shape, seed=1).detach()] if residual else [])
    ours, truth = ([each for each in value_and_gradients(operator, [t.to(dtype).requires_grad_() for t in given])]
                   for operator, dtype in ((fused, torch.float32), (parts, torch.float64)))
    for one, other in zip(ours, truth):
        torch.testing.assert_close(one, other.float(), rtol=1e-3, atol=5e-5)


@needs_kernels
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("shape", [(2, 1, 2, 3), (5, 7, 3, 4), (4, 24, 5, 5), (3, 40, 9, 9)], ids=str)
def test_styled_equals_its_parts(shape, with_norm):
    """Output, all gradients and the BatchNorm's running statistics, whose shares of small variances count."""
    found = []
    for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        torch.manual_seed(0)
        adain, norm = AdaIN(shape[1]), nn.BatchNorm2d(shape[1]) if with_norm else nn.Identity()
        if with_norm:
            norm.weight.data.uniform_(-1, 1)
            norm.bias.data.uniform_(-1, 1)
        adain, norm = adain.to(dtype), norm.to(dtype)
        h = (0.01 * image(*shape)).detach().to(dtype).requires_grad_()
        z = image(shape[0], 2, seed=1).detach().to(dtype)
        wanted = [h, *adain.parameters(), *norm.parameters()]
        values = value_and_gradients(lambda *_: styled(h, z, adain, norm, 0.01, backend), wanted)
        found.append([*values, *(buffer for buffer in norm.buffers())])
    for ours, theirs in zip(*found):
        assert relative(ours, theirs) < 1e-4


@needs_kernels
def test_styled_in_evaluation_mode_uses_the_running_statistics():
    adain, norm = AdaIN(6), nn.BatchNorm2d(6).eval()
    norm.running_mean.uniform_(-1, 1)
    h, z = image(3, 6, 4, 4).detach(), image(3, 2, seed=1).detach()
    assert torch.equal(styled(h, z, adain, norm, 0.01, "cpu"), functional.leaky_relu(norm(adain(h, z)), 0.01))


@needs_kernels
def test_the_bits_of_norms_do_not_depend_on_the_number_of_threads():
    x, styles, norm = image(37, 24, 5, 5), image(37, 48, seed=1), nn.BatchNorm2d(24)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        y = norms_cpu.adaptive_norm(x, styles, norm, 0.01)
        z = norms_cpu.instance_norm(y.permute(0, 2, 3, 1), relu=True, blur=True)
        results.append([y, z, *torch.autograd.grad(z.square().sum(), (x, styles, *norm.parameters()))])
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))
