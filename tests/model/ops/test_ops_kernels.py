"""The CUDA kernels without a GPU: NVRTC compiles them for several chips, and a host compiler builds them to be run.

Here: the compilers, and the involution; patches are in test_ops_patches.py, norms in test_ops_norms_cuda.py.
"""

import re

import pytest
import torch

import emulated
from model.ops import cuda, reference
from operator_inputs import LAYOUTS, between_nans, memory_orders

OPS = ("involution", "involution_grad_input", "involution_grad_kernel")
SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
INVOLUTIONS = [f"{op}_{layout}{pack}_{dtype}" for op in OPS for layout in ("planes", "pixels")
               for dtype, size in SIZES.items() for pack in cuda.PACKS[layout][size]]
NORMS = [f"norm_{op}{pack}_{dtype}" for op in ("moments", "mix", "sums", "gradients")
         for dtype, size in SIZES.items() for pack in cuda.PACKS["norms"][size]]
NORMS += [f"norm_{op}_{dtype}" for op in ("finish_moments", "finish_sums") for dtype in ("float32", "float64")]
INSTANCES = [f"instance_norm{backward}_{dtype}" for backward in ("", "_backward") for dtype in SIZES]
TAPS = ["reorder_taps_float32", "reorder_taps_float64"]
GATHERS = [f"gather_patches_{width}bit" for width in (8, 16, 32, 64)] + ["gather_augmented"]
KERNELS = INVOLUTIONS + NORMS + INSTANCES + TAPS + GATHERS

# C below a group, with 0, 1 and 2 leftover channels; odd, even and unequal sides, batch 1, patches of one pixel
SHAPES = [(2, 1, 5, 5), (1, 2, 7, 5), (2, 3, 5, 5), (3, 4, 5, 7), (1, 5, 9, 8), (2, 48, 3, 4), (1, 103, 5, 5),
          (1, 128, 7, 3), (1, 176, 5, 5), (2, 8, 1, 6), (4, 7, 1, 1)]
HALF_TYPES = (torch.float16, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ("sm_75", "sm_80", "sm_90"))
def test_nvrtc_compiles_every_kernel(arch):
    nvrtc, program = emulated.compiled(cuda.source(), arch, "--ptxas-options=-v")
    log, machine_code = nvrtc.getProgramLog(program), nvrtc.getCUBIN(program)
    assert all(f"{name}\0".encode() in machine_code for name in KERNELS)
    assert log.count("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == len(KERNELS)
    check_packs(nvrtc.getPTX(program).decode())


def check_packs(ptx):
    """A kernel that moves packs has loads and stores of up to 16 bytes, of two or four words each."""
    texts = dict(re.findall(r"\.visible \.entry (\w+)\((.*?)^}", ptx, re.DOTALL | re.MULTILINE))
    assert set(texts) == set(KERNELS)
    for name in INVOLUTIONS:
        pack = int(re.search(r"(\d)_(b?float\d+)$", name)[1])
        words = {8: r"v4\.\w32", 4: r"v4\.\w+", 2: r"v2\.\w+"}.get(pack)
        for access in (r"ld\.global\.nc\.", r"st\.global\."):
            assert bool(words and re.search(access + words, texts[name])) == (pack > 1), (name, access)
    assert re.search(r"st\.global\.v4\.f32", texts["gather_augmented"])
    for dtype, words in (("float32", "v4.f32"), ("float16", "v4.u16"), ("bfloat16", "v4.u16")):
        for op in ("moments", "mix", "sums", "gradients"):
            assert f"ld.global.nc.{words}" in texts[f"norm_{op}4_{dtype}"], (op, dtype)
        assert all(f"st.global.{words}" in texts[f"norm_{op}4_{dtype}"] for op in ("mix", "gradients"))


def make_inputs(shape, dtype, layout="planes", margin=4096):
    """x and grad of the shape, and the kernel, in the layout, with NaN in memory around each, so that a read outside
    one shows."""
    random = torch.Generator().manual_seed(0)
    batch, channels, height, width = shape
    kernel_shape = (batch, reference.group_count(channels), 9, height, width)
    tensors = [torch.randn(size, generator=random, dtype=torch.float64).to(dtype)
               for size in (shape, shape, kernel_shape)]
    image, kernel = memory_orders(layout)
    return [between_nans(tensor, order, margin) for tensor, order in zip(tensors, (image, image, kernel))]


def run_launchers(x, grad, kernel, relu=False):
    return {"y": cuda.launch_involution(x, kernel, relu), "grad_input": cuda.launch_grad_input(grad, kernel, relu),
            "grad_kernel": cuda.launch_grad_kernel(grad, x, kernel, relu)}


def run_reference(x, grad, kernel, relu=False):
    used = kernel.relu() if relu else kernel
    grad_kernel = reference.grad_kernel(grad, x)
    return {"y": reference.forward(x, used), "grad_input": reference.grad_input(grad, used),
            "grad_kernel": torch.where(kernel > 0, grad_kernel, 0) if relu else grad_kernel}


# Sums of up to 15 products of order 1 in another order: a few rounding errors of the sum's type.
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-14), (torch.float32, 4e-6)])
def test_kernels_equal_the_reference(on_host, shape, layout, dtype, tolerance):
    inputs = make_inputs(shape, dtype, layout)
    results = run_launchers(*inputs)
    torch.testing.assert_close(results, run_reference(*inputs), rtol=tolerance, atol=tolerance)
    assert {kernel for kernel, _ in on_host} <= set(KERNELS)
    image, kernel = memory_orders(layout)
    for result, order in zip(results.values(), (image, image, kernel)):
        assert result.permute(order).is_contiguous()


