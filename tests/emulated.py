"""The CUDA kernels as NVRTC makes them, run on the CPU by an emulator of PTX: values, bounds, alignment, and that each
result is written once.

The emulator is no part of this repository: S2AMSNET_EMULATOR names its file.  It has `parse` (PTX -> kernels), `Memory`
(what a launch may touch), `Launch` and `extent` (of a tensor).
"""

import functools
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from model.ops import cuda

FILE = os.environ.get("S2AMSNET_EMULATOR")
# how many of the last tensors are results; else one
RESULTS = {"norm_gradients": 4, "norm_mix": 7, "reorder_taps": 2, "instance_norm": 2, "instance_norm_backward": 2}
UPDATES = ("norm_mix",)                                     # kernels that read their results first


def compiled(text, arch, *options):
    """NVRTC's binding and its program of the kernels for a chip; skips the test where the compiler is missing."""
    pytest.importorskip("cupy", reason="needs CuPy for its NVRTC binding")
    from cupy._core.core import assemble_cupy_compiler_options   # adds CUDA's and CuPy's include folders, as RawModule
    from cupy.cuda import nvrtc
    given = assemble_cupy_compiler_options(cuda.OPTIONS)
    if not any(Path(option[2:], "cuda_fp16.h").exists() for option in given if option.startswith("-I")):
        pytest.skip("needs CUDA's headers, which come with cupy-cudaXXx[ctk] or a CUDA toolkit")
    program = nvrtc.createProgram(text, "kernels", (), ())
    try:
        nvrtc.compileProgram(program, (*given, "-ftz=true", f"-arch={arch}", *options))
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    return nvrtc, program


def entries(text, arch):
    """The kernels' machine code, as the emulator takes it."""
    parse = emulator().parse
    nvrtc, program = compiled(text, arch)
    return parse(nvrtc.getPTX(program).decode().rstrip("\0"))


@functools.cache
def emulator():
    """The emulator's module; skips the test where there is none."""
    if FILE is None:
        pytest.skip("needs an emulator of PTX: S2AMSNET_EMULATOR names its file")
    spec = importlib.util.spec_from_file_location("ptx_emulator", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def machine():
    """The emulator's memory and launch, with updates in place and with divisions of floating-point numbers."""
    class Memory(emulator().Memory):
        updates = False

        def load(self, *where):
            written = self.written
            self.written = [None] * len(written) if self.updates else written
            try:
                return super().load(*where)
            finally:
                self.written = written

    class Launch(emulator().Launch):
        def step(self, op, operands, lanes, text):
            kind = op[-1]
            if op[0] not in ("rcp", "div") or not kind.startswith("f"):
                return super().step(op, operands, lanes, text)
            above, below = ([np.dtype(f"f{int(kind[1:]) // 8}").type(1)] + [self.read(each, kind, lanes)
                                                                            for each in operands[1:]])[-2:]
            with np.errstate(all="ignore"):
                return self.write(operands[0], above / below, lanes)

    return Memory, Launch


def starter(entries, started):
    """What takes the place of `cuda.start`; notes the kernels in `started`."""
    Memory, Launch = machine()

    def start(name, tensors, sizes, work, numbers=()):
        kind = name.rstrip("0123456789").rpartition("_")[0].rstrip("14")
        results = {id(tensor) for tensor in tensors[-RESULTS.get(kind, 1):]}
        memory = Memory(sorted({emulator().extent(tensor, id(tensor) in results) for tensor in tensors
                                if tensor is not None}))
        memory.updates = kind in UPDATES
        pointers = (0 if tensor is None else tensor.data_ptr() for tensor in tensors)
        arguments = (*map(np.int64, (*pointers, *sizes)), *numbers)
        Launch(entries[name], arguments, -(-work // cuda.THREADS), cuda.THREADS, memory).run()
        memory.check()
        started.append(name)

    return start
