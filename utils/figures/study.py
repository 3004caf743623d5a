"""Figures of the study (utils/tables/study.py): curves over the training steps, norm layers, selection scores against κ.

A column of panels per scene pair, and a colour per method that is the same in all figures; only the heat maps of the
norms stand one below the other.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from utils.figures.palette import LINE_COLOURS, class_colours, text_on
from utils.figures.sheet import LABEL, SMALL, fold, letter_width, page, plain
from utils.tables.study import CRITERIA, UNLABELLED, VARIANCE_RATIO, last_epochs, norm_ratios, rank_correlation
from utils.text import MISSING

log = logging.getLogger(__name__)

MOST_METHODS = 36                               # in a figure: then every colour is there twice
_WIDTH, _ROW, _NARROWEST = 8.5, 1.45, 1.25      # inches: page, height of a row of panels, least width of a column
_FEW_POINTS = 20                                # up to here points get markers, so that a single epoch is seen
_CELL = 0.28                                    # inches, height of a heat map's row
_BAND = 0.15                                    # opacity
_SYMLOG = 0.1                                   # nats up to which the cross-entropy's scale is linear
_FARTHEST = 100.0                               # variance ratio (or its inverse) at which the heat map's colours end


@dataclass(frozen=True)
class Row:
    """A row of panels: a quantity over the steps; of two columns of the points, the second is dashed."""

    label: str
    columns: tuple[str, ...]
    scale: str = "linear"
    factor: float = 1.0


SCORES = (Row("source-val OA (%)", ("source_val_oa",), factor=100),
          Row("shifted-source OA (%)", ("shifted_source_oa",), factor=100),
          Row("target κ × 100", ("target_kappa",), factor=100))
_FIRST_NORMS = tuple(f"{VARIANCE_RATIO}stages.0.{branch}_norm" for branch in ("spectral", "spatial"))
CURVES = {
    "scores": ("Scores over the training steps", "", SCORES),
    "gradients": ("Gradients of each loss term on the generators", "",
                  (Row("‖∇MI‖", ("gradient_mi",), "log"), Row("‖∇C‖", ("gradient_consistency_max",), "log"))),
    "images": ("Generated against source patches", "solid: x̂ of generator a, dashed: of b",
               (Row("rms x̂ / rms x", ("rms_ratio_a", "rms_ratio_b"), "log"),
                Row("cos(x̂, x)", ("cosine_a", "cosine_b")))),
    "classifier": ("The classifier in evaluation mode",
                   "solid: x̂ of generator a, dashed: of b; norms: solid spectral, dashed spatial",
                   (Row("CE of x (nats)", ("ce_source",), "symlog"),
                    Row("CE of x̂ (nats)", ("ce_a", "ce_b"), "symlog"),
                    Row("CE of mixed x̂ (nats)", ("ce_a_mix", "ce_b_mix"), "symlog"),
                    Row("first norms: variance of x / running", _FIRST_NORMS, "log"))),
}


def draw(points: pd.DataFrame) -> dict[str, Figure]:
    """Name -> figure of the points (utils/tables/study.py); one for which no run has a record is left out.  Of more
    methods than can be told apart there are none, and the log says so."""
    if (methods := points["name"].nunique()) > MOST_METHODS:
        log.warning("No figures: %d methods cannot be told apart in one. Name the folders of at most %d.", methods,
                    MOST_METHODS)
        return {}
    figures = {}
    for name, (title, note, rows) in CURVES.items():
        rows = [row for row in rows if _recorded(points, row).notna().any(axis=None)]
        if rows:
            figures[name] = plot_curves(points, rows, title, note)
    if len(ratios := norm_ratios(points)):
        figures["norms"] = plot_norms(ratios)
    last = last_epochs(points)
    if any((last[criterion.column].notna() & last["target_kappa"].notna()).any() for criterion in CRITERIA):
        figures["selection"] = plot_selection(last)
    return figures


def plot_curves(points: pd.DataFrame, rows: Sequence[Row], title: str, note: str = "") -> Figure:
    """A row of panels per quantity, a column per pair: mean over the seeds (geometric on a log scale), smallest to
    largest value as a band."""
    pairs = list(points["pair"].unique())
    colours = method_colours(points)
    figure = _page(len(rows), len(pairs), title)
    panels = figure.subplots(len(rows), len(pairs), sharex="col", sharey="row", squeeze=False)
    drawn = set()
    for (row, column), axes in np.ndenumerate(panels):
        axes.set_yscale(rows[row].scale, **({"linthresh": _SYMLOG} if rows[row].scale == "symlog" else {}))
        for name, of_method in points[points["pair"] == pairs[column]].groupby("name", sort=False):
            if _draw(axes, of_method, rows[row], colours[name]):
                drawn.add(name)
        if rows[row].scale == "symlog":
            axes.set_ylim(bottom=0)
        _style(axes, rows[row].label if column == 0 else "", len(pairs))
        if row == 0:
            axes.set_title(fold(pairs[column], _column_width(len(pairs)), LABEL), fontsize=LABEL)
        if row == len(rows) - 1:
            axes.set_xlabel(fold("training steps (thousands)", _column_width(len(pairs)), LABEL), fontsize=LABEL)
    seen = [row for row in rows if len(row.columns) > 1]
    note = "; ".join(["line: mean over n seeds, band: smallest to largest", *([note] if note and seen else [])])
    _legend(figure, points, {name: colour for name, colour in colours.items() if name in drawn}, note)
    return figure


def plot_norms(ratios: pd.DataFrame) -> Figure:
    """A heat map per pair, one below the other, methods × norm layers; ratios as of norm_ratios, colours around 1."""
    pairs = list(dict.fromkeys(ratios.index.get_level_values("pair")))
    rows = [len(ratios.xs(pair, level="pair")) for pair in pairs]
    figure = page(_WIDTH, _CELL * sum(rows) + 0.4 * len(pairs) + 1.1, "F's BatchNorm layers at the end of training: "
                  "variance of clean source patches / running variance", "constrained")
    panels = figure.subplots(len(pairs), 1, sharex=True, squeeze=False, height_ratios=rows)[:, 0]
    limit = np.clip(np.nanmax(np.abs(np.log10(ratios.to_numpy()))), 1, np.log10(_FARTHEST))
    norm, colours = LogNorm(10 ** -limit, 10 ** limit), colormaps["PuOr_r"].with_extremes(bad="0.9")
    for pair, axes in zip(pairs, panels):
        of_pair = ratios.xs(pair, level="pair")
        image = axes.imshow(of_pair.to_numpy(), cmap=colours, norm=norm, aspect="auto")
        for (row, column), value in np.ndenumerate(of_pair.to_numpy()):
            if np.isfinite(value):
                axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=SMALL,
                          color=text_on(colours(norm(value))))
        axes.set_title(plain(pair), fontsize=LABEL)
        axes.set_yticks(range(len(of_pair)), [fold(name, 1.9, SMALL) for name in of_pair.index])
        axes.set_xticks(range(of_pair.shape[1]), [name.replace(" ", "\n").replace("\n", " ", 1) for name in of_pair])
        axes.tick_params(labelsize=SMALL, length=2)
    bar = figure.colorbar(image, ax=panels.tolist(), fraction=0.03, pad=0.02, extend="both")
    bar.ax.tick_params(labelsize=SMALL)
    bar.set_label("1 = the running statistics fit", fontsize=LABEL)
    return figure


def plot_selection(last: pd.DataFrame) -> Figure:
    """Selection scores (rows) against the target's κ, a point per run at its last epoch; last as of last_epochs."""
    pairs, colours = list(last["pair"].unique()), method_colours(last)
    shown = [criterion for criterion in CRITERIA if last[criterion.column].notna().any()]
    figure = _page(len(shown), len(pairs), "Selection scores (x) against the target's κ (y), runs at their last epoch")
    panels = figure.subplots(len(shown), len(pairs), sharey="col", squeeze=False)
    width = _column_width(len(pairs))
    for (row, column), axes in np.ndenumerate(panels):
        criterion, of_pair = shown[row], last[last["pair"] == pairs[column]]
        for name, runs in of_pair.groupby("name", sort=False):
            axes.plot(_in_percent(runs, criterion.column), 100 * runs["target_kappa"], "o", color=colours[name],
                      markersize=4, markeredgecolor="white", markeredgewidth=0.4)
        rho = rank_correlation(of_pair[criterion.column].to_numpy(), of_pair["target_kappa"].to_numpy())
        n = (of_pair[criterion.column].notna() & of_pair["target_kappa"].notna()).sum()
        mark = f" (uses {UNLABELLED})" if criterion.uses == UNLABELLED else ""
        heading = [pairs[column]] * (row == 0) + [criterion.name + mark]
        axes.set_title("\n".join([*(fold(line, width, SMALL) for line in heading),
                                  f"ρ = {MISSING if np.isnan(rho) else f'{rho:.2f}'} (n={n})"]), fontsize=SMALL)
        _style(axes, "target κ × 100" if column == 0 else "", len(pairs))
    _legend(figure, last, colours, "ρ: Spearman over the runs of a panel; point: a run", marker="o", linestyle="")
    return figure


