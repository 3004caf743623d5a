"""The registered operators: their registration on the CPU (where the reference computes), their results on a GPU."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.ops import cuda, gather_patches, involution, reference, resolve_backend
from operator_inputs import LAYOUTS, laid_out, memory_orders

CENTRES = torch.tensor([[0, 0], [8, 6], [3, 6], [4, 2]])
SHAPES = [(2, 1, 5, 5), (1, 2, 7, 5), (3, 4, 5, 7), (1, 5, 9, 9), (2, 48, 5, 5), (1, 103, 13, 13), (64, 128, 5, 5)]


def make_inputs(shape=(2, 5, 5, 4), dtype=torch.float64, device="cpu", requires_grad=False, layout="planes"):
    """x and kernel in the layout."""
    random = torch.Generator().manual_seed(0)
    batch, channels, height, width = shape
    kernel_shape = (batch, reference.group_count(channels), 9, height, width)
    return [laid_out(torch.randn(size, generator=random, dtype=torch.float64).to(device, dtype), order)
            .requires_grad_(requires_grad) for size, order in zip((shape, kernel_shape), memory_orders(layout))]


def value_and_gradients(function, inputs):
    """y and both gradients, for one fixed gradient of y."""
    y = function(*inputs)
    pull = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)
    return [y.detach(), *torch.autograd.grad(y, inputs, pull)]


@pytest.mark.slow
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("shape, dtype, layout, relu", [
    ((0, 5, 5, 4), torch.float32, "planes", False), ((2, 5, 5, 4), torch.bfloat16, "planes", True),
    ((2, 7, 5, 4), torch.float32, "tap-major", True), ((1, 7, 5, 4), torch.bfloat16, "tap-major", False),
    ((2, 7, 5, 4), torch.float32, "group-major", False), ((2, 7, 1, 1), torch.float32, "tap-major", False),
    ((2, 1, 3, 4), torch.float32, "tap-major", False)])
def test_registration(requires_grad, shape, dtype, layout, relu):
    x, kernel = make_inputs(shape, dtype, requires_grad=requires_grad, layout=layout)
    grad = torch.ones_like(x, requires_grad=requires_grad)
    torch.library.opcheck(cuda.involution, (x, kernel, relu))
    torch.library.opcheck(cuda.involution_grad_input, (grad, kernel, relu))
    torch.library.opcheck(cuda.involution_grad_kernel, (grad, x, kernel, relu))


@pytest.mark.slow
def test_registration_with_strided_inputs():
    x, kernel = make_inputs(dtype=torch.float32)
    strided = [tensor.transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_() for tensor in (x, kernel)]
    torch.library.opcheck(cuda.involution, strided)


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
def test_registration_of_the_gathers(channels_last):
    cube, seed = torch.randn(4, 9, 7), torch.tensor([7])
    for scene, centres in ((cube, CENTRES), (laid_out(cube, (1, 2, 0)), CENTRES[:0])):
        torch.library.opcheck(cuda.gather_patches, (scene, centres, 5, channels_last))
        torch.library.opcheck(cuda.gather_augmented, (scene, centres, 5, seed, 0, True, True, channels_last))
    with torch.inference_mode():
        assert torch.equal(cuda.gather_patches(cube, CENTRES, 5, channels_last),
                           reference.gather_patches(cube, CENTRES, 5))
        assert torch.equal(cuda.gather_augmented(cube, CENTRES, 5, seed, channels_last=channels_last),
                           reference.gather_augmented(cube, CENTRES, 5, seed))


@pytest.mark.slow_but("True-planes")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("relu", [False, True])
def test_gradients_of_the_registered_operators(layout, relu):
    x, kernel = make_inputs((1, 4, 3, 2), requires_grad=True, layout=layout)
    grad = x.detach().flip(0).requires_grad_()
    assert torch.autograd.gradcheck(cuda.involution, (x, kernel, relu))
    assert torch.autograd.gradgradcheck(cuda.involution, (x, kernel, relu))
    assert torch.autograd.gradgradcheck(cuda.involution_grad_input, (grad, kernel, relu))
    assert torch.autograd.gradgradcheck(lambda grad, x: cuda.involution_grad_kernel(grad, x, kernel.detach(), relu),
                                        (grad, x))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_and_gradients_keep_the_layout(layout):
    x, kernel = make_inputs((2, 7, 5, 4), requires_grad=True, layout=layout)
    y = cuda.involution(x, kernel)
    other = torch.ones_like(y, memory_format=torch.contiguous_format)         # whatever the layout of what comes back
    for turned in (other, other.contiguous(memory_format=torch.channels_last)):
        grad_x, grad_kernel = torch.autograd.grad(y, (x, kernel), turned, retain_graph=True)
        assert (y.stride(), grad_x.stride(), grad_kernel.stride()) == (x.stride(), x.stride(), kernel.stride())


@pytest.mark.parametrize("wanted", [0, 1])
def test_only_the_wanted_gradient(wanted):
    both = make_inputs(requires_grad=True)
    alone = [tensor.detach().requires_grad_(index == wanted) for index, tensor in enumerate(both)]
    cuda.involution(*both).square().sum().backward()
    cuda.involution(*alone).square().sum().backward()
    assert torch.equal(alone[wanted].grad, both[wanted].grad) and alone[1 - wanted].grad is None


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["planes", "tap-major"])
def test_compiled_function_keeps_values_and_gradients(layout):
    inputs = make_inputs(dtype=torch.float32, requires_grad=True, layout=layout)

    def block(x, kernel):
        return cuda.involution(x.tanh(), kernel.exp()).relu() * 2

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(value_and_gradients(compiled, inputs), value_and_gradients(block, inputs),
                               rtol=1e-6, atol=1e-6)


def test_without_a_driver_the_reason_is_told(monkeypatch):
    cupy = pytest.importorskip("cupy", reason="needs CuPy")
    if cupy.cuda.is_available():
        pytest.skip("checks a machine without a GPU")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    assert "CuPy cannot build the kernels (CUDARuntimeError" in cuda.unavailable_reason(torch.device("cuda", 0))


def test_a_pytorch_without_cuda_is_named(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert cuda.unavailable_reason(torch.device("cuda", 0)) == f"PyTorch {torch.__version__} was built without CUDA"


class CompileException(Exception):
    """Stands for CuPy's own."""


