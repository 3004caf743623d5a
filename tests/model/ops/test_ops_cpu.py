"""The C++ kernels against the reference."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from model.layers import Involution, norm_relu_sum
from model.ops import cpu, involution, norms_cpu, reference

needs_kernels = pytest.mark.skipif(cpu.unavailable_reason() is not None, reason=f"no C++: {cpu.unavailable_reason()}")
SIZES = [(2, 1, 3, 3), (1, 2, 1, 4), (2, 3, 5, 1), (1, 5, 1, 1), (3, 8, 4, 7), (2, 14, 5, 5), (2, 25, 5, 4),
         (1, 47, 3, 3), (2, 48, 9, 9), (2, 128, 5, 5)]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 0.02}


def image(*shape, dtype=torch.float32, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng).to(dtype).requires_grad_()


def relative(ours, theirs):
    return ((ours.float() - theirs.float()).norm() / theirs.float().norm().clamp_min(1e-20)).item()


def value_and_gradients(operator, inputs):
    y = operator(*inputs)
    pull = image(*y.shape, seed=9).detach().to(y.dtype)
    return y, *torch.autograd.grad(y, inputs, pull)


@needs_kernels
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_involution_equals_the_reference(size, dtype, relu):
    batch, channels, height, width = size
    inputs = image(*size, dtype=dtype), image(batch, reference.group_count(channels), 9, height, width, dtype=dtype)
    results = [value_and_gradients(lambda *both: involution(*both, backend=backend, relu=relu), inputs)
               for backend in ("cpu", "reference")]
    for ours, theirs in zip(*results):
        assert ours.dtype == dtype and relative(ours, theirs) < ROUNDING[dtype]


@needs_kernels
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("reduced", [1, 15, 16, 33])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_generated_involution_equals_convolution_and_involution(size, reduced, relu):
    batch, channels, height, width = size
    taps = 9 * reference.group_count(channels)
    inputs = image(*size), image(batch, reduced, height, width), image(taps, reduced, 1, 1, seed=1), image(taps, seed=2)

    def separate(x, hidden, weight, bias):
        kernel = functional.conv2d(hidden, weight, bias).unflatten(1, (-1, 9))
        return involution(x, kernel, backend="reference", relu=relu)

    results = [value_and_gradients(operator, inputs)
               for operator in (lambda *all_four: cpu.generated_involution(*all_four, relu), separate)]
    for ours, theirs in zip(*results):
        assert relative(ours, theirs) < 1e-5


@needs_kernels
def test_strided_inputs_give_the_same_as_dense_ones():
    x, kernel = image(2, 7, 8, 10)[:, 1:, ::2, ::2], image(2, 4, 9, 8, 10)[:, ::2, :, ::2, ::2]
    assert torch.equal(cpu.involution(x, kernel), cpu.involution(x.clone(), kernel.clone()))
    assert cpu.involution(x[:0], kernel[:0]).shape == (0, 6, 4, 5)


@needs_kernels
@pytest.mark.parametrize("size", [(2, 96, 13, 13), (1, 112, 4, 5), (3, 128, 1, 1), (2, 96, 2, 9)], ids=str)
@pytest.mark.parametrize("out_channels", [96, 144])
def test_winograd_equals_the_direct_convolution(size, out_channels):
    inputs = image(*size), image(out_channels, size[1], 3, 3)
    results = [value_and_gradients(operator, inputs)
               for operator in (cpu.conv3x3, lambda x, weight: functional.conv2d(x, weight, padding=1))]
    assert type(results[0][0].grad_fn).__name__ == "_WinogradBackward"
    for ours, theirs in zip(*results):
        assert relative(ours, theirs) < 2e-6


@needs_kernels
def test_what_the_kernels_cannot_take_goes_to_plain_pytorch():
    """Other types of parameters, nothing, one value per channel, inputs of two sizes."""
    x = image(2, 20, 3, 3).detach()
    with torch.no_grad():
        low = nn.BatchNorm2d(20).bfloat16()
        assert torch.equal(norm_relu_sum([x.bfloat16()], [low], None, "cpu"), functional.relu(low(x.bfloat16())))
        assert norm_relu_sum([x[:0]], [nn.BatchNorm2d(20)], None, "cpu").shape == (0, 20, 3, 3)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            norm_relu_sum([x[:1, :, :1, :1]], [nn.BatchNorm2d(20)], None, "cpu")
        with pytest.raises(RuntimeError):
            norm_relu_sum([x, x[:, :, :2]], [nn.BatchNorm2d(20), nn.BatchNorm2d(20)], torch.ones(2), "cpu")
        wide = image(1, 96, 3, 3)
        with pytest.raises(RuntimeError):
            cpu.conv3x3(wide, image(96, 96, 3, 3).double())
        layer = Involution(20, "relu", "cpu")
        assert layer(x[:0]).shape == (0, 20, 3, 3)
        assert layer.double()(x.double()).dtype == torch.float64


@needs_kernels
def test_a_nan_is_not_hidden_by_a_relu():
    x, norm = image(2, 20, 3, 3).detach(), nn.BatchNorm2d(20)
    x[0, 4, 1, 1] = torch.nan
    assert norms_cpu.norm_relu_sum([x], [norm], None)[:, 4].isnan().all()
    kernel = image(2, 6, 9, 3, 3).detach()
    kernel[0, 0, 4, 1, 1] = torch.nan
    assert cpu.involution(image(2, 20, 3, 3), kernel, relu=True)[0, :3, 1, 1].isnan().all()
    assert cpu.involution(x.bfloat16(), kernel.bfloat16()).isnan().any()


@needs_kernels
def test_the_bits_do_not_depend_on_the_number_of_threads():
    inputs = image(40, 48, 5, 5), image(40, 9, 5, 5), image(144, 9, 1, 1), image(144)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        norm = nn.BatchNorm2d(48)
        y = norms_cpu.norm_relu_sum([cpu.generated_involution(*inputs)], [norm], None)
        results.append([y, norm.running_var, *torch.autograd.grad(y.square().sum(), inputs)])
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))
