"""kernels.cu without a GPU: NVRTC compiles it for several chips, and a host compiler builds it to be run and compared.

The host build runs through the functions that start the kernels on a GPU; only `run_kernel`, the start itself, is
replaced by a loop over blocks and threads.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from model.ops import cuda, reference

KERNELS = [f"{op}_{dtype}" for op in ("involution", "involution_grad_input", "involution_grad_kernel")
           for dtype in ("float64", "float32", "float16", "bfloat16")]
KERNELS += [f"gather_patches_{width}bit" for width in (8, 16, 32, 64)]

# C below a group, with 0, 1 and 2 leftover channels; odd and unequal sides, batch 1, patches of one pixel
SHAPES = [(2, 1, 5, 5), (1, 2, 7, 5), (2, 3, 5, 5), (3, 4, 5, 7), (1, 5, 9, 9), (2, 48, 5, 5), (1, 103, 5, 5),
          (1, 128, 7, 3), (1, 176, 5, 5), (2, 8, 1, 6), (4, 7, 1, 1)]
HALF_TYPES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("arch", ("sm_75", "sm_80", "sm_90"))
def test_nvrtc_compiles_every_kernel(arch):
    pytest.importorskip("cupy", reason="needs CuPy for its NVRTC binding")
    from cupy._core.core import assemble_cupy_compiler_options   # adds CUDA's and CuPy's include folders, as RawModule
    from cupy.cuda import nvrtc
    options = assemble_cupy_compiler_options(cuda.OPTIONS)
    if not any(Path(option[2:], "cuda_fp16.h").exists() for option in options if option.startswith("-I")):
        pytest.skip("needs CUDA's headers, which come with cupy-cudaXXx[ctk] or a CUDA toolkit")
    program = nvrtc.createProgram(cuda.SOURCE.read_text(encoding="utf-8"), cuda.SOURCE.name, (), ())
    try:
        nvrtc.compileProgram(program, (*options, "-ftz=true", f"-arch={arch}", "--ptxas-options=-v"))
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    log, machine_code = nvrtc.getProgramLog(program), nvrtc.getCUBIN(program)
    assert all(f"{name}\0".encode() in machine_code for name in KERNELS)
    assert log.count("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == len(KERNELS)


@pytest.fixture(scope="module")
def host_library(tmp_path_factory):
    """kernels.cu as a shared library of the host's C++ compiler."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    command = [compiler, "-x", "c++", "-std=c++17", "-O2", "-shared", "-fPIC", "-Wno-unknown-pragmas",
               "-include", str(Path(__file__).with_name("host_cuda.h")), str(cuda.SOURCE), "-o", str(library)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return ctypes.CDLL(str(library))


@pytest.fixture
def on_host(host_library, monkeypatch):
    """The starters of cuda.py take CPU tensors and run on the host.  Returns the list of (kernel, blocks) started."""
    started = []

    def run_kernel(name, device, blocks, arguments):
        assert device.type == "cpu"
        function = getattr(host_library, name)
        function.restype = None
        words = [ctypes.c_int64(int(argument)) for argument in arguments]
        for block in range(blocks):
            for thread in range(cuda.THREADS):
                host_library.place_thread(block, thread, blocks, cuda.THREADS)
                function(*words)
        started.append((name, blocks))

    monkeypatch.setattr(cuda, "run_kernel", run_kernel)
    return started


def make_inputs(shape, dtype, seed=0):
    """x and grad of the shape, and the kernel, with NaN in memory around each, so that a read outside one shows."""
    random = torch.Generator().manual_seed(seed)
    batch, channels, height, width = shape
    kernel_shape = (batch, reference.group_count(channels), 9, height, width)
    return [between_nans(torch.randn(size, generator=random, dtype=torch.float64).to(dtype))
            for size in (shape, shape, kernel_shape)]


def between_nans(tensor):
    margin = 4096
    memory = torch.full((tensor.numel() + 2 * margin,), float("nan"), dtype=tensor.dtype)
    inner = memory[margin:margin + tensor.numel()].view(tensor.shape)
    return inner.copy_(tensor)


def run_all(forward, grad_input, grad_kernel, x, grad, kernel):
    return {"y": forward(x, kernel), "grad_input": grad_input(grad, kernel), "grad_kernel": grad_kernel(grad, x)}


