"""What a training run will cost on this machine, told before it starts: seconds and memory.

A probe tells it: a method of the same settings makes steps with an eighth and a quarter of the batch, on made-up
patches, and what they take is extrapolated in a straight line to the whole batch.  A prediction is probed likewise.
The probe has random streams of its own and reads no weights.  It neither compiles nor records its steps, so a run with
compile or cuda_graph is faster than told.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datasets import formats
from datasets.perturb import VIEWS
from model.methods import Method, Task, method_class
from model.scan.scanner import COLUMNS, Region, Scanner
from model.seeding import Streams
from utils import process
from utils.run.build import Data, build_method, load_data
from utils.run.config import TrainConfig
from utils.run.predict import BATCH, can_scan, plan
from utils.run.scoring import CLEAN_PATCHES
from utils.text import duration, size

log = logging.getLogger(__name__)

PATCHES = 8000            # that a run trains on for every timing of the probe, which then takes at most 5 % of the run
FEW, MORE = 8, 4          # of the batch, an eighth and a quarter are probed
LEAST = 16                # patches: seconds are no straight line below, where other kernels serve
MOMENT, MOST = 1.0, 5     # seconds after which nothing is timed again, and timings at most


@dataclass(frozen=True)
class Work:
    """Seconds that something takes, and bytes that it takes meanwhile (None where the system does not tell)."""

    seconds: float
    memory: float | None


@dataclass(frozen=True)
class Estimate:
    """Seconds of a step, seconds of an epoch with its evaluation, bytes beside what the process holds already (None
    where the system does not tell)."""

    step: float
    epoch: float
    memory: float | None


def announce(config: TrainConfig, data: Data, device: torch.device, epochs: int) -> None:
    """Log what the coming epochs will cost, and warn where memory is short.

    Nothing is said of a method that learns in one epoch, nor of a run of a few steps.
    """
    timings = min(MOST, epochs * len(data.train) * data.train.repeat // PATCHES)
    if method_class(config.method).fits_in_one_epoch or timings < 1:
        return
    free = free_memory(device)
    found = estimate(config, data, device, timings)
    log.info("Estimate: %s", describe(found, epochs, free))
    if found.memory is not None and free is not None and found.memory > free:
        log.warning("Memory is short: the run needs about %s, and %s is free. A smaller --batch_size, --patch_size or "
                    "--pro_dim takes less.", size(found.memory), size(free))


def estimate(config: TrainConfig, data: Data, device: torch.device, timings: int) -> Estimate:
    """Extrapolated from a probe, each part of which is timed so often.  The diagnostics, once per evaluation, count as
    a step."""
    batch, predicted = min(config.batch_size, len(data.train) * data.train.repeat), predictions(config, data)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        method = fresh_method(config, data.task, device)
        step = probe(lambda n: step_of(method, n), batch, device, timings)
        prediction = probe(lambda n: prediction_of(method, n), min(BATCH, predicted), device, timings)
        scan = 0 if step.memory is None else scan_memory(method, data, device)
    evaluation = step.seconds + predicted / min(BATCH, predicted) * prediction.seconds
    return Estimate(step.seconds,
                    data.train.epoch_length(config.batch_size) * step.seconds + evaluation / config.eval_interval,
                    None if step.memory is None else max(step.memory, prediction.memory, scan))


def memory_of_run(config: TrainConfig) -> float | None:
    """Bytes that a whole run on the CPU takes at its highest point, program and scenes included; None where the system
    does not tell.  This process takes them but for the step's.  Raises UserError where the run would be refused."""
    device = torch.device("cpu")
    process.give_back()
    if process.reset_peak(device) is None:
        return None
    data = load_data(config, device, Streams(config.seed, device).split)
    loading = process.peak(device)
    if method_class(config.method).fits_in_one_epoch:
        return loading
    process.give_back()
    held = process.reset_peak(device)
    return max(loading, held + estimate(config, data, device, 1).memory)


def predictions(config: TrainConfig, data: Data) -> int:
    """Patches that an evaluation predicts, at most: where they lie close together, less work does."""
    target = (len(data.test) if config.oracle else 0) + (len(data.unlabelled) if data.unlabelled else 0)
    clean = min(CLEAN_PATCHES, len(data.train)) if config.batchnorm_statistics == "source" else 0
    source = len(data.val) + len(VIEWS) * len(data.shifted) if data.val else 0
    return source + target + clean


