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
from utils.bench import against, growth, launches, layouts, table, workloads
from utils.bench.measure import Variant, alternate
from utils.bench.workloads import Sizes, Way
from utils.figures import sheet
from utils.run.build import choose_device
from utils.run.environment import environment
from utils.text import insert_table, write_text

PAPER = Sizes(patch_size=13, pro_dim=128, GIN_ch=24, batch_size=256, bands=48, recipe="released", scene=(210, 954))
STUDY = Sizes(patch_size=5, pro_dim=32, GIN_ch=12, batch_size=64, bands=48, recipe="released", scene=(210, 954))
DEMO = replace(STUDY, patch_size=7)
SIZES = {"paper": PAPER, "study": STUDY, "demo": DEMO}
SMALL = Sizes(patch_size=5, pro_dim=16, GIN_ch=8, batch_size=16, bands=12, recipe="released", scene=(24, 30),
              inference=64)
OUT, SMALL_OUT = "figure/bench", "runs/bench"
FLOORS = {"float32": torch.float32, "bf16": torch.bfloat16}
SCENE_REPEATS = 2         # the whole scene takes long, and one run of it averages over many batches
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")      # as /proc/cpuinfo names them


@dataclass
class BenchConfig:
    """Measure speed and memory, in turns in one process: training step and its parts, inference, scene, data path.

    Args:
        size: the paper's, those of this repository's studies, or the demo's.
        full: all ways and repetitions: a quarter of an hour at the paper's size.
        small: tiny sizes and few repetitions: seconds instead of minutes, for tests.
        sweep: measure the growth over batch, bands, patch and width instead.
        layouts: measure the training step in both memory layouts and every precision, on a GPU also captured, instead.
        against: folder of another version of this program: measure the training steps of both in turns instead.
        launches: count what training steps start on a GPU instead, with --against in both versions; needs no GPU.
        out: folder of the JSON and the table; null = figure/bench, with --small runs/bench.
        insert: Markdown file whose part between <!-- FOLDER/NAME --> and <!-- /FOLDER/NAME --> the table replaces;
            FOLDER is that of --out, NAME is speed, growth, layouts, against or launches.
        repeats: timed repetitions; null = 2, with --full 5, with --sweep 3, with --against 5.
        threads: threads of PyTorch; null = as it chooses.
        patch_size: null = 13, in studies 5, with --against study 5 and 9.
        pro_dim: null = 128, in studies 32.
        GIN_ch: null = 24, in studies 12.
        batch_size: null = 256, in studies 64.
        bands: null = 48, with --against study 48 and 176.
        recipe: null = released.
        precision: of the discriminator, with --against.
        backend: the backend that is compared with the reference.
        gpu: CUDA device number; -1 = CPU.
    """

    size: Literal["paper", "study", "demo"] = "paper"
    full: bool = False
    small: bool = False
    sweep: bool = False
    layouts: bool = False
    against: Optional[Path] = None
    launches: bool = False
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
    precision: Literal["float32", "bf16"] = "float32"
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
    if config.launches:
        result |= launches.count(config.against, points(config, sizes), config.precision)
        name, text = "launches", launches.text(result)
    elif config.against:
        result |= against.measure(config.against, points(config, sizes), repeats, config.precision)
        name, text = "against", against.text(result)
    elif config.sweep:
        axes = growth.SMALL_AXES if config.small else growth.AXES
        result |= growth.measure(sizes, axes, repeats, config.backend, device)
        name, text = "growth", growth.text(result)
        sheet.save(growth.plot_growth(result), out / "growth.png")
    elif config.layouts:
        result |= layouts.measure(sizes, repeats, config.backend, device)
        name, text = "layouts", layouts.text(result)
    else:
        result |= speed(sizes, repeats, config.backend, device, config.full or config.small)
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
    base = SMALL if config.small else growth.BASE if config.sweep else SIZES[config.size]
    given = {name: value for name, value in vars(config).items() if value is not None}
    for name in given.keys() & {"patch_size", "pro_dim", "GIN_ch", "batch_size", "bands", "repeats", "threads"}:
        if given[name] < 1:
            raise ConfigError(f"{name} must be at least 1, not {given[name]}.")
    sizes = replace(base, **{name: given[name] for name in given.keys() & asdict(base).keys()})
    if sizes.patch_size < MIN_PATCH or sizes.patch_size % 2 == 0:
        raise ConfigError(f"patch_size must be odd and at least {MIN_PATCH}, not {sizes.patch_size}.")
    default = 2 if config.small else 3 if config.sweep else 5 if config.full or config.against else 2
    return sizes, config.repeats or default


def points(config: BenchConfig, sizes: Sizes) -> list[Sizes]:
    """The sizes at which two programs are compared: the one of the command line, of studies the largest one, too."""
    both = config.size == "study" and not config.small and config.patch_size is None and config.bands is None
    return [sizes, replace(sizes, patch_size=9, bands=176)] if both else [sizes]


def speed(sizes: Sizes, repeats: int, backend: str, device: torch.device, full: bool) -> dict[str, Any]:
    """Every section's measurements: way -> times and memory (see measure.py).  Not in full: of the baselines (b) alone."""
    slow, fast = workloads.baselines(device), workloads.fast_ways(backend, device)
    slow = slow if full else {"b": slow["b"]}
    ways = slow | fast
    steps = slow | workloads.step_ways(backend, device)
    floors = {name: partial(workloads.floor, sizes, dtype, device) for name, dtype in FLOORS.items()}
    step = alternate("training step", _makers(workloads.step, steps, sizes, device) | floors, repeats, device)
    recorders = {letter: workloads.recorded_step(way, sizes, device) for letter, way in steps.items()
                 if not way.settings.keys() & workloads.UNCOUNTED}
    calls = {way.name: recorders[letter].calls if letter in recorders else None for letter, way in steps.items()}
    own = workloads.own_floor(recorders["float32" if "float32" in recorders else "b"], device)
    recorders.clear()                                    # and the arguments of a step with them
    parts = alternate("parts", _makers(workloads.parts, {"b": slow["b"]} | fast, sizes, device), repeats if full else 1,
                      device)                            # a run of it is several steps
    inference = alternate("inference", _makers(workloads.inference, ways, sizes, device), repeats, device)
    patchwise = {letter: slow[letter] for letter in ("a", "b") if letter in slow}
    scene = alternate("whole scene", _makers(workloads.scene_by_patches, patchwise, sizes, device)
                      | _makers(workloads.scene_as_predicted, fast, sizes, device), min(repeats, SCENE_REPEATS), device)
    ours = {f"scene on the device, {name}": partial(workloads.data_on_device, name, sizes, device)
           for name in ("reference", resolve_backend(backend, device))}
    plain = {"one sample at a time (Python data set)": partial(workloads.data_per_sample, sizes, device)}
    data = alternate("data path", plain | ours, repeats, device)
    return {"ways": {letter: way.name for letter, way in ways.items()},
            "convolution": {name: step.pop(name) for name in floors}, "own_floor": own, "calls": calls, "step": step,
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
