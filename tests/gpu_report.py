"""What tests/gpu_check.sh has found, part by part: OUT/gpu_check.json, and the same for reading in OUT/gpu_check.md.

    PYTHONPATH=. python tests/gpu_report.py OUT PART EXIT_CODE SECONDS GPU
"""

from __future__ import annotations

from utils import process  # noqa: F401  first, before torch

import json
import sys
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import torch

from model.errors import UserError
from utils.bench import layouts, table
from utils.bench.bench import conditions
from utils.run.build import choose_device
from utils.run.folder import RunFolder
from utils.text import duration, markdown, write_text

NAME = "gpu_check"
PARTS = ("tests", "compiled", "layouts", "paper", "study", "training")     # in the order of the page


def tests_found(folder: Path) -> dict[str, Any]:
    """How many tests passed, failed and were skipped, for which reasons, and what the failed ones said first."""
    cases = list(ElementTree.parse(folder / "tests.xml").iter("testcase"))
    failures, reasons = {}, Counter()
    for case in cases:
        for outcome in case:
            if outcome.tag == "skipped":
                reasons[outcome.get("message")] += 1
            elif outcome.tag in ("failure", "error"):
                failures[f"{case.get('classname')}::{case.get('name')}"] = (outcome.get("message") or "").split("\n")[0]
    return {"tests": len(cases), "passed": len(cases) - len(failures) - sum(reasons.values()), "failures": failures,
            "skipped": dict(reasons)}


def training_found(folder: Path) -> dict[str, Any]:
    """The records of the run that was resumed, and what it says of itself."""
    run = RunFolder(folder / "run")
    about = run.read_run("status")
    kept = ("status", "error", "device", "backend", "seconds", "peak_memory_mib", "patches_per_second")
    return {"epochs": run.records(run.epochs), **{name: about[name] for name in kept if name in about}}


def bench_found(folder: Path) -> dict[str, Any]:
    path, = folder.glob("*.json")
    return json.loads(path.read_text())


READERS = {"tests": tests_found, "compiled": tests_found, "training": training_found}


def tests_text(found: dict[str, Any]) -> str:
    lines = [f"{found['tests']} tests: {found['passed']} passed, {len(found['failures'])} failed, "
             f"{sum(found['skipped'].values())} skipped."]
    lines += [f"- failed: `{name}`: {said}" for name, said in found["failures"].items()]
    lines += [f"- skipped: {count} × {reason}" for reason, count in found["skipped"].items()]
    return "\n".join(lines)


def training_text(found: dict[str, Any]) -> str:
    rows = {str(epoch["epoch"]): {"seconds": table.number(epoch["seconds"]), "steps": str(epoch["steps"]),
                                  **{name: table.number(value) for name, value in epoch["losses"].items()
                                     if name.startswith("loss")},
                                  "source-validation OA": f"{100 * epoch['source_val']['oa']:.1f}"}
            for epoch in found["epochs"]}
    about = [f"{name} {found[name]}" for name in ("status", "device", "backend") if name in found]
    if "peak_memory_mib" in found:
        about.append(f"peak memory {found['peak_memory_mib']:.0f} MiB")
    return f"{markdown(pd.DataFrame.from_dict(rows, orient='index'), 'epoch')}\n\n{', '.join(about)}."


TEXTS = {"tests": tests_text, "compiled": tests_text, "training": training_text, "layouts": layouts.text,
         "paper": table.text, "study": table.text}


def record(out: Path, part: str, code: int, seconds: int, gpu: int) -> dict[str, Any]:
    """The parts so far with this one added: where, when and how it ended, and what it left (None where nothing)."""
    path = out / f"{NAME}.json"
    parts = json.loads(path.read_text())["parts"] if path.exists() else {}
    made = conditions(choose_device(gpu), "auto", [])
    said = (out / NAME / f"{part}.log").read_text(errors="replace").strip().splitlines()
    try:
        found = READERS.get(part, bench_found)(out / NAME / part)
    except (OSError, ValueError, ElementTree.ParseError, UserError) as error:      # the part did not come so far
        found, said = None, [*said, f"Nothing can be read of it: {type(error).__name__}."][-2:]
    parts[part] = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "dry_run": gpu < 0, "exit": code,
                   "seconds": seconds, "device": made["device"], "machine": table.machine(made),
                   "gpu": about_gpu(gpu), "last_words": said[-1:] if code == 0 else said[-3:], "found": found}
    return {"parts": {name: parts[name] for name in PARTS if name in parts}}


def about_gpu(gpu: int) -> dict[str, Any] | None:
    if gpu < 0 or not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(gpu)
    return {"name": found.name, "capability": f"{found.major}.{found.minor}", "memory": found.total_memory,
            "devices": torch.cuda.device_count(), "cuda": torch.version.cuda}


def page(result: dict[str, Any]) -> str:
    """The parts one below the other."""
    blocks = ["# GPU check"]
    for name, part in result["parts"].items():
        ended = "done" if part["exit"] == 0 else f"failed with exit code {part['exit']}"
        dry = "; a dry run, which says nothing about a GPU" if part["dry_run"] else ""
        blocks.append(f"## {name}\n\n{ended} in {duration(part['seconds'])}, {part['date']}, {part['device']}{dry}. "
                      f"{part['machine']}")
        if part["exit"]:
            blocks.append("\n".join(["```", *part["last_words"], "```"]))
        if part["found"] is not None:
            blocks.append(TEXTS[name](part["found"]))
    return "\n\n".join(blocks) + "\n"


def main(out: str, part: str, code: str, seconds: str, gpu: str) -> None:
    folder = Path(out)
    result = record(folder, part, int(code), int(seconds), int(gpu))
    write_text(folder / f"{NAME}.json", json.dumps(result, indent=1) + "\n")
    write_text(folder / f"{NAME}.md", page(result))
    print(f"{part}: exit code {code} after {seconds} s; {folder / NAME}.md")


if __name__ == "__main__":
    main(*sys.argv[1:])
