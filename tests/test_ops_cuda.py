"""The registered operators: their registration on the CPU (where the reference computes), their results on a GPU."""

import importlib.util
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from model.ops import cuda, gather_patches, involution, reference, resolve_backend

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available() or importlib.util.find_spec("cupy") is None,
                               reason="needs a CUDA GPU and CuPy")
CENTRES = torch.tensor([[0, 0], [8, 6], [3, 6], [4, 2]])
SHAPES = [(2, 1, 5, 5), (1, 2, 7, 5), (3, 4, 5, 7), (1, 5, 9, 9), (2, 48, 5, 5), (1, 103, 13, 13), (64, 128, 5, 5)]


def make_inputs(shape=(2, 5, 5, 4), dtype=torch.float64, device="cpu", requires_grad=False):
    random = torch.Generator().manual_seed(0)
    batch, channels, height, width = shape
    kernel_shape = (batch, reference.group_count(channels), 9, height, width)
    return [torch.randn(size, generator=random, dtype=torch.float64).to(device, dtype).requires_grad_(requires_grad)
            for size in (shape, kernel_shape)]


def value_and_gradients(function, inputs):
    """y and both gradients, for one fixed gradient of y."""
    y = function(*inputs)
    pull = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)
    return [y.detach(), *torch.autograd.grad(y, inputs, pull)]


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_registration(requires_grad, batch, dtype):
    x, kernel = make_inputs((batch, 5, 5, 4), dtype, requires_grad=requires_grad)
    grad = torch.ones_like(x, requires_grad=requires_grad)
    torch.library.opcheck(cuda.involution, (x, kernel))
    torch.library.opcheck(cuda.involution_grad_input, (grad, kernel))
    torch.library.opcheck(cuda.involution_grad_kernel, (grad, x))


def test_registration_with_strided_inputs():
    x, kernel = make_inputs(dtype=torch.float32)
    strided = [tensor.transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_() for tensor in (x, kernel)]
    torch.library.opcheck(cuda.involution, strided)


def test_registration_of_the_gather():
    cube = torch.randn(4, 9, 7)
    torch.library.opcheck(cuda.gather_patches, (cube, CENTRES, 5))
    torch.library.opcheck(cuda.gather_patches, (cube.permute(1, 2, 0).contiguous().permute(2, 0, 1), CENTRES[:0], 5))
    with torch.inference_mode():
        assert torch.equal(cuda.gather_patches(cube, CENTRES, 5), reference.gather_patches(cube, CENTRES, 5))


def test_gradients_of_the_registered_operators():
    inputs = make_inputs((1, 4, 3, 2), requires_grad=True)
    assert torch.autograd.gradcheck(cuda.involution, inputs)
    assert torch.autograd.gradgradcheck(cuda.involution, inputs)
    x, kernel = inputs
    assert torch.autograd.gradgradcheck(cuda.involution_grad_input, (x, kernel))
    assert torch.autograd.gradgradcheck(cuda.involution_grad_kernel, (x, x.detach().flip(0).requires_grad_()))


@pytest.mark.parametrize("wanted", [0, 1])
def test_only_the_wanted_gradient(wanted):
    both = make_inputs(requires_grad=True)
    alone = [tensor.detach().requires_grad_(index == wanted) for index, tensor in enumerate(both)]
    cuda.involution(*both).square().sum().backward()
    cuda.involution(*alone).square().sum().backward()
    assert torch.equal(alone[wanted].grad, both[wanted].grad) and alone[1 - wanted].grad is None


