"""C++ kernels for the CPU, compiled at first use by torch's extension tools into a cache.

The sources include no header of torch, so that a build takes seconds and serves every version of torch.  The cache is
$S2AMSNET_CACHE, else $XDG_CACHE_HOME/s2amsnet, else ~/.cache/s2amsnet; its entries are named by all that the machine
code depends on: source, headers, compiler, flags and processor (a cluster's nodes may share a home directory).

What is loaded is run.  So only folders and files are taken that belong to the user (or to root) and that nobody else
can write, and only files that are whole: the digest of each stands beside it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess                # nosec B404 # only its errors; torch starts the compiler
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch                        # first: its OpenMP library then serves the kernels as well, with the same threads
from filelock import FileLock

FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++17", "-fno-math-errno", "-Wno-psabi")
DIGEST = ".sha256"                  # of the file beside each library
MOVE = "Set S2AMSNET_CACHE to a folder of your own"

_log = logging.getLogger(__name__)


class BuildError(Exception):
    """Why the kernels cannot be built or loaded here, and what would help."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(f"{reason}. {remedy}")


@functools.cache
def library(source: Path) -> ctypes.CDLL:
    """The shared library of one C++ source file, built unless the cache holds it whole.

    One that is whole but cannot be loaded is built once more.  Processes that want it at the same time wait for the one
    that builds it.  Raises BuildError if it cannot be built or loaded.
    """
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        if "CXX" in os.environ:
            raise BuildError(f"there is no C++ compiler: CXX = '{compiler}' is not the name or path of a program",
                             "Set CXX to the path of g++ or clang++")
        raise BuildError("there is no C++ compiler ('c++')", "Install a C++ compiler (g++ or clang++)")
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    key = hashlib.sha256("\n".join([*texts, compiler, *FLAGS, processor()]).encode()).hexdigest()[:16]
    try:
        built = cache_folder() / f"{source.stem}-{key}.so"
        if not whole(built):
            _build(built, source, unless=whole)
        try:
            return ctypes.CDLL(str(built))
        except OSError as error:                    # such as one that was linked against libraries that are gone
            _log.info("%s cannot be loaded (%s); it is built once more.", built, error)
            _build(built, source, unless=lambda path: False)
            return ctypes.CDLL(str(built))
    except OSError as error:
        raise BuildError(f"the cache of built kernels cannot be used ({error})", MOVE) from error


def _build(built: Path, source: Path, unless: Callable[[Path], bool]) -> None:
    """Build a library, by one process at a time, unless the one that is there by then will do."""
    with FileLock(built.with_suffix(".lock")):
        if not unless(built):
            compile_into(built, source)


def whole(built: Path) -> bool:
    """Whether a library is there, ours, and the one that was built: a truncated one would end the process (SIGBUS)."""
    note = built.with_suffix(DIGEST)
    if not (built.is_file() and note.is_file() and trusted(built) and trusted(note)):
        return False
    return note.read_text(errors="replace").strip() == digest(built)


def trusted(path: Path) -> bool:
    """Whether a file or folder belongs to this user or to root, and nobody else can write it."""
    about = path.stat()
    return about.st_uid in (0, os.geteuid()) and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def digest(path: Path) -> str:
    """SHA-256 of a file, as hex digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}      # those of the kernels, and what their names end in


def compiled_kernel(source: Path, name: str, dtype: torch.dtype, arguments: list[type]) -> ctypes._CFuncPtr:
    """The function NAME_DTYPE of a source's library, for arguments of these types."""
    function = getattr(library(source), f"{name}_{DTYPES[dtype]}")
    function.argtypes, function.restype = arguments, None
    return function


def compile_into(built: Path, source: Path) -> None:
    """Compile beside the place and move there when whole, with its digest, so that a kill leaves no half library.

    The caller holds the lock: what an earlier build that was killed has left is removed.
    """
    try:
        from torch.utils import cpp_extension    # half a second, and needed only here
    except ImportError as error:                 # of setuptools
        raise BuildError(f"torch's extension tools cannot be imported ({error})",
                         "Install what requirements.txt lists") from error
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
            raise BuildError(f"the compiler failed: {' '.join(str(error).split())[-400:]}",
                             "Set CXX to another C++ compiler (g++ or clang++)") from error
        finally:
            os.environ["PATH"] = path
        Path(made).chmod(0o700)
        (note := Path(scratch, "digest")).write_text(digest(Path(made)) + "\n")
        note.chmod(0o600)
        os.replace(note, built.with_suffix(DIGEST))
        os.replace(made, built)
    _log.info("Compiled in %.0f s, kept in %s", time.perf_counter() - started, built)


def cache_folder() -> Path:
    """The cache, made if need be, for this user alone.  Raises BuildError if others could put something there."""
    base, named = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", os.environ.get("S2AMSNET_CACHE")
    folder = Path(named or Path(base) / "s2amsnet")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not named and not trusted(folder) and folder.stat().st_uid == os.geteuid():
        folder.chmod(0o700)                         # older programs left it to the umask
    if not trusted(folder):
        raise BuildError(f"others than you can write to the cache of built kernels, {folder}", MOVE)
    return folder


def processor() -> str:
    """What tells this processor's instruction set from another's."""
    listing = Path("/proc/cpuinfo")
    words = listing.read_text().splitlines() if listing.exists() else []
    chosen = [line for line in words if line.startswith(("model name", "flags", "Features"))]
    return "\n".join([platform.machine(), platform.processor(), *dict.fromkeys(chosen)])
