"""How many runs of a sweep go at a time on this machine, and with how many threads each."""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Optional

import torch
from joblib import cpu_count
from tqdm import tqdm

from datasets import formats
from model.errors import SystemRefusedError, UserError
from utils.process import refusals_told
from utils.run.config import TrainConfig
from utils.run.estimate import memory_of_run
from utils.sweep import guard
from utils.text import size

log = logging.getLogger(__name__)


def at_a_time(jobs: Optional[int], threads: Optional[int], runs: int,
              left: Sequence[TrainConfig]) -> tuple[int, Optional[int]]:
    """Runs at a time, and the threads of each (None = what PyTorch chooses).

    jobs: stands where it is given, and memory is warned of.  threads: of a run, where they are given; else those that
    OMP_NUM_THREADS gives, else one, or more where cores are left over.  runs: of the whole sweep, so that one that is
    started again gives its runs the same threads.  left: settings of those that are not done.
    """
    if any(config.gpu >= 0 for config in left) and torch.cuda.is_available():
        return jobs or 1, threads or (1 if (jobs or 1) > 1 else None)
    if jobs is not None:
        _fitting(jobs, left, asked=True)
        return jobs, threads or (1 if jobs > 1 else None)
    if threads is None and "OMP_NUM_THREADS" in os.environ:
        threads = torch.get_num_threads()
    cores = cpu_count()
    jobs = _fitting(max(1, min(cores // (threads or 1), runs)), left, asked=False)
    if jobs > 1:
        threads = threads or cores // jobs
        log.info("%d runs at a time, %d thread%s each, on %d cores (--jobs, --cpus_per_run).", jobs, threads,
                 "s" * (threads > 1), cores)
    return jobs, threads


def _fitting(jobs: int, left: Sequence[TrainConfig], asked: bool) -> int:
    """So many runs at a time, or as many as free memory holds; where that is fewer, one line says so.

    asked: whether the number is the user's, which stands.
    """
    together, free = min(jobs, len(left)), formats.free_memory()
    if together == 1 or free is None:
        return jobs
    needed = largest(left)
    if needed is None or together * needed <= free:
        return jobs
    fit = max(1, int(free // needed))
    told = "more than could be measured" if needed == math.inf else f"up to {size(needed)}"
    log.warning("Memory is short for %d runs at a time: one needs %s, and %s is free. %s", together, told, size(free),
                f"--jobs {fit} takes less." if asked else f"So {fit} at a time (--jobs sets another number).")
    return fit


def largest(configs: Sequence[TrainConfig]) -> Optional[float]:
    """Bytes that the largest of these runs takes, each setting measured in a process of its own; infinite where that
    process does not get through, None where the system does not tell."""
    settings = list({repr(replace(config, seed=0, simulation=replace(config.simulation, seed=0))): config
                     for config in configs}.values())                    # simulated pairs of any seed are of one size
    context = get_context("fork")
    hearing, speaking = context.Pipe(duplex=False)
    measuring = context.Process(target=_measure, args=(settings, os.getpid(), speaking), daemon=True)
    measuring.start()
    speaking.close()
    try:
        bar = tqdm(settings, desc="memory of a run", unit="setting", leave=False, dynamic_ncols=True, delay=1)
        found = [hearing.recv() for _ in bar]
    except EOFError:
        return math.inf
    finally:
        hearing.close()
        measuring.kill()
        measuring.join()
    return None if None in found else max(found)


def _measure(settings: list[TrainConfig], parent: int, speaking: Connection) -> None:
    """Send the bytes of each setting; 0 for a run that will be refused, and say why, by itself.

    One thread: a pool that the parent may have started is not in this process.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    guard.end_with(parent)
    logging.disable()
    torch.set_num_threads(1)
    for config in settings:
        try:
            with refusals_told():
                needed = memory_of_run(config)
        except SystemRefusedError:
            needed = math.inf
        except UserError:
            needed = 0
        speaking.send(needed)