def test_compiled_function_keeps_values_and_gradients():
    inputs = make_inputs(dtype=torch.float32, requires_grad=True)

    def block(x, kernel):
        return cuda.involution(x.tanh(), kernel.exp()).relu() * 2

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(value_and_gradients(compiled, inputs), value_and_gradients(block, inputs),
                               rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks a machine without a GPU")
def test_without_a_driver_the_reason_is_told():
    pytest.importorskip("cupy", reason="needs CuPy")
    assert "CuPy cannot build the kernels (CUDARuntimeError" in cuda.unavailable_reason(torch.device("cuda", 0))


class CompileException(Exception):
    """Stands for CuPy's own."""


@pytest.fixture
def fake_cupy(monkeypatch):
    """The parts of CuPy that building a module takes; the module's `compile` is what the test makes it."""
    module = SimpleNamespace(compile=lambda: None)
    compiler = SimpleNamespace(CompileException=CompileException)
    cupy_cuda = SimpleNamespace(Device=lambda index: nullcontext(), Stream=SimpleNamespace(from_external=None))
    cupy = SimpleNamespace(__version__="13.6.0", cuda=cupy_cuda, RawModule=lambda code, options: module, module=module)
    for name, part in (("cupy", cupy), ("cupy.cuda", cupy_cuda), ("cupy.cuda.compiler", compiler)):
        monkeypatch.setitem(sys.modules, name, part)
    cuda._module.cache_clear()
    yield cupy
    cuda._module.cache_clear()


def test_built_kernels_can_run(fake_cupy):
    assert cuda.unavailable_reason(torch.device("cuda", 0)) is None


@pytest.mark.parametrize("error", [CompileException("no cuda_fp16.h\nmore"), RuntimeError("no driver"), OSError()])
def test_reason_why_kernels_cannot_be_built(fake_cupy, error):
    def fail():
        raise error

    fake_cupy.module.compile = fail
    first_line = str(error).partition("\n")[0]
    expected = f"CuPy cannot build the kernels ({type(error).__name__}: {first_line})"
    assert cuda.unavailable_reason(torch.device("cuda", 0)) == expected


def test_an_old_cupy_is_named(fake_cupy):
    fake_cupy.cuda.Stream = object
    assert "CuPy 13.6.0 and PyTorch" in cuda.unavailable_reason(torch.device("cuda", 0))


@needs_gpu
def test_gpu_uses_the_kernels():
    assert resolve_backend("auto", torch.device("cuda", 0)) == "cupy"


# float32 differs by the order of its sums; a half type by one rounding of its own where the float32 sums straddle one.
@needs_gpu
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 1e-5),
                                              (torch.float16, 2 ** -10), (torch.bfloat16, 2 ** -7)])
def test_gpu_equals_the_reference(shape, dtype, tolerance):
    inputs = make_inputs(shape, dtype, "cuda", requires_grad=True)
    ours = value_and_gradients(lambda x, kernel: involution(x, kernel, backend="cupy"), inputs)
    theirs = value_and_gradients(lambda x, kernel: involution(x, kernel, backend="reference"), inputs)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=min(tolerance, 1e-5))
    again = value_and_gradients(lambda x, kernel: involution(x, kernel, backend="cupy"), inputs)
    torch.testing.assert_close(again, ours, rtol=0, atol=0)


@needs_gpu
def test_gpu_takes_strided_and_empty_tensors():
    x, kernel = make_inputs(device="cuda")
    strided = [tensor.transpose(-1, -2).contiguous().transpose(-1, -2) for tensor in (x, kernel)]
    assert torch.equal(involution(*strided, backend="cupy"), involution(x, kernel, backend="cupy"))
    assert involution(x[:0], kernel[:0], backend="cupy").shape == (0, 5, 5, 4)


@needs_gpu
def test_gpu_second_gradients():
    inputs = make_inputs((1, 4, 3, 2), device="cuda", requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, kernel: involution(x, kernel, backend="cupy"), inputs)


@needs_gpu
def test_gpu_works_in_another_stream():
    inputs = make_inputs((64, 128, 13, 13), torch.float32, "cuda")
    expected = involution(*inputs, backend="reference") * 2
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = involution(inputs[0] * 2, inputs[1], backend="cupy")
    stream.synchronize()
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@needs_gpu
def test_gpu_compile_and_autocast():
    inputs = make_inputs((4, 5, 7, 7), torch.float32, "cuda", requires_grad=True)

    def block(x, kernel):
        return involution(x.tanh(), kernel, backend="cupy").relu() * 2

    compiled = torch.compile(block, fullgraph=True)
    torch.testing.assert_close(value_and_gradients(compiled, inputs), value_and_gradients(block, inputs),
                               rtol=1e-5, atol=1e-5)
    with torch.autocast("cuda", torch.bfloat16):
        y = involution(inputs[0], inputs[1].half(), backend="cupy")
    assert y.dtype == torch.bfloat16
    assert {gradient.dtype for gradient in torch.autograd.grad(y.float().sum(), inputs)} == {torch.float32}


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("size", (1, 5, 7))
def test_gpu_gather_equals_the_reference(dtype, size):
    cube = (200 * torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(2))).to("cuda", dtype)
    for source in (cube, cube.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        patches = gather_patches(source, CENTRES.cuda(), size, backend="cupy")
        assert torch.equal(patches, gather_patches(cube, CENTRES.cuda(), size, backend="reference"))
    assert gather_patches(cube, CENTRES[:0].cuda(), size, backend="cupy").shape == (0, 3, size, size)
