"""The CUDA kernels built by the host's C++ compiler, run through the functions that start them on a GPU: only
`cuda.run_kernel`, the start itself, is replaced by a loop over blocks and threads.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from model.ops import cuda

# A door to the random numbers, which no kernel gives away as they are.
DOOR = """extern "C" void random_words(unsigned* words, unsigned long long seed, float* uniforms, float* pairs) {
    Words counter;
    for (int i = 0; i < 4; ++i) counter.word[i] = words[i];
    const Words result = philox(counter, seed);
    for (int i = 0; i < 4; ++i) words[i] = result.word[i];
    for (int i = 0; i < 4; ++i) uniforms[i] = uniform(result.word[i]);
    for (int i = 0; i < 4; i += 2) normals(result.word[i], result.word[i + 1], pairs + i);
}
"""
# A door to the places that a thread works at, as offsets from the start of the tensors.
DOOR += """
extern "C" void row_site(unsigned index, const Index* s, Index* found) {
    const RowSite<4> site(index, Shape{int(s[0]), int(s[1]), int(s[2]), int(s[3]), int(s[4]), s[5], s[6]});
    found[0] = site.pixel; found[1] = site.image; found[2] = site.kernel;
}
extern "C" void pixel_site(unsigned index, const Index* s, Index* found) {
    const PixelSite<4> site(index, Shape{int(s[0]), int(s[1]), int(s[2]), int(s[3]), int(s[4]), s[5], s[6]});
    found[0] = site.pixel * s[1] + site.channel; found[1] = site.pixel * kTaps * s[2] + site.kernel; found[2] = 0;
}
extern "C" void quad_site(unsigned index, const Index* s, Index* found) {
    const QuadSite site(index, int(s[0]), int(s[1]), s[2]);
    found[0] = site.patch; found[1] = site.out; found[2] = site.quad;
}
"""
WORDS = {np.int64: ctypes.c_int64, np.float32: ctypes.c_float, np.float64: ctypes.c_double}


def library(folder):
    """All kernels as a shared library in the folder; skips the test where there is no compiler."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    (folder / "kernels.cpp").write_text(f"{cuda.source()}\n{DOOR}", encoding="utf-8")
    command = [compiler, "-std=c++17", "-O2", "-shared", "-fPIC", "-Wno-unknown-pragmas",
               "-include", str(Path(__file__).with_name("host_cuda.h")), str(folder / "kernels.cpp"),
               "-o", str(folder / "kernels.so")]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return ctypes.CDLL(str(folder / "kernels.so"))


def starter(library, started):
    """What takes the place of `cuda.run_kernel`: runs on CPU tensors and notes (kernel, blocks) in `started`."""
    def run_kernel(name, device, blocks, arguments):
        assert device.type == "cpu"
        function = getattr(library, name)
        function.restype = None
        arguments = [WORDS[type(argument)](argument.item()) for argument in arguments]
        for block in range(blocks):
            for thread in range(cuda.THREADS):
                library.place_thread(block, thread, blocks, cuda.THREADS)
                function(*arguments)
        started.append((name, blocks))

    return run_kernel
