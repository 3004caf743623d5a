"""Figures that put methods beside each other: arrays and frames in, a matplotlib Figure out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from utils.figures.palette import LINE_COLOURS, UNLABELLED, class_colours, false_colour, label_image
from utils.figures.sheet import LABEL, SMALL, Sheet, fold, letter_width, page, page_width, plain, plainly_labelled
from utils.run.metrics import SCORES
from utils.tables.statistics import ALPHA, Ranks, cliques

_WIDTH, _PANEL = 8.5, 2.7                   # inches: page, height of a panel
_ROW, _NAME = 0.26, 2.4                     # inches, height of a method's row in the strip plot and width of its name
_BAND = 0.15                                # opacity
_SPREAD = 0.28                              # of a row, over which a method's seeds are laid
DECADES = 15                                # times the smallest value, from which an axis is logarithmic
_LINES = ("-", "--", ":")                   # one colour serves several methods where there are more than colours
SHOWN = ("kappa", "aa")
DOMAIN_WORDS = {"source": "source, held out", "target": "target"}
_ROW = 0.2                # inches between names
_HEAD = 0.55              # inches above the axis: the critical difference's own bar
_LINE = 4.5               # inches of the axis
_STEP = 0.09              # inches between bars


def plot_map_gallery(cube: np.ndarray, rgb_bands: Sequence[int], labels: np.ndarray,
                     predictions: Mapping[str, np.ndarray], class_names: Sequence[str], title: str) -> Figure:
    """The scene, its ground truth, and every method's map of the whole scene, with one legend.

    cube [H, W, B]; labels [H, W], 0 = unlabelled, 1..K; predictions: caption -> [H, W], 1..K (0 = no data).
    """
    n_classes, colours = len(class_names), class_colours(len(class_names))
    images = [("scene, false colour", false_colour(cube, rgb_bands)), ("ground truth", label_image(labels, n_classes)),
              *((name, label_image(prediction, n_classes)) for name, prediction in predictions.items())]
    wide = labels.shape[1] / labels.shape[0]
    columns = min(len(images), 2 if wide > 2.2 else 3 if wide > 1.25 else 4)
    sheet, spare = Sheet(page_width(labels.shape[1] * columns, columns), title), None
    for start in range(0, len(images), columns):
        spare = sheet.image_row(images[start:start + columns], columns)
    sheet.legend([*(Patch(facecolor=colour, edgecolor="0.4", linewidth=0.4, label=name)
                    for name, colour in zip(class_names, colours)),
                  Patch(facecolor=UNLABELLED, edgecolor="0.4", linewidth=0.4, label="unlabelled, no data")], "class",
                 spare)
    return sheet.finish()


def plot_features(shown: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], class_names: Sequence[str],
                  title: str) -> Figure:
    """A panel per caption: samples in the plane, coloured by class; source points, target crosses, made domains open
    marks.

    shown: caption -> places [N, 2], classes [N] 0..K-1, the domain of each sample [N]: 'source', 'target', or another.
    """
    colours, columns = class_colours(len(class_names)), min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure = page(_WIDTH, _PANEL * rows + 0.9, title, "constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    marks = _domain_marks(shown)
    for axes, (name, (points, classes, domains)) in zip(panels, shown.items()):
        for k, colour in enumerate(colours):
            for domain, (marker, style) in marks.items():
                chosen = (classes == k) & (domains == domain)
                colours_of = {"facecolors": "none", "edgecolors": [colour]} if "open" in style else {"color": [colour]}
                axes.scatter(*points[chosen].T, marker=marker, rasterized=True, **colours_of,
                             **{key: value for key, value in style.items() if key != "open"})
        axes.set_title(fold(name, _WIDTH / columns - 0.2, LABEL), fontsize=LABEL)
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in panels[len(shown):]:
        axes.set_axis_off()
    domains = [Line2D([], [], color="0.3", linestyle="", marker=marker, markersize=5, label=DOMAIN_WORDS.get(name, name),
                      markerfacecolor="none" if "open" in style else "0.3") for name, (marker, style) in marks.items()]
    classes_shown = [Patch(facecolor=colour, label=name) for name, colour in zip(class_names, colours)]
    _legend_below(figure, [*classes_shown, *domains])
    return figure


def _domain_marks(shown: Mapping[str, tuple]) -> dict[str, tuple[str, dict]]:
    """Domain -> its marker and how it is drawn."""
    marks = {"source": (".", {"s": 9, "alpha": 0.6, "linewidths": 0})}
    others = dict.fromkeys(name for _, _, domains in shown.values() for name in domains if name not in DOMAIN_WORDS)
    for name, marker in zip(others, itertools.cycle("os^Dv")):
        marks[name] = (marker, {"s": 9, "linewidths": 0.5, "open": True})
    return marks | {"target": ("x", {"s": 9, "linewidths": 0.7})}


def plot_severity(scores: pd.DataFrame, title: str) -> Figure:
    """κ and AA (percent) of the target over the severity of the simulated gap: mean line and smallest to largest over
    seeds as a band.  scores: columns name, severity, seed, kappa, aa (fractions)."""
    figure = page(_WIDTH, _PANEL + 1.2, title, "constrained")
    panels, styles = figure.subplots(1, len(SHOWN)), method_styles(list(scores["name"].unique()))
    for axes, key in zip(panels, SHOWN):
        for name, of_method in scores.groupby("name", sort=False):
            curve = 100 * of_method.groupby("severity")[key].agg(["mean", "min", "max"])
            axes.fill_between(curve.index, curve["min"], curve["max"], color=styles[name]["color"], alpha=_BAND,
                              linewidth=0)
            axes.plot(curve.index, curve["mean"], marker="o", markersize=3, linewidth=1.3, **styles[name])
        axes.set_xlabel("severity of the gap", fontsize=LABEL)
        axes.set_ylabel(f"target {SCORES[key]} (%)", fontsize=LABEL)
        axes.set_xticks(sorted(scores["severity"].unique()))
        axes.tick_params(labelsize=SMALL)
        axes.grid(color="0.9", linewidth=0.6)
    counts = scores.groupby(["name", "severity"])["seed"].nunique().groupby("name").agg(["min", "max"])
    labels = {name: f"{name} (n={counts.loc[name, 'min']}" + (f" to {counts.loc[name, 'max']})" if
              counts.loc[name, "min"] != counts.loc[name, "max"] else ")") for name in styles}
    _legend_below(figure, [Line2D([], [], linewidth=1.3, label=labels[name], **style)
                           for name, style in styles.items()])
    return figure


def plot_sensitivity(curves: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """A panel per setting: the target's κ (percent) over its values, mean line and mean ± standard deviation over seeds
    as a band.

    curves: setting -> columns title (of a line), value (a number or a text), seed, kappa (fraction).  Numbers that span
    a factor of DECADES or more stand on a logarithmic axis, texts side by side.
    """
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = page(_WIDTH, 2.3 * rows + 0.9, title, "constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    styles = method_styles(list(dict.fromkeys(name for runs in curves.values() for name in runs["title"])))
    for axes, (setting, runs) in zip(panels, curves.items()):
        values = sorted(runs["value"].unique())
        numbers = not isinstance(values[0], str)
        for name, of_title in runs.groupby("title", sort=False):
            found = 100 * of_title.groupby("value")["kappa"].agg(["mean", "std"]).fillna(0)
            places = found.index if numbers else [values.index(value) for value in found.index]
            axes.fill_between(places, found["mean"] - found["std"], found["mean"] + found["std"], alpha=_BAND, linewidth=0,
                              color=styles[name]["color"])
            axes.plot(places, found["mean"], marker="o", markersize=3, linewidth=1.3, **styles[name])
        if numbers and values[0] > 0 and values[-1] >= DECADES * values[0]:
            axes.set_xscale("log")
        places = values if numbers else range(len(values))
        axes.set_xticks(places, [f"{value:g}" if numbers else value for value in values], rotation=0 if numbers else 20)
        axes.minorticks_off()
        axes.set_title(setting, fontsize=LABEL)
        axes.tick_params(labelsize=SMALL)
        axes.grid(color="0.9", linewidth=0.6)
    for axes in panels[len(curves):]:
        axes.set_axis_off()
    for axes in panels[::columns]:
        axes.set_ylabel("target κ (%)", fontsize=LABEL)
    _legend_below(figure, [Line2D([], [], linewidth=1.3, label=name, **style) for name, style in styles.items()])
    return figure


def plot_seeds(scores: pd.DataFrame, title: str) -> Figure:
    """A strip per method and a column per pair: the target's κ (percent) of every seed as a point, their mean as a bar.

    scores: columns pair, name, seed, kappa (fractions).  Methods stand in the order of their mean over the pairs.
    """
    pairs = list(scores["pair"].unique())
    order = scores.groupby(["name", "pair"])["kappa"].mean().groupby("name").mean().sort_values().index
    labels = [fold(name, _NAME, SMALL) for name in order]
    tallest = max(label.count("\n") for label in labels)
    figure = page(max(_WIDTH, _NAME + 1.9 * len(pairs)), (_ROW + 0.13 * tallest) * len(order) + 1.2, title, "constrained")
    panels = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for axes, pair in zip(panels, pairs):
        for row, name in enumerate(order):
            values = 100 * scores.loc[(scores["pair"] == pair) & (scores["name"] == name)].sort_values("seed")["kappa"]
            if len(values):
                heights = row + (np.linspace(-_SPREAD, _SPREAD, len(values)) if len(values) > 1 else np.zeros(1))
                axes.plot(values, heights, ".", color=LINE_COLOURS[0], markersize=5, alpha=0.8, markeredgewidth=0)
                axes.plot([values.mean()] * 2, [row - 0.4, row + 0.4], color=LINE_COLOURS[1], linewidth=1.6)
        axes.set_title(fold(pair, 1.8, LABEL), fontsize=LABEL)
        axes.set_xlabel("target κ (%)", fontsize=LABEL)
        axes.set_yticks(range(len(order)), labels)
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.tick_params(labelsize=SMALL)
        axes.grid(axis="x", color="0.9", linewidth=0.6)
    _legend_below(figure, [Line2D([], [], color=LINE_COLOURS[0], linestyle="", marker=".", label="a seed"),
                           Line2D([], [], color=LINE_COLOURS[1], linewidth=1.6, label="mean")])
    return figure


def method_styles(names: Sequence[str]) -> dict[str, dict]:
    """Colour and line style per name; names beyond the colours get the next line style."""
    return {name: {"color": LINE_COLOURS[index % len(LINE_COLOURS)],
                   "linestyle": _LINES[index // len(LINE_COLOURS) % len(_LINES)]} for index, name in enumerate(names)}


def _legend_below(figure: Figure, handles: Sequence) -> None:
    width = letter_width(SMALL) * max(len(handle.get_label()) for handle in handles) + 0.5
    figure.legend(handles=plainly_labelled(handles), loc="outside lower center", frameon=False, fontsize=SMALL,
                  ncols=int(np.clip(figure.get_figwidth() / width, 1, len(handles))), handlelength=1.8,
                  columnspacing=1.2)


def plot_ranks(ranks: Ranks, title: str) -> Figure:
    """Diagram of Demšar (JMLR 7, 2006): the best rank on the left; names of the better half hang on the left side, the
    others on the right."""
    order, groups = sorted(ranks.mean, key=ranks.mean.get), cliques(ranks)
    side = letter_width(LABEL) * (max(map(len, order)) + 6) + 0.2
    bars = _STEP * len(groups) + 0.16
    below = bars + _ROW * math.ceil(len(order) / 2)
    figure = page(_LINE + 2 * side, _HEAD + below + 1.0,
                  f"{title} (N = {ranks.n}, Friedman p = {ranks.p:.2g})", "constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    inch = (len(order) - 1) / _LINE                          # ranks per inch
    axes.set_xlim(1 - side * inch, len(order) + side * inch)
    axes.set_ylim(-below - 0.1, _HEAD + 0.1)                 # inches, 0 = the axis
    _draw_scale(axes, len(order), ranks.critical_difference)
    for number, group in enumerate(groups):
        ends = ranks.mean[group[0]] - 0.04 * inch, ranks.mean[group[-1]] + 0.04 * inch
        axes.plot(ends, [-0.1 - _STEP * number] * 2, color="0.4", linewidth=3.0, solid_capstyle="butt")
    for place, name in enumerate(order):
        _hang_name(axes, name, ranks.mean[name], place, len(order), -bars, inch)
    return figure


def _draw_scale(axes: Axes, last: int, difference: float) -> None:
    """The axis of ranks 1..last, and above it the critical difference."""
    axes.plot([1, last], [0, 0], color="black", linewidth=1.0)
    for rank in range(1, last + 1):
        axes.plot([rank, rank], [0, 0.06], color="black", linewidth=1.0)
        axes.text(rank, 0.09, str(rank), ha="center", va="bottom", fontsize=LABEL)
    shown = min(difference, last - 1)
    axes.plot([1, 1 + shown], [0.38, 0.38], color="0.4", linewidth=2.0)
    more = "" if shown == difference else ", wider than the axis"
    axes.text(1, 0.43, f"CD {difference:.2f} (Nemenyi, α = {ALPHA:g}{more})", ha="left", va="bottom", fontsize=LABEL,
              color="0.3")


def _hang_name(axes: Axes, name: str, rank: float, place: int, last: int, top: float, inch: float) -> None:
    """A name beside the axis, number `place` of `last`, and the line to its rank; the uppermost hangs at `top`."""
    left = place < math.ceil(last / 2)
    y = top - _ROW * (place if left else last - 1 - place)
    end, away = (1 - 0.1 * inch, -1) if left else (last + 0.1 * inch, 1)
    axes.plot([rank, rank, end], [0, y, y], color="black", linewidth=0.7)
    text = f"{name}  {rank:.2f}" if left else f"{rank:.2f}  {name}"
    axes.text(end + away * 0.04 * inch, y, plain(text), fontsize=LABEL, va="center", ha="right" if left else "left")
