"""The critical-difference diagram: mean ranks of methods on a line, those that are not told apart joined by a bar."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.sheet import LABEL, letter_width, page
from utils.statistics import ALPHA, Ranks, cliques

_ROW = 0.2                # inches between names
_HEAD = 0.55              # inches above the axis: the critical difference's own bar
_LINE = 4.5               # inches of the axis
_STEP = 0.09              # inches between bars


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
    axes.text(end + away * 0.04 * inch, y, f"{name}  {rank:.2f}" if left else f"{rank:.2f}  {name}", fontsize=LABEL,
              va="center", ha="right" if left else "left")
