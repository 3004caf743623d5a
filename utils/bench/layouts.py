"""main.py bench --layouts: the training step with patches in NCHW and in channels_last, in every precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, get_args, get_type_hints

import pandas as pd
import torch

from model.graphs import precision_missing
from model.ops import resolve_backend
from model.settings import Settings
from utils.bench import table, workloads
from utils.bench.measure import alternate
from utils.bench.workloads import Sizes, Way
from utils.text import markdown

LAYOUTS = {"channels last": torch.channels_last, "NCHW": torch.contiguous_format}
PRECISIONS = get_args(get_type_hints(Settings)["precision"])


@contextmanager
def tf32() -> Iterator[None]:
    """Inside, a GPU computes convolutions and matrix products in TF32, as with precision 'tf32'."""
    flags = [(part, part.allow_tf32) for part in (torch.backends.cudnn, torch.backends.cuda.matmul)]
    for part, _ in flags:
        part.allow_tf32 = True
    try:
        yield
    finally:
        for part, before in flags:
            part.allow_tf32 = before


def ways(backend: str, device: torch.device) -> list[Way]:
    """The reference as it is, then each layout in each precision that the device has; on a GPU the usual layout
    captured as a CUDA graph, too."""
    fast, found = resolve_backend(backend, device), [workloads.baselines(device)["b"]]
    for precision in (each for each in PRECISIONS if not precision_missing(each, device)):
        options = {"settings": {"backend": fast, "precision": precision}}
        if precision == "tf32":
            options["context"] = tf32
        found += [Way(f"{fast}, {precision}, {name}", layout=layout, **options) for name, layout in LAYOUTS.items()]
        if device.type == "cuda":
            options["settings"] = options["settings"] | {"cuda_graph": True}
            found.append(Way(f"{fast}, {precision}, CUDA graph", **options))
    return found


def measure(sizes: Sizes, repeats: int, backend: str, device: torch.device) -> dict[str, Any]:
    """Seconds and memory of the training step of every way."""
    all_ways = ways(backend, device)
    makers = {way.name: partial(workloads.step, way, sizes, device) for way in all_ways}
    return {"ways": {"b": all_ways[0].name}, "step": alternate("layouts", makers, repeats, device)}


def text(result: dict[str, Any]) -> str:
    """A row per way: milliseconds of a step, how many times faster than the reference, peak memory; as Markdown."""
    reference = table.seconds(result["step"][result["ways"]["b"]])
    rows = {name: {"ms": table.number(1e3 * table.seconds(entry)),
                   "on reference": table.times(reference / table.seconds(entry)),
                   "peak memory": table.gigabytes(entry["peak_bytes"])} for name, entry in result["step"].items()}
    made = markdown(pd.DataFrame.from_dict(rows, orient="index"), "training step")
    return f"{made}\n\n{table.memory_line(result)} {table.closing(result)}"
