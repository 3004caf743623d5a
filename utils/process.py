"""This process: how its OpenMP threads wait, and how glibc's malloc treats freed memory.  Import before torch.

Threads: by default libgomp's threads spin at a barrier.  Where cores are shared (virtual machines, two jobs on one
node) the thread that is waited for may be off its core, and single steps then take seconds instead of a tenth.  A short
spin costs nothing measurable where the cores are free.  A value that the user has set stands.

Memory: by default glibc gives large freed blocks back to the system at once, and every step then takes the same pages
again.  In a virtual machine those page faults cost more than the step's arithmetic.  Outside glibc nothing happens.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if sys.platform == "win32":
    raise SystemExit("S2AMSnet runs on Linux and macOS. On Windows start it in the Windows Subsystem for Linux (wsl --install).")

import resource

from model.errors import SystemRefusedError, out_of_memory

if TYPE_CHECKING:
    import torch

os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4      # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX
_KEEP = 2 ** 31 - 1                                           # the largest value of an int, which mallopt takes
_DYNAMIC_MMAP = 32 * 2 ** 20     # where glibc's dynamic thresholds end once a block of this size has been freed ...
_DYNAMIC_TRIM = 64 * 2 ** 20     # ... and twice that
_DEFAULT_MMAP_MAX = 65536
USERS_WORDS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_")
_TUNABLES = ("glibc.malloc.mmap_threshold", "glibc.malloc.trim_threshold", "glibc.malloc.mmap_max")
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_highest = 0                     # bytes of the resident set at its highest point before the last reset of its peak


@contextmanager
def refusals_told() -> Iterator[None]:
    """What the system refuses inside (a file, disk, memory) is raised as SystemRefusedError, in one line.

    A closed output is no refusal: BrokenPipeError passes.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise SystemRefusedError(f"{place}{error.strerror or error}. {_advice(error)}") from error
    except ValueError as error:
        if "embedded null" not in str(error):             # Python's own words for a path with a NUL in it
            raise
        raise SystemRefusedError("A path holds a NUL, which no path can. Take it out.") from error
    except (MemoryError, RuntimeError) as error:
        if (short := out_of_memory(error)) is None:
            raise
        sizes = "--batch_size or --patch_size" if short == "memory" else \
            "--batch_size, --pro_dim or --patch_size, or --precision bf16"
        raise SystemRefusedError(f"There is not enough {short}. Try a smaller {sizes}, or close other "
                                 "programs.") from error


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "Make room on the disk and start again; whole files that were there before are still there."
    return "Check that the path is right, and that you may read and write there."


def keep_freed_memory(*, over_the_user: bool = False) -> bool:
    """Freed memory stays in the process, at its peak size.  Returns whether that was set.

    Nothing is set outside glibc, nor, unless `over_the_user`, where an environment variable speaks of the thresholds
    (MALLOC_MMAP_THRESHOLD_ and its like, or GLIBC_TUNABLES).
    """
    if not is_glibc() or (user_decides() and not over_the_user):
        return False
    mallopt, _ = _functions()
    if not mallopt(_MMAP_THRESHOLD, _KEEP):      # older ones take at most 32 MiB; never mapping has the same effect
        mallopt(_MMAP_MAX, 0)
    return bool(mallopt(_TRIM_THRESHOLD, _KEEP))


def default_behaviour() -> bool:
    """What glibc's thresholds come to by themselves with large tensors, and what is kept so far is given back.

    Large blocks are mapped when they are allocated and unmapped when they are freed.  Returns whether that was set
    (not outside glibc).
    """
    if not is_glibc():
        return False
    mallopt, _ = _functions()
    done = [mallopt(_MMAP_MAX, _DEFAULT_MMAP_MAX), mallopt(_MMAP_THRESHOLD, _DYNAMIC_MMAP),
            mallopt(_TRIM_THRESHOLD, _DYNAMIC_TRIM)]
    give_back()
    return all(done)


def give_back() -> None:
    """Give all freed memory back to the system now, whatever the thresholds are."""
    if is_glibc():
        _, trim = _functions()
        trim(0)


def is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def user_decides() -> bool:
    """Whether the environment already speaks of malloc's thresholds."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(name in os.environ for name in USERS_WORDS) or any(name in tunables for name in _TUNABLES)


def _functions() -> tuple:
    """glibc's `mallopt(int, int) -> int` (1 where it took the value) and `malloc_trim(size_t) -> int`."""
    libc = ctypes.CDLL(None)
    mallopt, trim = libc.mallopt, libc.malloc_trim
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    trim.argtypes, trim.restype = (ctypes.c_size_t,), ctypes.c_int
    return mallopt, trim


def reset_peak(device: torch.device) -> int | None:
    """Start a new peak: bytes held now, None where the system cannot tell the peak of a part of a process."""
    if device.type == "cuda":
        import torch                         # here, since this module comes before torch
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_reserved(device)
    global _highest
    _highest = highest()
    try:
        _CLEAR_REFS.write_text("5")          # proc(5): sets the peak of the resident set to its present size
    except OSError:
        return None
    return _status("VmRSS")


def peak(device: torch.device) -> int:
    """Bytes at the highest point since `reset_peak`: the GPU's allocations on CUDA, else the resident set."""
    if device.type == "cuda":
        import torch
        return torch.cuda.max_memory_reserved(device)
    return _status("VmHWM")


def highest() -> int:
    """Bytes of the resident set at this process's highest point, whatever peaks `reset_peak` has started since."""
    since = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(_highest, since if sys.platform == "darwin" else 1024 * since)


def _status(entry: str) -> int:
    return 1024 * int(re.search(rf"^{entry}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)[1])
