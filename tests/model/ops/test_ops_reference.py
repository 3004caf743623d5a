"""The operators' definition: the plain PyTorch version against loops that spell the equations out."""

import logging
import re
import sys

import numpy as np
import pytest
import torch

import model.ops as ops
from model.errors import ConfigError
from model.ops import gather_patches, involution, reference, resolve_backend
from model.ops.build import BuildError

CHANNELS = (1, 2, 4, 5, 48, 103, 128, 176)   # below a group, leftovers of one and two, the scenes' band counts
CPU = torch.device("cpu")


def make_inputs(channels, height, width, batch=2, dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    groups = max(1, channels // 3)
    return (torch.randn(batch, channels, height, width, generator=random, dtype=torch.float64).to(dtype),
            torch.randn(batch, groups, 9, height, width, generator=random, dtype=torch.float64).to(dtype))


def involution_by_loops(x, kernel):
    """The equation of docs/method.md, "Involution", one channel and offset at a time."""
    out = np.zeros_like(x)
    channels, height, width = x.shape[1:]
    for c in range(channels):
        g = min(c // 3, kernel.shape[1] - 1)
        for i in range(height):
            for j in range(width):
                for u in (-1, 0, 1):
                    for v in (-1, 0, 1):
                        if 0 <= i + u < height and 0 <= j + v < width:
                            out[:, c, i, j] += kernel[:, g, (u + 1) * 3 + (v + 1), i, j] * x[:, c, i + u, j + v]
    return out


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("height, width", [(5, 5), (7, 4)])
def test_involution_equals_loops(channels, height, width):
    x, kernel = make_inputs(channels, height, width)
    expected = involution_by_loops(x.numpy(), kernel.numpy())
    np.testing.assert_allclose(involution(x, kernel).numpy(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("height, width", [(9, 9), (1, 6), (3, 1), (1, 1)])
def test_involution_equals_loops_in_other_sizes(height, width):
    x, kernel = make_inputs(7, height, width, batch=1)
    expected = involution_by_loops(x.numpy(), kernel.numpy())
    np.testing.assert_allclose(involution(x, kernel).numpy(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("channels", (1, 2, 3, 4, 5, 8))
@pytest.mark.parametrize("batch", (1, 2))
def test_involution_gradients(channels, batch):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(channels, 3, 4, batch)]
    assert torch.autograd.gradcheck(involution, inputs)


def test_involution_second_gradients():
    inputs = [tensor.requires_grad_() for tensor in make_inputs(5, 3, 2, batch=1)]
    assert torch.autograd.gradgradcheck(involution, inputs)


@pytest.mark.parametrize("channels", (1, 4, 8))
def test_gradients_are_the_transposes_of_the_linear_maps(channels):
    x, kernel = make_inputs(channels, 3, 2)
    grad = make_inputs(channels, 3, 2, seed=1)[0]
    product = (reference.forward(x, kernel) * grad).sum()
    torch.testing.assert_close((x * reference.grad_input(grad, kernel)).sum(), product)
    torch.testing.assert_close((kernel * reference.grad_kernel(grad, x)).sum(), product)


@pytest.mark.parametrize("wanted", [0, 1])
def test_only_the_wanted_gradient(wanted):
    inputs = make_inputs(5, 5, 5)
    both = torch.autograd.grad(involution(*(t.requires_grad_() for t in inputs)).square().sum(), inputs)
    alone = [tensor.detach().requires_grad_(index == wanted) for index, tensor in enumerate(inputs)]
    involution(*alone).square().sum().backward()
    assert torch.equal(alone[wanted].grad, both[wanted]) and alone[1 - wanted].grad is None


def test_involution_of_strided_inputs():
    x, kernel = make_inputs(5, 7, 5)
    expected = involution(x, kernel)
    strided = x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    strided_kernel = kernel.repeat_interleave(2, dim=4)[..., ::2]
    assert not strided.is_contiguous() and not strided_kernel.is_contiguous()
    assert torch.equal(involution(strided, strided_kernel), expected)


def test_involution_of_nothing():
    x, kernel = (tensor.requires_grad_() for tensor in make_inputs(4, 5, 5, batch=0))
    y = involution(x, kernel)
    y.sum().backward()
    assert y.shape == x.shape and x.grad.shape == x.shape and kernel.grad.shape == kernel.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_summed_in_float32_and_rounded_once(dtype):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(8, 7, 7, dtype=dtype)]
    wide = [tensor.detach().float().requires_grad_() for tensor in inputs]
    y, y_wide = involution(*inputs), involution(*wide)
    assert y.dtype == dtype and torch.equal(y, y_wide.to(dtype))
    pull = torch.ones_like(y)
    for narrow, full in zip(torch.autograd.grad(y, inputs, pull), torch.autograd.grad(y_wide, wide, pull.float())):
        assert torch.equal(narrow, full.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_results_have_the_inputs_type_and_hold_nothing_else(dtype):
    """A single row is a contiguous view of the frame that it was summed in."""
    x, kernel = make_inputs(1, 1, 6, batch=1, dtype=dtype)
    for made in (reference.forward(x, kernel), reference.grad_input(x, kernel), reference.grad_kernel(x, x)):
        assert made.dtype == dtype and made.untyped_storage().nbytes() == made.numel() * dtype.itemsize


def test_involution_is_deterministic():
    x, kernel = make_inputs(103, 13, 13, dtype=torch.float32)
    assert torch.equal(involution(x, kernel), involution(x, kernel))


@pytest.mark.parametrize("x_shape, kernel_shape, problem", [
    ((2, 6, 5), (2, 2, 9, 5, 5), "expected .N, C, H, W."),
    ((2, 0, 5, 5), (2, 1, 9, 5, 5), "at least one channel"),
    ((2, 6, 5, 5), (2, 3, 9, 5, 5), "= 2 groups for 6 channels"),
    ((2, 6, 5, 5), (1, 2, 9, 5, 5), r"expected \(2, 2, 9, 5, 5\)"),
    ((2, 6, 5, 5), (2, 2, 9, 5, 4), r"expected \(2, 2, 9, 5, 5\)"),
    ((2, 6, 5, 5), (2, 18, 5, 5), r"expected \(2, 2, 9, 5, 5\)"),
])
def test_shapes_that_do_not_fit(x_shape, kernel_shape, problem):
    with pytest.raises(ValueError, match=problem):
        involution(torch.zeros(x_shape), torch.zeros(kernel_shape))


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.int64, torch.int64)])
def test_types_that_do_not_fit(dtypes):
    with pytest.raises(ValueError, match="same type"):
        involution(torch.zeros(1, 3, 5, 5, dtype=dtypes[0]), torch.zeros(1, 1, 9, 5, 5, dtype=dtypes[1]))


def test_devices_that_do_not_fit():
    with pytest.raises(ValueError, match="the kernel on meta"):
        involution(torch.zeros(1, 3, 5, 5), torch.zeros(1, 1, 9, 5, 5, device="meta"))
    with pytest.raises(ValueError, match="the centres on meta"):
        gather_patches(torch.zeros(1, 5, 5), torch.zeros(1, 2, dtype=torch.int64, device="meta"), 3)


def test_autocast_casts_both_and_returns_gradients_in_the_leaves_types():
    x, kernel = make_inputs(5, 5, 5, dtype=torch.float32)
    kernel = kernel.bfloat16()
    expected = involution(x.bfloat16(), kernel)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = involution(x, kernel)
    y.float().sum().backward()
    assert torch.equal(y, expected) and x.grad.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert involution(*make_inputs(5, 5, 5)).dtype == torch.float64


@pytest.mark.slow
def test_involution_compiles_without_a_break():
    x, kernel = (tensor.requires_grad_() for tensor in make_inputs(5, 5, 5, dtype=torch.float32))

    def loss(x, kernel):
        return (involution(x.tanh(), kernel, backend="reference") ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(x, kernel), (x, kernel))
    for ours, theirs in zip(torch.autograd.grad(compiled(x, kernel), (x, kernel)), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x, kernel), loss(x, kernel), rtol=1e-2, atol=0)


@pytest.mark.parametrize("size", (1, 5, 7, 9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int16])
def test_gather_equals_padded_slices(size, dtype):
    height, width, radius = 11, 6, size // 2
    cube = (1000 * torch.rand(4, height, width, generator=torch.Generator().manual_seed(1))).to(dtype)
    centres = [(0, 0), (0, 5), (10, 0), (10, 5), (0, 3), (4, 0), (10, 2), (5, 5), (5, 3), (5, 3)]
    padded = np.pad(cube.double().numpy(), ((0, 0), (radius, radius), (radius, radius)), mode="symmetric")
    expected = np.stack([padded[:, r:r + size, c:c + size] for r, c in centres])
    patches = gather_patches(cube, torch.tensor(centres), size)
    assert patches.dtype == dtype and patches.is_contiguous()
    np.testing.assert_array_equal(patches.double().numpy(), expected)


def test_gather_from_a_cube_stored_by_pixel():
    cube = torch.randn(4, 8, 7)
    centres = torch.tensor([[0, 6], [7, 2], [3, 3]])
    by_pixel = cube.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(gather_patches(by_pixel, centres, 5), gather_patches(cube, centres, 5))


def test_gather_of_the_largest_patch_and_of_none():
    cube = torch.arange(12.).view(1, 3, 4)
    patch = gather_patches(cube, torch.tensor([[2, 3]]), 7)[0, 0]
    assert patch[0].tolist() == [0, 1, 2, 3, 3, 2, 1] and patch[:, 3].tolist() == [3, 3, 7, 11, 11, 7, 3]
    assert gather_patches(cube, torch.empty(0, 2, dtype=torch.int64), 5).shape == (0, 1, 5, 5)
    with torch.inference_mode():
        assert gather_patches(cube, torch.tensor([[1, 1]]), 1).item() == 5


@pytest.mark.parametrize("shape, centres, size, problem", [
    ((2, 8, 1), [[0, 0]], 5, "8 x 1 pixels cannot be mirrored 2 pixels beyond its edge.*at most 3"),
    ((2, 8, 8), [[0, 0]], 4, "odd patch size"),
    ((2, 8, 8), [[0, 0]], -1, "odd patch size"),
    ((8, 8), [[0, 0]], 3, r"expected real \[B, H, W\]"),
    ((2, 8, 8), [[0, 0, 0]], 3, r"expected int64 \[N, 2\]"),
    ((2, 8, 8), [[0., 0.]], 3, r"expected int64 \[N, 2\]"),
    ((2, 8, 8), [[0, 0], [7, 8]], 3, r"centre \(7, 8\) lies outside the scene of 8 x 8"),
    ((2, 8, 8), [[-1, 0]], 3, r"centre \(-1, 0\) lies outside"),
])
def test_gather_arguments_that_do_not_fit(shape, centres, size, problem):
    with pytest.raises(ValueError, match=problem):
        gather_patches(torch.zeros(shape), torch.tensor(centres), size)


def test_unknown_backend():
    with pytest.raises(ConfigError, match="backend 'numpy' is unknown. Choose one of auto, reference, cpu, cupy"):
        involution(*make_inputs(3, 5, 5), backend="numpy")


def test_cupy_needs_cuda_tensors():
    with pytest.raises(ConfigError, match="needs CUDA tensors.*on 'cpu'.*'reference'"):
        involution(*make_inputs(3, 5, 5), backend="cupy")
    with pytest.raises(ConfigError, match="needs CUDA tensors"):
        gather_patches(torch.zeros(2, 8, 8), torch.tensor([[0, 0]]), 3, backend="cupy")


@pytest.fixture
def fresh_choice(caplog):
    """The log at INFO, with every earlier choice of a backend forgotten, before and after."""
    ops._resolve.cache_clear()
    caplog.set_level(logging.INFO, logger="model.ops")
    yield caplog
    ops._resolve.cache_clear()


def test_choice_is_logged_once(fresh_choice):
    assert [resolve_backend("reference", CPU) for _ in range(3)] == ["reference"] * 3
    assert [record.getMessage() for record in fresh_choice.records] == ["backend on cpu: reference"]


def test_auto_takes_the_kernels_that_can_be_built(fresh_choice, monkeypatch):
    monkeypatch.setattr(ops.cpu, "unavailable_reason", lambda: None)
    assert resolve_backend("auto", CPU) == "cpu"
    with pytest.raises(ConfigError, match="backend 'cpu' cannot run: the device is cuda:0, not a CPU"):
        resolve_backend("cpu", torch.device("cuda", 0))


def test_without_a_compiler_the_reference_serves_and_says_why(fresh_choice, monkeypatch):
    missing = BuildError("there is no C++ compiler ('c++')", "Install a C++ compiler (g++ or clang++)")
    monkeypatch.setattr(ops.cpu, "unavailable_reason", lambda: str(missing))
    assert [resolve_backend("auto", CPU) for _ in range(2)] == ["reference"] * 2
    assert [record.getMessage() for record in fresh_choice.records] == [
        "backend on cpu: reference, since cpu cannot run: there is no C++ compiler ('c++'). Install a C++ compiler "
        "(g++ or clang++) for the faster kernels."]
    with pytest.raises(ConfigError, match="backend 'cpu' cannot run: there is no C.. compiler"):
        resolve_backend("cpu", CPU)


@pytest.mark.parametrize("version, installed, remedy", [
    ("13.0", {"cupy-cuda13x": "14.2.0"}, 'with pip install "cupy-cuda13x[ctk]"'),
    ("12.8", {}, 'with pip install "cupy-cuda12x[ctk]"'),
    ("12.8", {"cupy-cuda13x": "14.2.0"}, 'with pip uninstall cupy-cuda13x, then pip install "cupy-cuda12x[ctk]"'),
    ("13.0", {"cupy": "14.2.0", "cupy-cuda12x": "13.6.0"},
     'with pip uninstall cupy cupy-cuda12x, then pip install "cupy-cuda13x[ctk]"')])
def test_auto_without_cupy_says_why(fresh_choice, monkeypatch, version, installed, remedy):
    monkeypatch.setitem(sys.modules, "cupy.cuda.compiler", None)
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(ops.cuda, "packages", lambda: installed)
    device = torch.device("cuda", 0)
    assert resolve_backend("auto", device) == "reference"
    assert "reference, since cupy cannot run: CuPy cannot be imported" in fresh_choice.text
    with pytest.raises(ConfigError, match=f"CuPy cannot be imported.*{re.escape(remedy)}"):
        resolve_backend("cupy", device)


def test_a_pytorch_without_cuda_is_what_to_replace(fresh_choice, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match="was built without CUDA. Install a PyTorch that is built for CUDA"):
        resolve_backend("cupy", torch.device("cuda", 0))


def test_cupy_is_used_where_it_can_run(fresh_choice, monkeypatch):
    monkeypatch.setattr(ops.cuda, "unavailable_reason", lambda device: None)
    assert resolve_backend("auto", torch.device("cuda", 1)) == "cupy"
    assert "backend on cuda:1: cupy" in fresh_choice.text
    x, kernel = (tensor.requires_grad_() for tensor in make_inputs(5, 5, 5))
    registered = involution(x, kernel, backend="cupy")
    assert "s2amsnet" in registered.grad_fn.name() and "s2amsnet" not in involution(x, kernel).grad_fn.name()
    assert torch.equal(registered, involution(x, kernel))