def scan_memory(method: Method, data: Data, device: torch.device) -> float:
    """Bytes that the largest scan of an evaluation takes, extrapolated from blocks of an eighth and a quarter of its
    rows; 0 where none is made."""
    found = [(region, sampler) for sampler in (data.val, data.test) if sampler and can_scan(method)
             for region, _ in plan(sampler.centres.cpu().numpy(), sampler.patch_size)]
    if not found:
        return 0
    region, sampler = max(found, key=lambda each: each[0].height * each[0].width)
    scanner = Scanner(method.discriminator, sampler.patch_size, sampler.backend)
    tile = Region(region.row, region.column, region.height, -(-region.width // -(-region.width // COLUMNS)))
    rows = scanner.block_rows(tile, device)
    few, more = max(1, rows // FEW), max(2, rows // MORE)
    return straight(few, more, rows, *(memory_of(lambda: next(scanner.blocks(sampler.cube, tile, rows=n)), device)
                                       for n in (few, more)))


def fresh_method(config: TrainConfig, task: Task, device: torch.device) -> Method:
    """A method as in mid-run that disturbs no other: streams of its own, made-up target patches."""
    plain = replace(config, compile=False, cuda_graph=False)
    method = build_method(plain, task, Streams(0, device), device)
    method.draw_target = lambda n: made_up(task, n, device)[0]
    method.schedule(1, 2, 1)
    return method


def made_up(task: Task, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Patches of unit spectra [N, B, P, P], the same at every call, and labels [N] in turn."""
    x = torch.rand(n, task.bands, task.patch_size, task.patch_size, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(x, dim=1).to(device), torch.arange(n, device=device) % task.n_classes


def step_of(method: Method, n: int) -> Callable[[], object]:
    """A training step with n patches; it ends when the device has done it."""
    x, y = made_up(method.task, n, method.device)
    return lambda: method.update(x, y)


def prediction_of(method: Method, n: int) -> Callable[[], object]:
    """A prediction of n patches; it ends when the device has made it."""
    x, _ = made_up(method.task, n, method.device)
    return lambda: method.predict(x).cpu()


def probe(work: Callable[[int], Callable[[], object]], n: int, device: torch.device, timings: int) -> Work:
    """What work with n patches takes, from an eighth and a quarter of them, after a short one to warm up."""
    few, more = min(n, max(LEAST, n // FEW)), min(n, max(2 * LEAST, n // MORE))
    runs = [work(few), work(more)]
    runs[0]()
    memory = [memory_of(run, device) for run in runs]
    return Work(straight(few, more, n, *seconds_of(runs, timings)),
                None if None in memory else straight(few, more, n, *memory))


def straight(few: int, more: int, n: int, small: float, large: float) -> float:
    """The value at n of the straight line through (few, small) and (more, large); at least the larger one, which noise
    in little work can turn round."""
    return max(small, large, large + (large - small) * (n - more) / max(more - few, 1))


def memory_of(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that a call takes at its highest point, None where the system does not tell."""
    process.give_back()
    held = process.reset_peak(device)
    run()
    return None if held is None else process.peak(device) - held


def seconds_of(runs: list[Callable[[], object]], timings: int) -> list[float]:
    """Seconds of each call: the least of so many, made in turns, or of fewer where they take long."""
    rows: list[list[float]] = []
    while not rows or (sum(map(sum, rows)) < MOMENT and len(rows) < timings):
        rows.append([])
        for run in runs:
            started = time.perf_counter()
            run()
            rows[-1].append(time.perf_counter() - started)
    return [min(column) for column in zip(*rows)]


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process can still take: the GPU's on CUDA, else the system's; None where it does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return formats.free_memory()


def describe(found: Estimate, epochs: int, free: int | None) -> str:
    """about 2.4 s a step, 3 h 12 min for 400 epochs, 2.1 GB of memory (23.0 GB free)"""
    there = "" if free is None else f" ({size(free)} free)"
    memory = "" if found.memory is None else f", {size(found.memory)} of memory{there}"
    return (f"about {duration(found.step)} a step, {duration(epochs * found.epoch)} for {epochs} "
            f"epoch{'s' * (epochs > 1)}{memory}")
