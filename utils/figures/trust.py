"""Pictures of how far trained weights may be trusted on a scene."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.figures.palette import LINE_COLOURS
from utils.figures.sheet import LABEL, SMALL, page
from utils.trained.trust import Calibration, Shift


def plot_trust(shift: Shift, wavelengths: np.ndarray | None, calibrated: dict[str, Calibration], title: str) -> Figure:
    """Distances of bands and norms from the source; where there are labels, reliability and risk over coverage too.

    wavelengths [B] in nm or None; calibrated: name of the probabilities -> how they meet the truth; empty without labels.
    """
    rows = 1 + bool(calibrated)
    figure = page(7.5, 2.9 * rows + 0.5, title, "constrained")
    panels = figure.subplots(rows, 2, squeeze=False)
    _bands(panels[0, 0], shift, wavelengths)
    _norms(panels[0, 1], shift)
    if calibrated:
        _reliability(panels[1, 0], calibrated)
        _risk(panels[1, 1], calibrated)
    for axes in panels.ravel():
        axes.tick_params(labelsize=SMALL)
        axes.xaxis.label.set_size(LABEL)
        axes.yaxis.label.set_size(LABEL)
        axes.title.set_size(LABEL)
    return figure


def _bands(axes: Axes, shift: Shift, wavelengths: np.ndarray | None) -> None:
    known = wavelengths is not None
    axes.plot(wavelengths if known else np.arange(len(shift.bands)), shift.bands, ".-", color=LINE_COLOURS[0], lw=1, ms=3)
    axes.set(title="bands: distance from the training scene", xlabel="wavelength (nm)" if known else "band",
             ylabel="standard deviations")
    axes.set_ylim(bottom=0)


def _norms(axes: Axes, shift: Shift) -> None:
    if not shift.norms:
        axes.text(0.5, 0.5, "no BatchNorm in this classifier", ha="center", va="center", fontsize=LABEL)
        axes.set_axis_off()
        return
    names = [name.replace("stages.", "stage ").replace(".", " ").replace("_norm", "") for name in shift.norms]
    axes.barh(range(len(names)), list(shift.norms.values()), color=LINE_COLOURS[0])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(title="norms: distance of what they see", xlabel="running standard deviations")


def _reliability(axes: Axes, calibrated: dict[str, Calibration]) -> None:
    axes.plot([0, 1], [0, 1], color="0.6", lw=1)
    for (name, found), colour in zip(calibrated.items(), LINE_COLOURS):
        axes.scatter(found.confidence, found.accuracy, s=4 + 120 * found.share, color=colour, alpha=0.7, lw=0)
        axes.plot(found.confidence, found.accuracy, color=colour, lw=1, label=f"{name}: ECE {found.ece:.2f}")
    axes.set(title="reliability (size: share of the pixels)", xlabel="confidence", ylabel="accuracy", xlim=(0, 1),
             ylim=(0, 1))
    axes.legend(fontsize=SMALL)


def _risk(axes: Axes, calibrated: dict[str, Calibration]) -> None:
    for (name, found), colour in zip(calibrated.items(), LINE_COLOURS):
        axes.plot(100 * found.coverage, 100 * found.risk, color=colour, lw=1, label=f"{name}: mean {100 * found.area:.1f} %")
    axes.set(title="wrong answers among the surest pixels", xlabel="pixels answered (%)", ylabel="wrong (%)", xlim=(0, 100))
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=SMALL)
