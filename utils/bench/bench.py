"""main.py bench: speed and memory on this machine, measured in one process, written as JSON and as a table."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Optional

import torch

from model.errors import ConfigError
from model.mmirn import MIN_PATCH
from model.ops import resolve_backend
from utils.bench import growth, table, workloads
from utils.bench.measure import Variant, alternate
from utils.bench.workloads import Sizes, Way
from utils.figures import sheet
from utils.run.build import choose_device
from utils.run.environment import environment
from utils.text import insert_table, write_text

PAPER = Sizes(patch_size=13, pro_dim=128, GIN_ch=24, batch_size=256, bands=48, recipe="released", scene=(210, 954))
SMALL = Sizes(patch_size=5, pro_dim=16, GIN_ch=8, batch_size=16, bands=12, recipe="released", scene=(24, 30),
              inference=64)
OUT, SMALL_OUT = "figure/bench", "runs/bench"
SCENE_REPEATS = 2         # the whole scene takes long, and one run of it averages over many batches
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")      # as /proc/cpuinfo names them


@dataclass
class BenchConfig:
    """Measure speed and memory, in turns in one process: training step and its parts, inference, scene, data path.

    Args:
        small: small sizes and few repetitions: seconds instead of minutes, for tests.
        sweep: measure the growth over batch, bands, patch and width instead.
        out: folder of the JSON and the table; null = figure/bench, with --small runs/bench.
        insert: Markdown file whose part between <!-- FOLDER/NAME --> and <!-- /FOLDER/NAME --> the table replaces;
            FOLDER is that of --out, NAME is speed or growth.
        repeats: timed repetitions; null = 5, with --sweep 3, with --small 2.
        threads: threads of PyTorch; null = as it chooses.
        patch_size: null = 13.
        pro_dim: null = 128.
        GIN_ch: null = 24.
        batch_size: null = 256.
        bands: null = 48.
        recipe: null = released.
        backend: the backend that is compared with the reference.
        gpu: CUDA device number; -1 = CPU.
    """

    small: bool = False
    sweep: bool = False
    out: Optional[str] = None
    insert: Optional[Path] = None
    repeats: Optional[int] = None
    threads: Optional[int] = None
    patch_size: Optional[int] = None
    pro_dim: Optional[int] = None
    GIN_ch: Optional[int] = None
    batch_size: Optional[int] = None
    bands: Optional[int] = None
    recipe: Optional[Literal["released", "paper"]] = None
    backend: Literal["auto", "reference", "cpu", "cupy"] = "auto"
    gpu: int = 0


def run_bench(config: BenchConfig, words: list[str]) -> None:
    """Measure, write JSON and table, print the table.  words: the command line, for the record."""
    sizes, repeats = check(config)
    device = choose_device(config.gpu)
    if config.threads:
        torch.set_num_threads(config.threads)
    out = open_folder(Path(config.out or (SMALL_OUT if config.small else OUT)))
    result = {"made": conditions(device, config.backend, words), "sizes": asdict(sizes), "repeats": repeats}
    if config.sweep:
        axes = growth.SMALL_AXES if config.small else growth.AXES
        result |= growth.measure(sizes, axes, repeats, config.backend, device)
        name, text = "growth", growth.text(result)
        sheet.save(growth.plot_growth(result), out / "growth.png")
    else:
        result |= speed(sizes, repeats, config.backend, device)
        name, text = "speed", table.text(result)
    result["made"]["load"].append(os.getloadavg()[0])
    write_text(out / f"{name}.json", json.dumps(result, indent=1) + "\n")
    write_text(out / f"{name}.md", text + "\n")
    if config.insert:
        insert_table(config.insert, f"{out.name}/{name}", text)
    print(text)


def open_folder(path: Path) -> Path:
    """The folder, made where it is missing.  Raises ConfigError if it cannot be written: before the measurement."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}). Choose another --out.") from error
    if not os.access(path, os.W_OK):
        raise ConfigError(f"{path} cannot be written (no permission). Choose another --out.")
    return path


def check(config: BenchConfig) -> tuple[Sizes, int]:
    """The sizes and repetitions that a command line comes to.  Raises ConfigError for impossible ones."""
    base = SMALL if config.small else growth.BASE if config.sweep else PAPER
    given = {name: value for name, value in vars(config).items() if value is not None}
    for name in given.keys() & {"patch_size", "pro_dim", "GIN_ch", "batch_size", "bands", "repeats", "threads"}:
        if given[name] < 1:
            raise ConfigError(f"{name} must be at least 1, not {given[name]}.")
    sizes = replace(base, **{name: given[name] for name in given.keys() & asdict(base).keys()})
    if sizes.patch_size < MIN_PATCH or sizes.patch_size % 2 == 0:
        raise ConfigError(f"patch_size must be odd and at least {MIN_PATCH}, not {sizes.patch_size}.")
    return sizes, config.repeats or (2 if config.small else 3 if config.sweep else 5)


def speed(sizes: Sizes, repeats: int, backend: str, device: torch.device) -> dict[str, Any]:
    """Every section's measurements: way -> times and memory (see measure.py)."""
    slow, fast = workloads.baselines(device), workloads.fast_ways(backend, device)
    ways = slow | fast
    steps = slow | workloads.step_ways(backend, device)
    step = alternate("training step", _makers(workloads.step, steps, sizes, device)
                     | {"floor": partial(workloads.floor, sizes, device)}, repeats, device)
    parts = alternate("parts", _makers(workloads.parts, {"b": slow["b"]} | fast, sizes, device), repeats, device)
    inference = alternate("inference", _makers(workloads.inference, ways, sizes, device), repeats, device)
    patchwise = {letter: slow[letter] for letter in ("a", "b") if letter in slow}
    scene = alternate("whole scene", _makers(workloads.scene_by_patches, patchwise, sizes, device)
                      | _makers(workloads.scene_as_predicted, fast, sizes, device), min(repeats, SCENE_REPEATS), device)
    own = {f"scene on the device, {name}": partial(workloads.data_on_device, name, sizes, device)
           for name in ("reference", resolve_backend(backend, device))}
    plain = {"one sample at a time (Python data set)": partial(workloads.data_per_sample, sizes, device)}
    data = alternate("data path", plain | own, repeats, device)
    return {"ways": {letter: way.name for letter, way in ways.items()}, "convolution": step.pop("floor"), "step": step,
            "flops": workloads.step_flops(slow["b"], sizes, device), "parts": parts, "inference": inference,
            "scene": scene, "data": data}


def _makers(work: Callable[[Way, Sizes, torch.device], Variant], ways: dict[str, Way], sizes: Sizes,
            device: torch.device) -> dict[str, Callable[[], Variant]]:
    return {way.name: partial(work, way, sizes, device) for way in ways.values()}


def conditions(device: torch.device, backend: str, words: list[str]) -> dict[str, Any]:
    """What a reader needs to judge the numbers: machine, versions, commit, command, load before (and, later, after)."""
    information = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", information, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", information, re.MULTILINE)
    there = flags[1].split() if flags else []
    return environment(device, resolve_backend(backend, device)) | {
        "command": ["bench", *words], "cpu": model[1] if model else platform.processor(), "cores": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in there], "load": [os.getloadavg()[0]]}
