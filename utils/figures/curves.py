"""Curves: losses and scores over the epochs, spectra of the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from utils.figures.palette import LINE_COLOURS, domain_colours
from utils.figures.sheet import LABEL, SMALL, Sheet, page

_SHARED_PANELS = ("ce", "consistency")      # families drawn together: ce_a, ce_b_mix, ...; consistency_min, _max
_NATS = ("ce", "consistency", "mi", "loss")
_SCORES = {"oa": "OA", "aa": "AA", "kappa": "κ × 100"}
_SCORED = (("source_val", "source validation", "-"), ("shifted_source", "source, perturbed", ":"),
           ("oracle", "target (oracle; not used)", "--"))
_FEW_POINTS = 20                            # up to here points get markers, so that a single epoch is seen
_DASHES = (0, (4, 1))
_RIGHT_AXIS = 5.0       # domains whose spectra are this many times larger than the first one's get the right-hand axis
_GAP = 4.0              # band spacings without a band (the water-vapour windows) that no line bridges


def plot_losses(epochs: Sequence[dict], title: str) -> Figure:
    """Losses and scores over the epochs; one panel per loss (the ce_* share one, and so do the consistency_*).

    Each record holds "epoch", "losses" {name: value} and, where it was evaluated, "source_val", "shifted_source" and
    "oracle" {"oa", "aa", "kappa"} as fractions.  A loss that spans more than three decades gets a symmetric log scale.
    """
    if not epochs:
        raise ValueError("there is no epoch to plot")
    families: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for record in epochs for name in record["losses"]):
        prefix = name.split("_")[0]
        families.setdefault(prefix if prefix in _SHARED_PANELS else name, []).append(name)
    scored = any(key in record for record in epochs for key, _, _ in _SCORED)
    count = len(families) + scored
    columns = min(3, count)
    rows = -(-count // columns)
    figure = page(3.3 * columns, 2.5 * rows + 0.4, title, "constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (family, names) in zip(panels, families.items()):
        _draw_losses(axes, epochs, family, names)
    if scored:
        _draw_scores(panels[len(families)], epochs)
    for axes in panels[count:]:
        axes.remove()
    return figure


def class_spectra(spectra: np.ndarray, labels: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [K, B] per class of spectra [N, B] with labels [N] (1..K; 0 is left out).

    Rows of absent classes are NaN.
    """
    mean = np.full((n_classes, spectra.shape[1]), np.nan)
    deviation = mean.copy()
    for index in range(n_classes):
        members = spectra[labels == index + 1].astype(np.float64)
        if len(members):
            mean[index], deviation[index] = members.mean(axis=0), members.std(axis=0)
    return mean, deviation


def plot_spectra(spectra: dict[str, tuple[np.ndarray, np.ndarray]], wavelengths: np.ndarray | None,
                 class_names: Sequence[str], title: str) -> Figure:
    """Mean spectrum ± standard deviation of every class (a panel each) in every domain (a colour each).

    spectra: domain -> (mean [K, B], deviation [K, B]), NaN rows for absent classes; wavelengths [B] in nm.  All panels
    share their axes.  Domains more than 5 times larger than the first are dashed and read on the right-hand axis.
    """
    sheet = Sheet(max(2.1 * min(4, len(class_names)) + 1.2, 5.0), title)
    bands = next(iter(spectra.values()))[0].shape[1]
    x, label = (np.arange(bands), "band") if wavelengths is None else (wavelengths, "wavelength (nm)")
    draw_spectra(sheet, spectra, dict.fromkeys(spectra, x), label, class_names)
    return sheet.finish()


def draw_spectra(sheet: Sheet, spectra: dict[str, tuple[np.ndarray, np.ndarray]], positions: dict[str, np.ndarray],
                 x_label: str, class_names: Sequence[str]) -> None:
    """Add the panels of plot_spectra and their legend to a sheet; positions: domain -> band positions [B]."""
    right = _oversized(spectra)
    columns = min(4, len(class_names))
    panels = sheet.grid(class_names, columns, ticks_right=bool(right))
    twins = [axes.twinx() for axes in panels] if right else panels
    styles = {name: (colour, _DASHES if name in right else "-")
              for name, colour in zip(spectra, domain_colours(list(spectra)))}
    for index, (axes, twin) in enumerate(zip(panels, twins)):
        for name, (mean, deviation) in spectra.items():
            _draw_band(twin if name in right else axes, positions[name], mean[index], deviation[index], *styles[name])
    left = [name for name in spectra if name not in right]
    _share_axes(panels, columns, _limits([spectra[name] for name in left]), sheet.unit, x_label)
    if right:
        _share_right_axes(panels, twins, columns, _limits([spectra[name] for name in right]), sheet.unit)
    labels = [f"{name} (right-hand axis)" if name in right else name for name in spectra]
    handles = [Line2D([], [], color=colour, linestyle=style, label=label)
               for label, (colour, style) in zip(labels, styles.values())]
    sheet.legend(handles, "line: mean of the class; band: ± one standard deviation")


