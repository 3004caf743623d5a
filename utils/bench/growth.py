"""How seconds and memory of a step grow with batch, bands, patch and width: measurement, table, figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from utils.bench import table, workloads
from utils.bench.measure import alternate
from utils.bench.workloads import Sizes, Way
from utils.figures.palette import LINE_COLOURS
from utils.figures.sheet import LABEL, SMALL, page
from utils.text import MISSING, markdown

BASE = Sizes(patch_size=9, pro_dim=64, GIN_ch=24, batch_size=64, bands=48, recipe="released", scene=(210, 954))
AXES = {"batch_size": (16, 32, 64, 128, 256), "bands": (48, 96, 192, 400), "patch_size": (5, 9, 13, 17, 21),
        "pro_dim": (16, 32, 64, 128)}
SMALL_AXES = {"batch_size": (8, 16), "bands": (12, 24), "patch_size": (5, 7), "pro_dim": (8, 16)}
NAMES = {"batch_size": "batch", "bands": "bands", "patch_size": "patch", "pro_dim": "width"}
QUANTITIES = {"step": "training step (s)", "memory": "memory a step adds (GB)", "inference": "inference, a batch (s)"}


def measure(base: Sizes, axes: Mapping[str, Sequence[int]], repeats: int, backend: str,
            device: torch.device) -> dict[str, Any]:
    """Training step and inference at the base point and along every axis, one size changed at a time, in float32."""
    way = workloads.fast_ways(backend, device).get("float32") or Way("reference", {"backend": "reference"})
    points = [{"axis": axis, "value": value} for axis, values in axes.items() for value in values]
    sizes = [replace(base, **{point["axis"]: point["value"]}) for point in points]
    sizes = [replace(each, inference=each.batch_size) for each in sizes]
    names = [", ".join(f"{NAMES[axis]} {vars(each)[axis]}" for axis in axes) for each in sizes]    # the base only once
    for section, work in (("step", workloads.step), ("inference", workloads.inference)):
        makers = {name: partial(work, way, each, device) for name, each in zip(names, sizes)}
        found = alternate(f"growth, {section}", makers, repeats, device)
        for point, name in zip(points, names):
            point[section] = found[name]
    return {"way": way.name, "points": points}


def series(result: dict[str, Any], axis: str, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """Sizes along an axis, and a quantity there (NaN where the system does not tell memory)."""
    points = [point for point in result["points"] if point["axis"] == axis]
    return np.array([point["value"] for point in points]), np.array([_value(point, quantity) for point in points])


def _value(point: dict[str, Any], quantity: str) -> float:
    if quantity != "memory":
        return table.seconds(point[quantity])
    entry = point["step"]
    return np.nan if entry["peak_bytes"] is None else (entry["peak_bytes"] - entry["held_bytes"]) / 1e9


def slope(sizes: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Slope and offset of log10(values) against log10(sizes), least squares; NaN where a value is missing or not
    positive."""
    if not (values > 0).all():
        return np.nan, np.nan
    return tuple(np.polyfit(np.log10(sizes), np.log10(values), 1))


def text(result: dict[str, Any]) -> str:
    """A row per axis, each quantity from its first to its last size with the fitted slope; as Markdown."""
    rows = {}
    for axis in dict.fromkeys(point["axis"] for point in result["points"]):
        row = {}
        for quantity, label in QUANTITIES.items():
            sizes, values = series(result, axis, quantity)
            steepness, _ = slope(sizes, values)
            row[label] = MISSING if np.isnan(steepness) else (
                f"{table.number(values[0])} … {table.number(values[-1])}, slope {_two_digits(steepness)}")
        rows[f"{NAMES[axis]} {sizes[0]} … {sizes[-1]}"] = row
    rows_text = markdown(pd.DataFrame.from_dict(rows, orient="index"), result["way"])
    return f"{rows_text}\n\nOne size at a time is changed, around these: {table.closing(result)}"


def _two_digits(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"            # no -0.00


def _base(result: dict[str, Any]) -> str:
    return ", ".join(f"{name} {result['sizes'][axis]}" for axis, name in NAMES.items())


def plot_growth(result: dict[str, Any]) -> Figure:
    """Log-log panels: a column per axis, a row per quantity, the fitted line and its slope in each."""
    axes_names = list(dict.fromkeys(point["axis"] for point in result["points"]))
    figure = page(2.3 * len(axes_names) + 0.4, 6.2, f"S²AMSnet, {result['way']}: growth around {_base(result)}",
                  "constrained")
    panels = figure.subplots(len(QUANTITIES), len(axes_names), squeeze=False, sharex="col", sharey="row")
    for row, colour, (quantity, label) in zip(panels, LINE_COLOURS, QUANTITIES.items()):
        for axes, axis in zip(row, axes_names):
            _draw_panel(axes, *series(result, axis, quantity), colour)
        row[0].set_ylabel(label, fontsize=LABEL)
    for axes, axis in zip(panels[-1], axes_names):
        axes.set_xlabel(NAMES[axis], fontsize=LABEL)
    return figure


def _draw_panel(axes: Axes, sizes: np.ndarray, values: np.ndarray, colour: str) -> None:
    """Measured points, and the line of the fitted slope."""
    steepness, offset = slope(sizes, values)
    axes.set_xscale("log")
    axes.set_yscale("log")
    if not np.isnan(steepness):
        axes.plot(sizes, values, "o", color=colour, markersize=3.5)
        axes.plot(sizes, 10 ** offset * sizes ** steepness, color=colour, linewidth=1.0)
        axes.set_title(f"slope {_two_digits(steepness)}", fontsize=LABEL, pad=3)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for each in (axes.xaxis, axes.yaxis):
        each.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=SMALL)
    axes.grid(color="0.9", linewidth=0.6)
