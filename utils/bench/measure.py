"""Times and peak memory of several ways to do the same thing, taken in turns in one process."""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from utils import process
from utils.process import peak, reset_peak

SHORTEST = 0.05           # seconds that one timing takes at least: shorter work is repeated and divided
LONG = 10.0               # seconds from which the warm-up has one run less
PATIENT_BAR = 30.0        # seconds between progress lines where the output is not a terminal


class Stopwatch:
    """Seconds of named laps, added up where a lap is run several times.  CUDA events on a GPU, elsewhere the clock."""

    def __init__(self, device: torch.device):
        self._device, self._cuda = device, device.type == "cuda"
        self._laps: list[tuple[str, Any, Any]] = []

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self._laps.append((name, start, self._now()))

    def seconds(self) -> dict[str, float]:
        if self._cuda:
            torch.cuda.synchronize(self._device)
        total: dict[str, float] = {}
        for name, start, end in self._laps:
            total[name] = total.get(name, 0.0) + (start.elapsed_time(end) / 1e3 if self._cuda else end - start)
        return total

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


@dataclass(frozen=True)
class Variant:
    """One way to do the work.

    run     does it once, its parts timed as laps of the stopwatch
    items   patches or pixels that one run handles; 0 where nothing is counted
    keeps   whether freed memory stays in the process meanwhile (utils/process.py)
    """

    run: Callable[[Stopwatch], None]
    items: int = 0
    keeps_freed_memory: bool = True


def alternate(title: str, makers: dict[str, Callable[[], Variant]], repeats: int,
              device: torch.device) -> dict[str, dict[str, Any]]:
    """Run A, B, C, A, B, C, ... after a warm-up of each, and show the progress.

    Returns per variant {"items", "held_bytes", "peak_bytes" (before and at the highest point of the warm-up; None where
    the system does not tell), "laps": {name: {"seconds": [one per repeat], "median", "min", "iqr"}}}.

    Each variant is warmed up alone, before any other is made and with all freed memory given back, so that its peak is
    its own.  One that keeps memory runs untimed once after memory was given back, since its heap has to grow first.
    """
    live, found, inner = sys.stderr.isatty(), {}, {}
    with tqdm(total=len(makers) * (repeats + 1), desc=title, unit="run", dynamic_ncols=True,
              mininterval=0.1 if live else PATIENT_BAR) as bar:
        for name, make in makers.items():
            bar.set_postfix_str(f"{name}, warm-up", refresh=live)
            found[name], inner[name] = _warm_up(make(), device)
            bar.update()
        variants, times, grown = {name: make() for name, make in makers.items()}, {name: [] for name in makers}, set()
        for _ in range(repeats):
            for name, variant in variants.items():
                bar.set_postfix_str(name, refresh=live)
                _set_allocator(variant.keeps_freed_memory)
                if not variant.keeps_freed_memory:
                    grown.clear()
                elif name not in grown:
                    _time(variant, device)
                    grown.add(name)
                times[name].append(_time(variant, device, inner[name]))
                bar.update()
    _set_allocator(True)
    for name, rows in times.items():
        found[name]["laps"] = {lap: summary([row[lap] for row in rows]) for lap in rows[0]}
    return found


def summary(seconds: list[float]) -> dict[str, Any]:
    """The raw times, their median, minimum and interquartile range."""
    low, middle, high = np.percentile(seconds, [25, 50, 75])
    return {"seconds": seconds, "median": middle, "min": min(seconds), "iqr": high - low}


def _set_allocator(keeps: bool) -> None:
    """Default behaviour gives back what was kept."""
    if keeps:
        process.keep_freed_memory(over_the_user=True)
    else:
        process.default_behaviour()


def _warm_up(variant: Variant, device: torch.device) -> tuple[dict[str, Any], int]:
    """Three untimed runs (two of long ones): what the later ones hold, and how many runs make one timing.

    The first takes what stays once and for all: optimiser states, compiled kernels, buffers of libraries.
    """
    _set_allocator(variant.keeps_freed_memory)
    _time(variant, device)
    gc.collect()                                  # the variant before may lie in cycles
    process.give_back()
    held = reset_peak(device)
    seconds = sum(_time(variant, device).values())
    if seconds < LONG:
        seconds = sum(_time(variant, device).values())
    highest = None if held is None else peak(device)
    return {"items": variant.items, "held_bytes": held, "peak_bytes": highest}, max(1, math.ceil(SHORTEST / seconds))


def _time(variant: Variant, device: torch.device, inner: int = 1) -> dict[str, float]:
    watch = Stopwatch(device)
    for _ in range(inner):
        variant.run(watch)
    return {lap: seconds / inner for lap, seconds in watch.seconds().items()}