def run_launchers(*inputs):
    return run_all(cuda.launch_involution, cuda.launch_grad_input, cuda.launch_grad_kernel, *inputs)


def run_reference(*inputs):
    return run_all(reference.forward, reference.grad_input, reference.grad_kernel, *inputs)


# Sums of up to 15 products of order 1 in another order: a few rounding errors of the sum's type.
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-14), (torch.float32, 4e-6)])
def test_kernels_equal_the_reference(on_host, shape, dtype, tolerance):
    inputs = make_inputs(shape, dtype)
    torch.testing.assert_close(run_launchers(*inputs), run_reference(*inputs), rtol=tolerance, atol=tolerance)
    assert {kernel for kernel, _ in on_host} <= set(KERNELS)


# Summed in float32 and rounded once: within half a unit in the last place of the exact sum, but for float32's errors.
# A sum kept in the half type would be off by several units.
@pytest.mark.parametrize("shape", SHAPES[::2], ids=str)
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_half_kernels_sum_in_float32(on_host, shape, dtype):
    inputs = make_inputs(shape, dtype)
    exact = run_reference(*(tensor.double() for tensor in inputs))
    results = run_launchers(*inputs)
    assert {value.dtype for value in results.values()} == {dtype}
    results = {name: value.double() for name, value in results.items()}
    torch.testing.assert_close(results, exact, rtol=torch.finfo(dtype).eps / 2 * 1.001, atol=4e-6)


def test_kernels_stride_over_what_a_small_grid_leaves(on_host, monkeypatch):
    inputs = make_inputs((3, 10, 9, 9), torch.float64)   # 3 x 3 groups x 81 pixels: three blocks, the last not full
    for limit, blocks in ((cuda.MAX_BLOCKS, 3), (2, 2)):
        monkeypatch.setattr(cuda, "MAX_BLOCKS", limit)
        on_host.clear()
        torch.testing.assert_close(run_launchers(*inputs), run_reference(*inputs), rtol=1e-14, atol=1e-14)
        assert [count for _, count in on_host] == [blocks] * 3


def test_starters_take_strided_and_empty_tensors(on_host):
    x, grad, kernel = make_inputs((2, 5, 7, 5), torch.float64)
    strided = [tensor.transpose(-1, -2).contiguous().transpose(-1, -2) for tensor in (x, grad, kernel)]
    results = run_launchers(*strided)
    assert not strided[0].is_contiguous() and all(result.is_contiguous() for result in results.values())
    torch.testing.assert_close(results, run_launchers(x, grad, kernel), rtol=0, atol=0)
    on_host.clear()
    empty = run_launchers(x[:0], grad[:0], kernel[:0])
    assert empty["grad_kernel"].shape == (0, 1, 9, 7, 5) and not on_host


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF_TYPES, torch.int16, torch.uint8])
@pytest.mark.parametrize("size", (1, 5, 7))
def test_gather_equals_the_reference(on_host, dtype, size):
    cube = (200 * torch.rand(3, 9, 4, generator=torch.Generator().manual_seed(2))).to(dtype)
    centres = torch.tensor([[0, 0], [0, 3], [8, 0], [8, 3], [4, 1], [0, 2], [5, 3]])
    patches = cuda.launch_gather(cube, centres, size)
    assert patches.dtype == dtype and torch.equal(patches, reference.gather_patches(cube, centres, size))


def test_gather_takes_strided_and_empty_tensors_and_strides(on_host, monkeypatch):
    monkeypatch.setattr(cuda, "MAX_BLOCKS", 1)
    cube, centres = torch.randn(9, 8, 5).permute(2, 0, 1), torch.tensor([[0, 7], [8, 1], [3, 4]]).T.contiguous().T
    assert torch.equal(cuda.launch_gather(cube, centres, 7), reference.gather_patches(cube, centres, 7))
    assert cuda.launch_gather(cube, centres[:0], 7).shape == (0, 5, 7, 7)
    assert on_host == [("gather_patches_32bit", 1)]


def test_gather_never_reads_outside_the_cube(on_host):
    cube = between_nans(torch.randn(2, 6, 5))
    centres = torch.tensor([[-40, 2], [40, 2], [3, -40], [3, 40], [-6, -5]])
    assert torch.isfinite(cuda.launch_gather(cube, centres, 5)).all()
