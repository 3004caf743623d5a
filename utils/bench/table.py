"""Tables of main.py bench, made from its JSON alone."""

from __future__ import annotations

import shlex
from typing import Any

import pandas as pd

from utils.text import MISSING, markdown


def text(result: dict[str, Any]) -> str:
    """All tables as Markdown, and below them the floor and what they were measured on."""
    letters = {result["ways"][letter]: letter for letter in ("a", "b") if letter in result["ways"]}
    names = {name: f"{name} ({letter})" for name, letter in letters.items()}
    sections = {"training step": step_table(result), "part of the step (seconds)": parts_table(result),
                "inference": rate_table(result, "inference", "patches/s"),
                "whole scene; (a) and (b) patch by patch, on a sample of its pixels": rate_table(result, "scene", "pixels/s"),
                "data path": data_table(result)}
    made = [markdown(table.rename(index=names, columns=names), title) for title, table in sections.items()]
    return "\n\n".join([*made, f"{floor_line(result)} {memory_line(result)} {closing(result)}"])


def step_table(result: dict[str, Any]) -> pd.DataFrame:
    """A row per way: seconds, speed-ups, share of its precision's floor reached, operator calls, peak memory."""
    return _frame({name: {"seconds": number(seconds(entry)), **_speed_ups(result, "step", entry),
                          "of its floor": f"{100 * floor_seconds(result, precision_of(result, name)) / seconds(entry):.0f} %",
                          "calls": MISSING if result["calls"][name] is None else f"{result['calls'][name]:,}",
                          "peak memory": gigabytes(entry["peak_bytes"])} for name, entry in result["step"].items()})


def precision_of(result: dict[str, Any], name: str) -> str:
    """The precision of a way, which says what its floor is."""
    return "bf16" if name.startswith(result["ways"].get("bf16", MISSING)) else "float32"


def parts_table(result: dict[str, Any]) -> pd.DataFrame:
    """A row per part, a column of seconds per way."""
    parts = next(iter(result["parts"].values()))["laps"]
    return _frame({part: {name: number(entry["laps"][part]["median"]) for name, entry in result["parts"].items()}
                   for part in parts})


def rate_table(result: dict[str, Any], section: str, unit: str) -> pd.DataFrame:
    """A row per way: patches or pixels per second, and speed-ups."""
    return _frame({name: {unit: number(rate(entry)), **_speed_ups(result, section, entry)}
                   for name, entry in result[section].items()})


def data_table(result: dict[str, Any]) -> pd.DataFrame:
    """A row per data path, compared with the first."""
    first = next(iter(result["data"].values()))
    return _frame({name: {"patches/s": number(rate(entry)), "speed-up": times(rate(entry) / rate(first))}
                   for name, entry in result["data"].items()})


def floor_seconds(result: dict[str, Any], precision: str = "float32") -> float:
    """What a step would take if all of its arithmetic ran as fast as the discriminator's 3×3 convolution."""
    return result["flops"] / rate(result["convolution"][precision])


def floor_line(result: dict[str, Any]) -> str:
    speeds = " or ".join(f"{number(rate(entry) / 1e9)} ({name})" for name, entry in result["convolution"].items())
    times_ = " or ".join(f"{number(floor_seconds(result, name))} s" for name in result["convolution"])
    width = result["sizes"]["pro_dim"]
    return (f"Floor: {number(result['flops'] / 1e9)} GFLOP a step (torch's counter) ÷ {speeds} GFLOP/s "
            f"(convolution 3×3, {width} → {width}, forward and both gradients, same batch and patch) = {times_}. "
            f"The step's own convolutions and products, each the best of ten by itself, take "
            f"{number(result['own_floor'])} s (float32).")


def memory_line(result: dict[str, Any]) -> str:
    """What the peak memory is a peak of."""
    unknown = any(entry["peak_bytes"] is None for entry in result["step"].values())
    return ("Peak memory: the process's resident set during the step" if on_cpu(result["made"]) else
            "Peak memory: allocations on the GPU during the step") + (
            f" ({MISSING}: this system does not tell it)." if unknown else ".")


def closing(result: dict[str, Any]) -> str:
    """At what sizes, how, on what and by which command the numbers were made."""
    made, sizes = result["made"], result["sizes"]
    scene = f" (parts: {runs(result, 'parts')}, whole scene: {runs(result, 'scene')})" if "scene" in result else ""
    return (f"Batch {sizes['batch_size']}, {sizes['bands']} bands, patch {sizes['patch_size']}, "
            f"widths {sizes['pro_dim']} and {sizes['GIN_ch']}, recipe {sizes['recipe']}, "
            f"scene {sizes['scene'][0]}×{sizes['scene'][1]}. "
            f"Medians of {result['repeats']}{scene} after warm-up, taken in turns in one process. {machine(made)} "
            f"{made_by(made)}")


def made_by(made: dict[str, Any]) -> str:
    """The command behind a table."""
    return f"Made by `python main.py {shlex.join(made['command'])}`."


def runs(result: dict[str, Any], section: str) -> int:
    """Timed repetitions behind a section's medians."""
    return min(len(lap["seconds"]) for entry in result[section].values() for lap in entry["laps"].values())


def machine(made: dict[str, Any]) -> str:
    """Processor, GPU, threads, version and commit."""
    flags = f" ({', '.join(made['flags'])})" if made["flags"] else ""
    gpu = "" if on_cpu(made) else f"{made['device']}, "
    commit, changed = (made["git"] or MISSING)[:10], "+" if (made["git"] or "").endswith("+") else ""
    return (f"{gpu}{made['cpu']}{flags}, {made['threads']} of {made['cores']} cores, "
            f"torch {made['versions']['torch']}, commit {commit}{changed}.")


def on_cpu(made: dict[str, Any]) -> bool:
    return made["device"].startswith("cpu")


def seconds(entry: dict[str, Any]) -> float:
    """Median seconds of an entry with one lap."""
    lap, = entry["laps"].values()
    return lap["median"]


def rate(entry: dict[str, Any]) -> float:
    """Patches, pixels or operations per second."""
    return entry["items"] / seconds(entry)


def number(value: float) -> str:
    """Three significant digits; thousands with commas."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def times(ratio: float) -> str:
    return f"{ratio:.1f}×" if ratio < 100 else f"{ratio:.0f}×"


def gigabytes(count: int | None) -> str:
    return MISSING if count is None else f"{count / 1e9:.2f} GB"


def _speed_ups(result: dict[str, Any], section: str, entry: dict[str, Any]) -> dict[str, str]:
    """How many times faster than (a) and than (b), per patch or pixel, where the section has them."""
    return {f"on ({letter})": times(rate(entry) / rate(result[section][name]))
            for letter, name in result["ways"].items() if letter in ("a", "b") and name in result[section]}


def _frame(rows: dict[str, dict[str, str]]) -> pd.DataFrame:
    return pd.DataFrame.from_dict(rows, orient="index").fillna(MISSING)