def _series(epochs: Sequence[dict], section: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs at which record[section][name] is there and finite, and the values."""
    pairs = [(record["epoch"], record.get(section, {}).get(name)) for record in epochs]
    points = np.array([pair for pair in pairs if pair[1] is not None], dtype=np.float64).reshape(-1, 2)
    points = points[np.isfinite(points[:, 1])]
    return points[:, 0], points[:, 1]


def _draw_losses(axes: Axes, epochs: Sequence[dict], family: str, names: Sequence[str]) -> None:
    drawn = []
    for index, name in enumerate(names):
        x, y = _series(epochs, "losses", name)
        axes.plot(x, y, color=LINE_COLOURS[index % len(LINE_COLOURS)], label=name, **_line(len(x)))
        drawn.append(y)
    threshold = _log_threshold(np.concatenate(drawn))
    if threshold:
        axes.set_yscale("symlog", linthresh=threshold)
        axes.yaxis.get_major_locator().set_params(numticks=7)
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_formatter("{x:.5g}")       # a common factor above the axis would hit the legend
    unit = " (nats)" if family.split("_")[0] in _NATS else ""
    _finish_panel(axes, f"{family}{unit}{', symlog scale' if threshold else ''}", axes.get_lines())


def _log_threshold(values: np.ndarray) -> float | None:
    """Where the linear part of a symmetric log scale ends; None where a linear scale shows everything.

    The 10th percentile stands for the small values, so that a curve that merely crosses zero stays linear.
    """
    size = np.abs(values[values != 0])
    if not size.size or size.max() <= 1e3 * np.quantile(size, 0.1):
        return None
    return 10.0 ** np.floor(np.log10(max(np.quantile(size, 0.1), 1e-8 * size.max())))


def _draw_scores(axes: Axes, epochs: Sequence[dict]) -> None:
    """Source validation (solid) and, where they were recorded, the source under perturbations (dotted) and the target
    (dashed; for the record only)."""
    handles = [Line2D([], [], color=colour, label=name) for colour, name in zip(LINE_COLOURS, _SCORES.values())]
    for key, label, style in _SCORED:
        if not any(key in record for record in epochs):
            continue
        handles.append(Line2D([], [], color="0.3", linestyle=style, label=label))
        for colour, score in zip(LINE_COLOURS, _SCORES):
            x, y = _series(epochs, key, score)
            axes.plot(x, 100 * y, style, color=colour, **_line(len(x)))
    _finish_panel(axes, "score (%)", handles)


def _line(points: int) -> dict:
    return {"linewidth": 1.2, "marker": "o" if points <= _FEW_POINTS else None, "markersize": 3}


def _finish_panel(axes: Axes, label: str, handles: Sequence[Line2D]) -> None:
    axes.set_xlabel("epoch", fontsize=LABEL)
    axes.set_ylabel(label, fontsize=LABEL)
    left, right = axes.dataLim.intervalx
    if left == right:
        axes.set_xlim(left - 1, right + 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.tick_params(labelsize=SMALL)
    axes.grid(color="0.9", linewidth=0.6)
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, fontsize=SMALL, frameon=False,
                handlelength=1.8, columnspacing=1.0, borderaxespad=0.2)


def _oversized(spectra: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """Domains that would flatten the first one's curves."""
    peaks = {name: np.abs(_limits([pair])).max() for name, pair in spectra.items()}
    return [name for name, peak in peaks.items() if peak > _RIGHT_AXIS * next(iter(peaks.values()))]


def _limits(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Lowest and highest edge of all bands mean ± deviation, with a little air."""
    edges = np.concatenate([(mean + sign * deviation).ravel() for mean, deviation in pairs for sign in (-1, 1)])
    edges = edges[np.isfinite(edges)]
    if not edges.size:
        return 0.0, 1.0
    air = 0.04 * np.ptp(edges) or 0.5
    return edges.min() - air, edges.max() + air


def _draw_band(axes: Axes, x: np.ndarray, mean: np.ndarray, deviation: np.ndarray, colour, style) -> None:
    if np.isfinite(mean).any():
        gaps = 1 + np.flatnonzero(np.diff(x) > _GAP * np.median(np.diff(x))) if len(x) > 1 else []
        x, mean, deviation = (np.insert(values.astype(float), gaps, np.nan) for values in (x, mean, deviation))
        axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)
        axes.plot(x, mean, linestyle=style, color=colour, linewidth=1.2 if style == "-" else 0.9)


def _share_axes(panels: Sequence[Axes], columns: int, limits: tuple[float, float], unit: float, x_label: str) -> None:
    """The same limits everywhere; numbers only at the left and at the bottom of the grid."""
    for index, axes in enumerate(panels):
        first, lowest = index % columns == 0, index + columns >= len(panels)
        axes.set_ylim(*limits)
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.tick_params(left=first, labelleft=first, labelbottom=lowest)
        axes.set_ylabel("normalised signal" if first else "", fontsize=LABEL * unit)
        axes.set_xlabel(x_label if lowest else "", fontsize=LABEL * unit)


def _share_right_axes(panels: Sequence[Axes], twins: Sequence[Axes], columns: int, limits: tuple[float, float],
                      unit: float) -> None:
    """The same for the right-hand axes; the curves of the left-hand one stay on top."""
    for index, (axes, twin) in enumerate(zip(panels, twins)):
        last = index % columns == columns - 1 or index == len(panels) - 1
        twin.set_ylim(*limits)
        twin.yaxis.set_major_locator(MaxNLocator(nbins=5))
        twin.tick_params(labelsize=SMALL * unit, right=last, labelright=last)
        twin.set_ylabel("dashed curves" if last else "", fontsize=LABEL * unit)
        axes.set_zorder(twin.get_zorder() + 1)
        axes.patch.set_visible(False)
