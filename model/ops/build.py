"""C++ kernels for the CPU, compiled at first use by torch's extension tools into a cache.

The sources include no header of torch, so that a build takes seconds and serves every version of torch.  The cache is
$S2AMSNET_CACHE, else $XDG_CACHE_HOME/s2amsnet, else ~/.cache/s2amsnet; its entries are named by all that the machine
code depends on: source, headers, compiler, flags and processor (a cluster's nodes may share a home directory).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

import torch                        # first: its OpenMP library then serves the kernels as well, with the same threads
from filelock import FileLock

FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++17", "-fno-math-errno", "-Wno-psabi")

_log = logging.getLogger(__name__)


class BuildError(Exception):
    """Why the kernels cannot be built here."""


@functools.cache
def library(source: Path) -> ctypes.CDLL:
    """The shared library of one C++ source file, built unless the cache holds it.

    Processes that want it at the same time wait for the one that builds it.  Raises BuildError with the reason.
    """
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise BuildError(f"there is no C++ compiler: CXX = '{compiler}' is not the name or path of a program"
                         if "CXX" in os.environ else "there is no C++ compiler ('c++')")
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    key = hashlib.sha256("\n".join([*texts, compiler, *FLAGS, processor()]).encode()).hexdigest()[:16]
    try:
        built = cache_folder() / f"{source.stem}-{key}.so"
        if not built.exists():
            with FileLock(built.with_suffix(".lock")):
                if not built.exists():
                    compile_into(built, source)
        return ctypes.CDLL(str(built))
    except OSError as error:
        raise BuildError(str(error)) from error


DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}      # those of the kernels, and what their names end in


def compiled_kernel(source: Path, name: str, dtype: torch.dtype, arguments: list[type]) -> ctypes._CFuncPtr:
    """The function NAME_DTYPE of a source's library, for arguments of these types."""
    function = getattr(library(source), f"{name}_{DTYPES[dtype]}")
    function.argtypes, function.restype = arguments, None
    return function


def compile_into(built: Path, source: Path) -> None:
    """Compile beside the place and move there when whole, so that a kill leaves no half library.

    The caller holds the lock: what an earlier build that was killed has left is removed.
    """
    try:
        from torch.utils import cpp_extension    # half a second, and needed only here
    except ImportError as error:                 # of setuptools
        raise BuildError(f"torch's extension tools cannot be imported ({error})") from error
    _log.info("Compiling %s for this processor (once, some seconds) ...", source.name)
    started, prefix, path = time.perf_counter(), f"{built.stem}-build-", os.environ.get("PATH", "")
    for left in built.parent.glob(prefix + "*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=built.parent, prefix=prefix) as scratch:
        os.environ["PATH"] = sysconfig.get_path("scripts") + os.pathsep + path  # pip's ninja, environment active or not
        try:
            made = cpp_extension.load(source.stem, [str(source)], extra_cflags=list(FLAGS), extra_ldflags=["-fopenmp"],
                                      build_directory=scratch, is_python_module=False)
        except (RuntimeError, subprocess.SubprocessError) as error:
            raise BuildError(f"the compiler failed: {' '.join(str(error).split())[-400:]}") from error
        finally:
            os.environ["PATH"] = path
        os.replace(made, built)
    _log.info("Compiled in %.0f s, kept in %s", time.perf_counter() - started, built)


def cache_folder() -> Path:
    """The cache, made if need be."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("S2AMSNET_CACHE") or Path(base) / "s2amsnet")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def processor() -> str:
    """What tells this processor's instruction set from another's."""
    listing = Path("/proc/cpuinfo")
    words = listing.read_text().splitlines() if listing.exists() else []
    chosen = [line for line in words if line.startswith(("model name", "flags", "Features"))]
    return "\n".join([platform.machine(), platform.processor(), *dict.fromkeys(chosen)])
