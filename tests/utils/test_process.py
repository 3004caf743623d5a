"""This process: what malloc is told, and memory at its highest point."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fresh import in_a_fresh_process
from utils import process

CPU = torch.device("cpu")
ROOT = Path(process.__file__).parents[1]


def test_another_system_is_told_at_once():
    """Before anything is imported that it does not have."""
    code = "import ctypes, pathlib, platform, sys; sys.platform = 'win32'; import main"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr.startswith("S2AMSnet runs on Linux and macOS.")
    assert ended.stderr.count("\n") == 1 and ended.stdout == ""


class FakeLibc:
    """glibc's two functions; `refuses` lists (parameter, value) pairs that mallopt does not take."""

    def __init__(self, refuses=()):
        self.said, self.refuses = [], refuses

    def mallopt(self, parameter, value):
        self.said.append((parameter, value))
        return int((parameter, value) not in self.refuses)

    def malloc_trim(self, pad):
        self.said.append(("trim", pad))
        return 1


@pytest.fixture
def libc(monkeypatch):
    for name in ("GLIBC_TUNABLES", *process.USERS_WORDS):
        monkeypatch.delenv(name, raising=False)
    fake = FakeLibc()
    monkeypatch.setattr(process, "is_glibc", lambda: True)
    monkeypatch.setattr(process, "_functions", lambda: (fake.mallopt, fake.malloc_trim))
    return fake


def test_freed_memory_is_kept(libc):
    assert process.keep_freed_memory()
    assert libc.said == [(-3, 2 ** 31 - 1), (-1, 2 ** 31 - 1)]


def test_an_older_glibc_never_maps_instead(libc):
    libc.refuses = [(-3, 2 ** 31 - 1)]
    assert process.keep_freed_memory()
    assert libc.said == [(-3, 2 ** 31 - 1), (-4, 0), (-1, 2 ** 31 - 1)]


def test_default_behaviour_gives_back_what_was_kept(libc):
    assert process.default_behaviour()
    assert libc.said == [(-4, 65536), (-3, 32 * 2 ** 20), (-1, 64 * 2 ** 20), ("trim", 0)]


@pytest.mark.parametrize("name, value", [("MALLOC_TRIM_THRESHOLD_", "100000"), ("MALLOC_MMAP_THRESHOLD_", "100000"),
                                         ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=100000")])
def test_the_users_word_stands(libc, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert not process.keep_freed_memory() and not libc.said
    assert process.keep_freed_memory(over_the_user=True) and libc.said


def test_other_tunables_are_no_word_about_it(libc, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    assert process.keep_freed_memory()


def test_nothing_happens_outside_glibc(libc, monkeypatch):
    monkeypatch.setattr(process, "is_glibc", lambda: False)
    assert not process.keep_freed_memory() and not process.default_behaviour()
    process.give_back()
    assert not libc.said


def freed_memory() -> tuple[int, int, int]:
    """Bytes that this process holds once 128 MiB are freed: by default, kept, and after they were given back."""
    def after_freeing():
        block = torch.ones(2 ** 25)
        del block
        return process.reset_peak(CPU)
    process.default_behaviour()
    gone = after_freeing()
    process.keep_freed_memory(over_the_user=True)
    kept = after_freeing()
    process.give_back()
    return gone, kept, process.reset_peak(CPU)


@pytest.mark.slow
def test_freed_memory_really_stays_and_goes():
    if not process.is_glibc() or process.reset_peak(CPU) is None:
        pytest.skip("needs glibc, and a system that tells a process's memory")
    gone, kept, given_back = in_a_fresh_process(freed_memory)
    assert kept - gone > 100 * 2 ** 20 and kept - given_back > 100 * 2 ** 20


def peaks() -> tuple[int, int, int, int, int]:
    """Bytes above those held at first: the highest point and the peak after 64 MiB more were, and, once they are freed
    and a new peak is begun, the same two; and the highest point while they were held."""
    held = process.reset_peak(CPU)
    block = torch.ones(2 ** 24)
    during = process.highest()
    del block
    process.give_back()
    first = process.highest(), process.peak(CPU)
    process.reset_peak(CPU)
    return tuple(value - held for value in (during, *first, process.highest(), process.peak(CPU)))


@pytest.mark.slow
def test_a_peak_is_that_of_its_part_and_the_highest_point_outlives_it():
    if process.reset_peak(CPU) is None:
        pytest.skip("this system does not tell the peak of a part of a process")
    during, highest, peak, still, new_peak = in_a_fresh_process(peaks)
    assert 0.9 * 2 ** 26 < peak < 1.5 * 2 ** 26 and during > 0.9 * 2 ** 26
    assert new_peak < 2 ** 25 and still >= highest >= during
