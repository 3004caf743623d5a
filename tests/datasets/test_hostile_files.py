"""All hostile scene files in one process: each is a typed error within little memory, and none hangs."""

import resource
from pathlib import Path

import pytest

from datasets.errors import SceneFormatError
from datasets.formats import read_mat, read_raster
from fresh import in_a_fresh_process
from hostile_files import FILES

MEMORY_MB = 200                 # beyond what the process has before
SECONDS = 60                    # of processor time for all of them, on any machine: a hang ends there
MOST = 8 << 30                  # bytes of address space: should a check be lost, the machine is not


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def read_all(folder: Path) -> dict[str, tuple[str, int]]:
    """What each file came to, and how far the process's peak of memory had grown by then, MB."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    resource.setrlimit(resource.RLIMIT_AS, (MOST, resource.getrlimit(resource.RLIMIT_AS)[1]))
    before, found = peak_mb(), {}
    for name in FILES:
        try:
            read_mat(folder / name, "x") if name.endswith(".mat") else read_raster(folder / name, 0)
            came = "was read"
        except SceneFormatError as error:
            came = str(error)
        found[name] = came, peak_mb() - before
    return found


@pytest.mark.slow
def test_hostile_files_are_refused_within_little_memory(tmp_path):
    for name, write in FILES.items():
        write(tmp_path / name)
        assert (tmp_path / name).stat().st_size < 3_000_000
    for name, (came, grown) in in_a_fresh_process(read_all, tmp_path).items():
        assert came != "was read" and name.split(".")[0] in came and "\n" not in came, (name, came)
        assert "MemoryError" not in came and grown < MEMORY_MB, (name, came, grown)