# Summed in float32 and rounded once: within half a unit in the last place of the exact sum, but for float32's errors.
# A sum kept in the half type would be off by several units.
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES[1::2], ids=str)
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_half_kernels_sum_in_float32(on_host, shape, layout, dtype):
    inputs = make_inputs(shape, dtype, layout)
    exact = run_reference(*(tensor.double() for tensor in inputs))
    results = run_launchers(*inputs)
    assert {value.dtype for value in results.values()} == {dtype}
    results = {name: value.double() for name, value in results.items()}
    torch.testing.assert_close(results, exact, rtol=torch.finfo(dtype).eps / 2 * 1.001, atol=4e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 2, 3, 3), (2, 14, 3, 4), (1, 24, 4, 3)], ids=str)
def test_negative_kernels_count_as_zero_with_relu(on_host, shape, layout):
    x, grad, kernel = make_inputs(shape, torch.float32, layout)
    kernel[:, :, 4] = 0                                          # zero is on the side that gets no gradient
    results = run_launchers(x, grad, kernel, relu=True)
    torch.testing.assert_close(results, run_reference(x, grad, kernel, relu=True), rtol=4e-6, atol=4e-6)
    assert not results["grad_kernel"][kernel <= 0].any() and results["grad_kernel"][kernel > 0].any()


@pytest.mark.parametrize("shape, dtype, layout, margin, expected", [
    ((1, 4, 2, 8), torch.float32, "planes", 4096, "planes4_float32"),
    ((1, 4, 2, 8), torch.bfloat16, "planes", 4096, "planes4_bfloat16"),
    ((1, 4, 8, 6), torch.float32, "planes", 4096, "planes1_float32"),
    ((1, 4, 2, 8), torch.float32, "planes", 4097, "planes1_float32"),       # not at a multiple of 16 bytes
    ((1, 48, 3, 3), torch.float32, "tap-major", 4096, "pixels4_float32"),
    ((1, 48, 3, 3), torch.float16, "tap-major", 4096, "pixels8_float16"),
    ((1, 48, 3, 3), torch.float16, "tap-major", 4098, "pixels2_float16"),
    ((1, 128, 3, 3), torch.bfloat16, "tap-major", 4096, "pixels2_bfloat16"),   # 42 groups
    ((1, 103, 3, 3), torch.float32, "tap-major", 4096, "pixels1_float32"),     # an odd number of channels
    ((1, 48, 3, 3), torch.float32, "group-major", 4096, "pixels1_float32"),
    ((1, 48, 3, 8), torch.float64, "planes", 4096, "planes1_float64")])
def test_packs_fill_16_bytes_where_lengths_and_addresses_allow(on_host, shape, dtype, layout, margin, expected):
    run_launchers(*make_inputs(shape, dtype, layout, margin))
    assert [name for name, _ in on_host] == [f"{op}_{expected}" for op in OPS]


def test_kernels_stride_over_what_a_small_grid_leaves(on_host, monkeypatch):
    for limit, blocks in ((cuda.MAX_BLOCKS, 3), (2, 2)):
        monkeypatch.setattr(cuda, "MAX_BLOCKS", limit)
        for layout in LAYOUTS:
            inputs = make_inputs((3, 10, 9, 9), torch.float64, layout)   # 729 sites: three blocks, the last not full
            on_host.clear()
            torch.testing.assert_close(run_launchers(*inputs), run_reference(*inputs), rtol=1e-14, atol=1e-14)
            assert [count for _, count in on_host] == [blocks] * 3


def test_more_work_than_the_kernels_can_count_is_refused(on_host, monkeypatch):
    monkeypatch.setattr(cuda, "MAX_WORK", 100)
    inputs = make_inputs((1, 3, 10, 10), torch.float32)
    with pytest.raises(ValueError, match=r"involution_planes1_float32: \(1, 3, 10, 10\) is too large .* Split the"):
        cuda.launch_involution(inputs[0], inputs[2])


def test_starters_take_mixed_strided_and_empty_tensors(on_host):
    x, grad, kernel = make_inputs((2, 5, 7, 5), torch.float64)
    expected = run_launchers(x, grad, kernel)
    strided = [tensor.transpose(-1, -2).contiguous().transpose(-1, -2) for tensor in (x, grad, kernel)]
    results = run_launchers(*strided)
    assert not strided[0].is_contiguous() and all(result.is_contiguous() for result in results.values())
    torch.testing.assert_close(results, expected, rtol=0, atol=0)
    turned = [tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, grad)]
    results = run_launchers(turned[0], grad, kernel)             # x by pixels, the rest by planes
    torch.testing.assert_close(results, expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(run_launchers(x, turned[1], kernel), expected, rtol=1e-14, atol=1e-14)
    on_host.clear()
    empty = run_launchers(x[:0], grad[:0], kernel[:0])
    assert empty["grad_kernel"].shape == (0, 1, 9, 7, 5) and not on_host