def method_colours(points: pd.DataFrame) -> dict[str, tuple]:
    """Colour per method name, in the order of the points; more than 18 repeat."""
    colours = [*LINE_COLOURS, *class_colours(20)[7:8], *class_colours(20)[9:]]       # without yellow and light green
    return {name: colours[index % len(colours)] for index, name in enumerate(sorted(points["name"].unique()))}


def _draw(axes: Axes, of_method: pd.DataFrame, row: Row, colour) -> bool:
    """The mean line and the band of each of the row's columns; whether there was anything to draw."""
    drawn = False
    values = _recorded(of_method, row)
    for column, style in zip(row.columns, ("-", "--")):
        if column not in values or not (known := values[column].dropna()).size:
            continue
        known = np.log(known) if row.scale == "log" else known * row.factor
        curve = known.groupby(of_method.loc[known.index, "step"] / 1000).agg(["mean", "min", "max"])
        curve = np.exp(curve) if row.scale == "log" else curve
        axes.fill_between(curve.index, curve["min"], curve["max"], color=colour, alpha=_BAND, linewidth=0)
        axes.plot(curve.index, curve["mean"], style, color=colour, linewidth=1.2, markersize=2.5,
                  marker="o" if len(curve) <= _FEW_POINTS else None)
        drawn = True
    return drawn