class Device:
    """Stands for torch.cuda.device; `current` is the device that is current, as PyTorch and CuPy see it."""

    current = 0

    def __init__(self, device):
        self.index = getattr(device, "index", device)

    def __enter__(self):
        self.before, Device.current = Device.current, self.index

    def __exit__(self, *_):
        Device.current = self.before


@pytest.fixture
def fake_cupy(monkeypatch):
    """The parts of CuPy that building a module takes, none of which switches the device; the module's `compile` is what
    the test makes it."""
    module = SimpleNamespace(compile=lambda: None)
    compiler = SimpleNamespace(CompileException=CompileException)
    cupy_cuda = SimpleNamespace(Stream=SimpleNamespace(from_external=lambda stream: ("CuPy's", stream)))
    cupy = SimpleNamespace(__version__="13.6.0", cuda=cupy_cuda, RawModule=lambda code, options: module, module=module)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device", Device)
    for name, part in (("cupy", cupy), ("cupy.cuda", cupy_cuda), ("cupy.cuda.compiler", compiler)):
        monkeypatch.setitem(sys.modules, name, part)
    for cache in (cuda._module, cuda._function):
        cache.cache_clear()
    yield cupy
    for cache in (cuda._module, cuda._function):
        cache.cache_clear()


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


def test_kernels_are_built_and_looked_up_once_per_device(fake_cupy, monkeypatch):
    """On the device, which PyTorch makes current for that long, and in the stream that is current there."""
    built, found, started = [], [], []
    fake_cupy.module.compile = lambda: built.append(Device.current)
    fake_cupy.module.get_function = lambda name: found.append(name) or (
        lambda *launch, stream: started.append((Device.current, stream, *launch)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    order = (1, 1, 2, 1, 2)
    for index in order:
        for name in ("involution", "gather"):
            cuda.run_kernel(name, torch.device("cuda", index), 2, (np.int64(7),))
    assert built == [1, 2] and found == ["involution", "gather"] * 2 and Device.current == 0
    assert started == [(index, ("CuPy's", f"stream of cuda:{index}"), (2,), (cuda.THREADS,), (7,))
                       for index in order for _ in range(2)]


def test_an_old_cupy_is_named(fake_cupy):
    fake_cupy.cuda.Stream = object
    assert "CuPy 13.6.0 and PyTorch" in cuda.unavailable_reason(torch.device("cuda", 0))


@pytest.mark.cuda(kernels=True)
def test_gpu_uses_the_kernels():
    assert resolve_backend("auto", torch.device("cuda", 0)) == "cupy"


# float32 differs by the order of its sums; a half type by one rounding of its own where the float32 sums straddle one.
@pytest.mark.cuda(kernels=True)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 1e-5),
                                              (torch.float16, 2 ** -10), (torch.bfloat16, 2 ** -7)])
