"""What a training run will cost on this machine, told before it starts: seconds and memory.

    seconds of a step = (operations + WEIGHT · kept values) / throughput + OVERHEAD · passes

Operations and kept values are closed forms (flops.py, activations.py).  The throughput, operations per
second of the discriminator's 3×3 convolution at the run's own sizes, is measured in a fraction of a second.  What is
bound by memory (norms, involution, activations) counts as so many operations per value that it keeps.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from datasets.perturb import VIEWS
from model.methods import Task
from model.ops import resolve_backend
from model.settings import Settings
from utils.bench.measure import Stopwatch
from utils.run import activations, flops
from utils.run.build import Data
from utils.run.config import TrainConfig
from utils.run.predict import BATCH
from utils.text import duration, size

log = logging.getLogger(__name__)

# Fitted to steps measured as main.py bench does, on one core with AVX-512, at patches of 5 to 13, widths of 16 to 128
# and batches of 16 to 256: within 30 % of all of them.  No GPU was measured; its numbers stand in for one.
WEIGHT = {"reference": 1000, "cpu": 700, "cupy": 700}     # operations that a kept value stands for, by backend
OVERHEAD = 0.003                                          # seconds of Python and dispatch per network and pass
FORWARD = 1 / 3                                           # of a pass with its backward, in a prediction
OPERATIONS = {"s2amsnet": flops.s2amsnet_step, "erm": flops.erm_step, "erm_gain": flops.erm_step}
KEPT = {"s2amsnet": activations.s2amsnet_step, "erm": activations.erm_step, "erm_gain": activations.erm_step}
DIAGNOSED = {"s2amsnet"}  # whose diagnostics take about as long as a step, once per evaluation
NARROWEST = 32            # below, a convolution's own overhead would stand for that of everything else
TINY = 2e9                # operations of one measured convolution at most
BUDGET, MOST = 0.05, 20   # seconds after which no further one starts, and their number at most
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Estimate:
    """Seconds of a step, seconds of an epoch with its evaluation, bytes beside what the process holds already."""

    step: float
    epoch: float
    memory: float


def announce(config: TrainConfig, data: Data, device: torch.device, epochs: int) -> None:
    """Log what the coming epochs will cost, and warn where memory will not do.

    A method without a closed form gets no word.
    """
    if config.method not in OPERATIONS or epochs < 1:
        return
    predicted = len(data.val) + len(VIEWS) * len(data.shifted) + (len(data.test) if config.oracle else 0) \
        + (len(data.unlabelled) if data.unlabelled else 0)
    steps, free = data.train.epoch_length(config.batch_size), free_memory(device)
    found = estimate(config, data.task, config.batch_size, steps, predicted, device, config.eval_interval)
    log.info("Estimate: %s", describe(found, epochs, free))
    if free is not None and found.memory > free:
        log.warning("Memory will not do: the run needs about %s, and %s is free. A smaller --batch_size, --patch_size "
                    "or --pro_dim takes less.", size(found.memory), size(free))


def estimate(settings: Settings, task: Task, batch: int, steps: int, predicted: int, device: torch.device,
             interval: int = 1) -> Estimate:
    """Of a run with so many steps per epoch and so many patches to predict every `interval` epochs."""
    backend = resolve_backend(settings.backend, device)
    weight, kept = WEIGHT[backend], KEPT[settings.method](task, settings, batch, backend)
    of_classifier, of_others = OPERATIONS[settings.method](task, settings, batch)
    plain = throughput(batch, settings.pro_dim, task.patch_size, torch.float32, device)
    judging = plain if settings.precision == "float32" else throughput(batch, settings.pro_dim, task.patch_size,
                                                                       torch.bfloat16, device)
    step = (of_classifier + weight * kept.classifier) / judging + (of_others + weight * kept.others) / plain
    step += OVERHEAD * kept.passes
    values = activations.discriminator(task, settings, backend)
    patch = (flops.discriminator(task, settings).all + FORWARD * weight * values) / judging
    epoch = steps * step + ((settings.method in DIAGNOSED) * step + predicted * patch) / interval
    memory = max(kept.held, activations.prediction(task, settings, min(predicted, BATCH), backend))
    return Estimate(step, epoch, memory)


def convolution(n: int, d: int, p: int, dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], object], int]:
    """The discriminator's 3×3 convolution d → d of n patches, forward and both gradients, channels_last; and its
    operations.  Draws no random numbers."""
    x, w = (torch.ones(shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last).requires_grad_()
            for shape in ((n, d, p, p), (d, d, 3, 3)))
    gradient = x.detach().clone()
    return (lambda: torch.autograd.grad(functional.conv2d(x, w, padding=1), (x, w), gradient),
            3 * 2 * n * d * d * 9 * p * p)


def throughput(batch: int, width: int, patch_size: int, dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of the discriminator's convolution, at a batch that takes a moment: the best of a few."""
    width = max(width, NARROWEST)
    _, single = convolution(1, width, patch_size, dtype, device)
    run, operations = convolution(max(1, min(batch, int(TINY // single))), width, patch_size, dtype, device)
    run()
    times: list[float] = []
    while sum(times) < BUDGET and len(times) < MOST:
        watch = Stopwatch(device)
        with watch.lap("convolution"):
            run()
        times.append(watch.seconds()["convolution"])
    return operations / min(times)


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process can still take: the GPU's on CUDA, else the system's; None where it does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = re.search(r"^MemAvailable:\s+(\d+) kB", MEMINFO.read_text(), re.MULTILINE) if MEMINFO.exists() else None
    return 1024 * int(found[1]) if found else None


def describe(found: Estimate, epochs: int, free: int | None) -> str:
    """about 2.4 s a step, 3 h 12 min for 400 epochs, 2.1 GB of memory (23.0 GB free)"""
    there = "" if free is None else f" ({size(free)} free)"
    return (f"about {duration(found.step)} a step, {duration(epochs * found.epoch)} for {epochs} "
            f"epoch{'s' * (epochs > 1)}, {size(found.memory)} of memory{there}")
