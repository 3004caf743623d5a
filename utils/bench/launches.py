"""main.py bench --launches: what a training step starts on a GPU, counted without one, here and in another version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from utils.bench import against, table
from utils.bench.workloads import Sizes
from utils.run.folder import ROOT
from utils.text import markdown

COUNTS = {"working": "operators", "kernels": "kernels"}         # as stepper.py counts them -> words of the table


def count(folder: Path | None, points: Sequence[Sizes], precision: str) -> dict[str, Any]:
    """A row per method and size: name, sizes, and the counts of a step here and, if a folder is given, there.

    Raises ConfigError if the folder holds no program of this project.
    """
    sides = {"here": ROOT} | ({} if folder is None else {"there": against.checked(folder)})
    rows = []
    for sizes in points:
        for name in against.WORK:
            row: dict[str, Any] = {"name": name, "sizes": asdict(sizes)}
            for side, program in sides.items():
                with against.stepper(program, against.work(name, sizes, precision, backend="cupy")) as process:
                    found = against.timed(process, 1)
                row[side] = {kind: found[kind] for kind in COUNTS}
            rows.append(row)
    return {"against": None if folder is None else str(folder), "precision": precision, "rows": rows}


def text(result: dict[str, Any]) -> str:
    """A row per method and size: what a step calls and starts there and here, and by how much fewer; as Markdown."""
    rows = []
    for row in result["rows"]:
        sizes, here, there = row["sizes"], row["here"], row.get("there")
        made = {"method": row["name"], "patch": sizes["patch_size"], "bands": sizes["bands"],
                "width": sizes["pro_dim"], "batch": sizes["batch_size"]}
        for kind, words in COUNTS.items():
            if there:
                made |= {f"{words} before": f"{there[kind]:,}", f"{words} now": f"{here[kind]:,}",
                         f"fewer {words}": f"{there[kind] / here[kind]:.2f}×"}
            else:
                made[words] = f"{here[kind]:,}"
        rows.append(made)
    made = pd.DataFrame(rows).set_index("method")
    return (f"{markdown(made, 'training step')}\n\nCounted on a CPU with the backend cupy, {result['precision']}. "
            f"{table.machine(result['made'])} {table.made_by(result['made'])}")