def test_gpu_equals_the_reference(shape, layout, dtype, tolerance):
    inputs = make_inputs(shape, dtype, "cuda", requires_grad=True, layout=layout)
    ours = value_and_gradients(lambda x, kernel: involution(x, kernel, backend="cupy"), inputs)
    theirs = value_and_gradients(lambda x, kernel: involution(x, kernel, backend="reference"), inputs)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=min(tolerance, 1e-5))
    again = value_and_gradients(lambda x, kernel: involution(x, kernel, backend="cupy"), inputs)
    torch.testing.assert_close(again, ours, rtol=0, atol=0)


# The generators' and the discriminator's layers at the paper's size and at the studies', and a wider scene.
REAL = [(64, 48, 13, 13), (64, 24, 13, 13), (64, 128, 13, 13), (64, 32, 5, 5), (16, 176, 9, 9)]


@pytest.mark.cuda(kernels=True)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", REAL, ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 1e-5),
                                              (torch.float16, 2 ** -10), (torch.bfloat16, 2 ** -7)])
def test_gpu_relu_equals_the_reference_at_real_sizes(shape, layout, dtype, tolerance):
    inputs = make_inputs(shape, dtype, "cuda", requires_grad=True, layout=layout)
    ours, theirs = (value_and_gradients(lambda x, kernel: involution(x, kernel, backend=backend, relu=True), inputs)
                    for backend in ("cupy", "reference"))
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=min(tolerance, 1e-5))
    assert ours[2].count_nonzero() <= (inputs[1] > 0).sum()                  # nothing where the kernel is cut


@pytest.mark.cuda(kernels=True)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_registration(dtype, layout):
    x, kernel = make_inputs((2, 7, 5, 4), dtype, "cuda", requires_grad=True, layout=layout)
    grad = torch.ones_like(x, requires_grad=True)
    for relu in (False, True):
        torch.library.opcheck(cuda.involution, (x, kernel, relu))
        torch.library.opcheck(cuda.involution_grad_input, (grad, kernel, relu))
        torch.library.opcheck(cuda.involution_grad_kernel, (grad, x, kernel, relu))
    cube, seed = torch.randn(4, 9, 7, device="cuda"), torch.tensor([7], device="cuda")
    for channels_last in (False, True):
        torch.library.opcheck(cuda.gather_patches, (cube, CENTRES.cuda(), 5, channels_last))
        torch.library.opcheck(cuda.gather_augmented, (cube, CENTRES.cuda(), 5, seed, 0, True, True, channels_last))


@pytest.mark.cuda(kernels=True)
def test_gpu_takes_strided_and_empty_tensors():
    x, kernel = make_inputs(device="cuda")
    strided = [tensor.transpose(-1, -2).contiguous().transpose(-1, -2) for tensor in (x, kernel)]
    assert torch.equal(involution(*strided, backend="cupy"), involution(x, kernel, backend="cupy"))
    assert involution(x[:0], kernel[:0], backend="cupy").shape == (0, 5, 5, 4)


@pytest.mark.cuda(kernels=True)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("relu", [False, True])
def test_gpu_second_gradients(layout, relu):
    inputs = make_inputs((1, 4, 3, 2), device="cuda", requires_grad=True, layout=layout)
    assert torch.autograd.gradcheck(cuda.involution, (*inputs, relu))
    assert torch.autograd.gradgradcheck(cuda.involution, (*inputs, relu))


@pytest.mark.cuda(kernels=True)
def test_gpu_works_in_another_stream():
    inputs = make_inputs((64, 128, 13, 13), torch.float32, "cuda")
    expected = involution(*inputs, backend="reference") * 2
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = involution(inputs[0] * 2, inputs[1], backend="cupy")
    stream.synchronize()
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


class Late(torch.autograd.Function):
    """The identity, whose gradient is there only after long work in the stream of the backward pass."""

    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, grad):
        work = torch.rand(4096, 4096, device=grad.device)
        for _ in range(20):
            work = work @ work / 4096
        return grad + 0 * work.nan_to_num(0, 0, 0)[0, 0]


