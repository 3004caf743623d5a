"""main.py bench --against FOLDER: training steps of this program and of the one in a folder, in turns."""

from __future__ import annotations

import json
import math
import subprocess        # nosec B404 # starts this Python with the two programs
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from model.errors import ConfigError
from utils.bench import table
from utils.bench.measure import PATIENT_BAR
from utils.bench.workloads import Sizes
from utils.run.folder import ROOT
from utils.text import markdown

STEPPER = Path(__file__).with_name("stepper.py")
SHORTEST = 0.5            # seconds that one timing takes at least
WORK = {"s2amsnet released": ("s2amsnet", "released"), "s2amsnet paper": ("s2amsnet", "paper"),
        "s2amsnet robust": ("s2amsnet", "robust"), "erm": ("erm", "robust")}     # row -> method, recipe


def measure(folder: Path, points: Sequence[Sizes], repeats: int, precision: str) -> dict[str, Any]:
    """Seconds of a step here and there for every method and size: a row each, see `text`.

    Raises ConfigError if the folder holds no program of this project.
    """
    checked(folder)
    rows, live = [], sys.stderr.isatty()
    with tqdm(total=len(points) * len(WORK) * repeats, desc="against", unit="turn", dynamic_ncols=True,
              mininterval=0.1 if live else PATIENT_BAR) as bar:
        for sizes in points:
            for name in WORK:
                bar.set_postfix_str(name, refresh=live)
                given = work(name, sizes, precision)
                with stepper(ROOT, given) as here, stepper(folder, given) as there:
                    rows.append({"name": name, "sizes": asdict(sizes), **_in_turns(here, there, repeats, bar)})
    return {"against": str(folder), "precision": precision, "rows": rows}


def checked(folder: Path) -> Path:
    """The folder.  Raises ConfigError if it holds no program of this project."""
    if not (folder / "main.py").is_file():
        raise ConfigError(f"{folder} holds no main.py: name the folder of another version, such as a git worktree.")
    return folder


def work(name: str, sizes: Sizes, precision: str, **settings: Any) -> dict[str, Any]:
    """What a stepper is told of a row and the sizes."""
    method, recipe = WORK[name]
    chosen = {"recipe": recipe, "pro_dim": sizes.pro_dim, "GIN_ch": sizes.GIN_ch, "precision": precision, **settings}
    return {"method": method, "settings": chosen, "bands": sizes.bands, "patch_size": sizes.patch_size,
            "batch_size": sizes.batch_size}


def _in_turns(here: subprocess.Popen, there: subprocess.Popen, repeats: int, bar: tqdm) -> dict[str, Any]:
    """Seconds of a step of both, one timing after the other, and the operator calls of a step."""
    steps = {process: max(1, math.ceil(SHORTEST / timed(process, 1)["seconds"])) for process in (here, there)}
    found: dict[str, list[dict[str, float]]] = {"here": [], "there": []}
    for _ in range(repeats):
        for side, process in (("here", here), ("there", there)):
            found[side].append(timed(process, steps[process]))
        bar.update()
    return {side: {"seconds": [each["seconds"] for each in timings], "calls": timings[0]["calls"]}
            for side, timings in found.items()}


@contextmanager
def stepper(folder: Path, work: dict[str, Any]) -> Iterator[subprocess.Popen]:
    """A process that makes training steps of the program in a folder; it ends with the block."""
    words = [sys.executable, str(STEPPER), str(folder.absolute()), json.dumps(work | {"threads": torch.get_num_threads()})]
    process = subprocess.Popen(words, cwd=folder, text=True,          # nosec B603 # a list of words, no shell
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def timed(process: subprocess.Popen, steps: int) -> dict[str, float]:
    """What a stepper answers.  Raises ConfigError if it has ended: its program is too old, or failed."""
    process.stdin.write(f"{steps}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise ConfigError(f"The training step of the program in {process.args[-2]} failed; what it said stands above.")
    return json.loads(answer)


def text(result: dict[str, Any]) -> str:
    """A row per method and size: milliseconds of a step there and here, speed-up, operator calls; as Markdown."""
    rows = []
    for row in result["rows"]:
        sizes, here, there = row["sizes"], row["here"], row["there"]
        rows.append({"method": row["name"], "patch": sizes["patch_size"], "bands": sizes["bands"],
                     "width": sizes["pro_dim"], "batch": sizes["batch_size"],
                     "before (ms)": table.number(1e3 * np.median(there["seconds"])),
                     "now (ms)": table.number(1e3 * np.median(here["seconds"])),
                     "speed-up": f"{np.median(there['seconds']) / np.median(here['seconds']):.2f}×",
                     "operator calls before": f"{there['calls']:,}", "now": f"{here['calls']:,}"})
    made = pd.DataFrame(rows).set_index("method")
    count = len(result["rows"][0]["here"]["seconds"])
    return (f"{markdown(made, 'training step')}\n\nMedians of {count}, in turns, {result['precision']}. "
            f"{table.machine(result['made'])} {table.made_by(result['made'])}")