def _recorded(points: pd.DataFrame, row: Row) -> pd.DataFrame:
    """The row's columns that the points have, without what its scale cannot show."""
    values = points[[column for column in row.columns if column in points]].replace([np.inf, -np.inf], np.nan)
    return values.where(values > 0) if row.scale == "log" else values


def _page(rows: int, columns: int, title: str) -> Figure:
    return page(max(_WIDTH, _NARROWEST * columns + 0.8), _ROW * rows + 1.3, title, "constrained")


def _column_width(columns: int) -> float:
    return max(_NARROWEST, (_WIDTH - 1.0) / columns) - 0.1


def _style(axes: Axes, label: str, columns: int) -> None:
    """Label, numbers and grid of a panel, one of `columns` beside each other, after everything is drawn."""
    axes.set_ylabel(fold(label, 0.8 * _ROW, LABEL), fontsize=LABEL)
    ticks = MaxNLocator(nbins=4, steps=[1, 2, 5, 10]).tick_values(*axes.get_xlim())
    ticks = ticks[(axes.get_xlim()[0] <= ticks) & (ticks <= axes.get_xlim()[1])]
    axes.set_xticks(ticks if columns <= 3 else ticks[[0, -1]])          # narrow panels have room for two numbers
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.tick_params(labelsize=SMALL, which="both")
    axes.grid(color="0.9", linewidth=0.6)


def _legend(figure: Figure, points: pd.DataFrame, colours: dict[str, tuple], note: str, **style) -> None:
    """Methods with their n, one number where it is the same on all pairs, else one per column of panels."""
    counts = points.groupby(["name", "pair"])["folder"].nunique().unstack(fill_value=0)[list(points["pair"].unique())]
    numbers = {name: list(dict.fromkeys(counts.loc[name])) for name in colours}
    several = any(len(found) > 1 for found in numbers.values())
    labels = {name: f"{name} (n={'/'.join(map(str, found if len(found) == 1 else counts.loc[name]))})"
              for name, found in numbers.items()}
    width = letter_width(SMALL) * max(map(len, labels.values())) + 0.4
    note += "; n per column of panels" if several else ""
    figure.legend(handles=[Line2D([], [], color=colour, markersize=4, label=plain(labels[name]), **style)
                           for name, colour in colours.items()],
                  title=fold(note, figure.get_figwidth() - 0.2, SMALL), loc="outside lower center", frameon=False,
                  ncols=int(np.clip(figure.get_figwidth() / width, 1, len(labels))), fontsize=SMALL,
                  title_fontsize=SMALL, handlelength=1.8, columnspacing=1.2)


def _in_percent(runs: pd.DataFrame, column: str) -> pd.Series:
    return runs[column] * (100 if column.endswith("_oa") else 1)