@pytest.mark.cuda(kernels=True)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gpu_gradients_follow_a_stream_of_their_own(layout):
    """Backward runs in a thread of its own, in the stream of the forward pass: a kernel that started elsewhere would
    read the gradient before it is there."""
    inputs = make_inputs((64, 128, 13, 13), torch.float32, "cuda", requires_grad=True, layout=layout)
    expected = value_and_gradients(lambda x, kernel: involution(x, kernel, backend="reference"), inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = value_and_gradients(lambda x, kernel: Late.apply(involution(x, kernel, backend="cupy")), inputs)
    torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.cuda(kernels=True)
@pytest.mark.parametrize("layout", ["planes", "tap-major"])
def test_gpu_compile_and_autocast(layout):
    inputs = make_inputs((4, 24, 7, 7), torch.float32, "cuda", requires_grad=True, layout=layout)

    def block(x, kernel):
        return involution(x.tanh(), kernel, backend="cupy").relu() * 2

    compiled = torch.compile(block, fullgraph=True)
    torch.testing.assert_close(value_and_gradients(compiled, inputs), value_and_gradients(block, inputs),
                               rtol=1e-5, atol=1e-5)
    with torch.autocast("cuda", torch.bfloat16):
        y = involution(inputs[0], inputs[1].half(), backend="cupy")
    assert y.dtype == torch.bfloat16
    assert {gradient.dtype for gradient in torch.autograd.grad(y.float().sum(), inputs)} == {torch.float32}


@pytest.mark.cuda(kernels=True)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("size", (1, 5, 7))
def test_gpu_gather_equals_the_reference(dtype, size):
    cube = (200 * torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(2))).to("cuda", dtype)
    expected = gather_patches(cube, CENTRES.cuda(), size, backend="reference")
    for source in (cube, laid_out(cube, (1, 2, 0))):
        assert torch.equal(gather_patches(source, CENTRES.cuda(), size, backend="cupy"), expected)
        by_pixels = cuda.gather_patches(source, CENTRES.cuda(), size, channels_last=True)
        assert torch.equal(by_pixels, expected) and by_pixels.is_contiguous(memory_format=torch.channels_last)
    assert gather_patches(cube, CENTRES[:0].cuda(), size, backend="cupy").shape == (0, 3, size, size)


@pytest.mark.cuda(kernels=True)
def test_gpu_a_centre_outside_the_scene_stops_nothing():
    cube, centres = torch.rand(3, 9, 7).cuda(), torch.tensor([[-40, 2], [40, 2], [3, -40], [9, 7]]).cuda()
    patches = [gather_patches(cube, centres, 5, backend=backend) for backend in ("reference", "cupy")]
    torch.cuda.synchronize()
    assert torch.equal(*patches) and patches[0].isfinite().all()


@pytest.mark.cuda(kernels=True)
@pytest.mark.parametrize("bands, size", [(48, 13), (6, 3), (3, 1)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gpu_augmented_gather_equals_the_reference(bands, size, channels_last):
    cube, centres = torch.rand(bands, 9, 7), CENTRES.repeat(20, 1)
    for seed in (torch.tensor([3]), torch.tensor([-2 ** 40])):
        expected = reference.gather_augmented(cube, centres, size, seed, 5)
        for scene in (cube, laid_out(cube, (1, 2, 0))):
            patches = cuda.gather_augmented(scene.cuda(), centres.cuda(), size, seed.cuda(), 5,
                                            channels_last=channels_last)
            torch.testing.assert_close(patches.cpu(), expected, rtol=1e-6, atol=1e-6)
            flipped = cuda.gather_augmented(scene.cuda(), centres.cuda(), size, seed.cuda(), 5, radiation=False)
            assert torch.equal(flipped.cpu(), reference.gather_augmented(cube, centres, size, seed, 5, radiation=False))


@pytest.mark.cuda(kernels=True)
@pytest.mark.parametrize("layout", ["planes", "tap-major"])
def test_gpu_graphs_hold_every_operator_and_see_a_new_seed(layout):
    _, kernel = make_inputs((4, 48, 5, 5), torch.float32, "cuda", requires_grad=True, layout=layout)
    cube, centres, seed = torch.rand(48, 9, 7).cuda(), CENTRES.cuda(), torch.tensor([0]).cuda()

    def step():
        x = cuda.gather_augmented(cube, centres, 5, seed, channels_last=layout != "planes")
        plain = cuda.gather_patches(cube, centres, 5, channels_last=layout != "planes")
        x.requires_grad_()
        y = cuda.involution(x, kernel, relu=True)
        return (x.detach(), y.detach(), *torch.autograd.grad((y * plain).sum(), (x, kernel)))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):           # kernels are loaded by their first run, which can't be captured
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    seen = []
    for number in (1, 2, 1):
        seed.fill_(number)
        graph.replay()
        seen.append([tensor.clone() for tensor in captured])
        torch.testing.assert_close(seen[-1], list(step()), rtol=0, atol=0)
    assert not torch.equal(seen[0][0], seen[1][0]) and torch.equal(seen[0][0], seen[2][0])
