"""The project's figures: arrays in, a matplotlib Figure out.  No pyplot, hence no global state and no display."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from datasets.scene import Scene
from utils.figures.curves import class_spectra, draw_spectra
from utils.figures.palette import (CORRECT, UNLABELLED, WRONG, class_colours, error_image, false_colour, label_image,
                                   text_on)
from utils.figures.sheet import LABEL, SMALL, Sheet, bare, letter_width, page, page_width, plain

MOST_RESAMPLED = 64       # classes of a confusion matrix drawn as an image; of a larger one matplotlib's copies, each a
#                           number per dot of the page, take gigabytes


def plot_maps(cube: np.ndarray, rgb_bands: Sequence[int], labels: np.ndarray, prediction: np.ndarray,
              class_names: Sequence[str], title: str) -> Figure:
    """Scene, ground truth, predictions and errors side by side (wide scenes: one below the other).

    cube [H, W, B]; labels [H, W], 0 = unlabelled, 1..K; prediction [H, W], 1..K everywhere (0 = not predicted).
    Without any label only the scene and its map are shown.
    """
    n_classes, labelled = len(class_names), labels > 0
    images = [("scene, false colour", false_colour(cube, rgb_bands)),
              ("prediction, whole scene", label_image(prediction, n_classes))]
    handles, heading = _class_patches(class_names), "class"
    if labelled.any():
        images[1:1] = [("ground truth", label_image(labels, n_classes)),
                       ("prediction, labelled pixels", label_image(np.where(labelled, prediction, 0), n_classes))]
        images.append(("errors", error_image(labels, prediction)))
        counts = np.bincount(labels[labelled], minlength=n_classes + 1)[1:]
        right = 100 * np.mean(prediction[labelled] == labels[labelled])
        handles = [*_class_patches(class_names, [f"{count:,}" for count in counts]),
                   _patch(UNLABELLED, "unlabelled"), _patch(CORRECT, f"correct ({right:.1f} %)"),
                   _patch(WRONG, f"wrong ({100 - right:.1f} %)")]
        heading = "class (labelled pixels)"
    columns = min(len(images), _columns(labels.shape[1] / labels.shape[0], (1, 2, 3, 5)))
    sheet = Sheet(page_width(labels.shape[1] * columns, columns), title)
    for start in range(0, len(images), columns):
        spare = sheet.image_row(images[start:start + columns], columns)
    sheet.legend(handles, heading, spare)
    return sheet.finish()


def plot_confusion(confusion: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Confusion matrix [K, K], rows = truth, as percent of each row; cells carry numbers up to 16 classes.

    Beside the rows stands the number of labelled pixels, above the columns the user's accuracy (share of the pixels
    predicted as this class that are of it).  The diagonal is the producer's accuracy.
    """
    confusion = np.asarray(confusion, dtype=np.float64)
    n_classes = len(class_names)
    cell = 0.56 if n_classes <= 8 else 0.44 if n_classes <= 16 else 0.3
    names = letter_width(LABEL) * max(map(len, class_names))
    figure = page(max(cell * n_classes + names + 1.9, 4.8), cell * n_classes + 0.7 * names + 1.2, title, "compressed")
    axes = figure.add_subplot()
    share = _percent(confusion, confusion.sum(axis=1, keepdims=True))
    colours = colormaps["magma_r"].with_extremes(under="white", bad=UNLABELLED)      # no pixel: white; no row: grey
    norm = Normalize(np.finfo(float).tiny, 100)
    if n_classes <= MOST_RESAMPLED:
        image = axes.imshow(share, cmap=colours, norm=norm)
    else:
        edges = np.arange(n_classes + 1) - 0.5
        image = axes.pcolormesh(edges, edges, share, cmap=colours, norm=norm)
        axes.set(aspect="equal", ylim=(n_classes - 0.5, -0.5))
    names = [plain(name) for name in class_names]
    axes.set_xticks(range(n_classes), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(n_classes), names)
    axes.tick_params(labelsize=LABEL, length=2)
    axes.set_xlabel("predicted class", fontsize=LABEL)
    axes.set_ylabel("true class", fontsize=LABEL)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, aspect=30)
    bar.set_label("share of the true class (%)", fontsize=LABEL)
    bar.ax.tick_params(labelsize=SMALL)
    if n_classes <= 16:
        _write_cells(axes, share, image)
    _write_margins(axes, confusion)
    return figure


def plot_patches(patches: dict[str, np.ndarray], rgb_bands: Sequence[int], row_names: Sequence[str],
                 title: str) -> Figure:
    """A sheet of patches: a row per sample, a column per kind; patches: kind -> [n, B, P, P] (the same samples).

    Each column has a stretch of its own (the figure says so), since generated patches can be tens of times larger than
    their sources: colours compare within a column, not across columns.
    """
    tile, gap = 0.95, 0.06
    names = letter_width(LABEL) * max(map(len, row_names)) + 0.2
    sheet = Sheet(max(names + (tile + gap) * len(patches), 5.0), title)
    sheet.note("False colour; each column is stretched by itself (2nd to 98th percentile of each band).")
    tops = sheet.top + 0.2 + (tile + gap) * np.arange(len(row_names))
    for column, (kind, images) in enumerate(patches.items()):
        size = images.shape[-1]
        strip = false_colour(images.transpose(0, 2, 3, 1).reshape(-1, size, images.shape[1]), rgb_bands)
        for row, (name, top) in enumerate(zip(row_names, tops)):
            axes = sheet.axes(names + column * (tile + gap), top, tile, tile)
            axes.imshow(strip[row * size:(row + 1) * size], interpolation="nearest")
            bare(axes)
            axes.set_title(plain(kind) if row == 0 else "", fontsize=LABEL, pad=3)
            axes.set_ylabel(plain(name) if column == 0 else "", fontsize=LABEL, rotation=0, ha="right", va="center")
    sheet.top = tops[-1] + tile + gap
    return sheet.finish()


def plot_scene(scene: Scene, title: str) -> Figure:
    """A scene in false colour, its label map, and the mean spectra of its classes (L2-normalised); without labels the
    mean spectrum of all pixels that hold data, in the file's units."""
    names, counts = scene.class_names, scene.class_counts()
    labelled = bool(counts.sum())
    images = [("false colour", false_colour(scene.cube, scene.rgb_bands))]
    images += [("labels", label_image(scene.labels, len(names)))] if labelled else []
    columns = min(len(images), _columns(scene.shape[1] / scene.shape[0], (1, 2, 2, 2)))
    sheet = Sheet(page_width(scene.shape[1] * columns, columns), title)
    for start in range(0, len(images), columns):
        sheet.image_row(images[start:start + columns])
    if labelled:
        handles = _class_patches(names, [f"{count:,}" for count in counts])
        sheet.legend([*handles, _patch(UNLABELLED, "unlabelled")], "class (labelled pixels)")
        spectra, labels = _labelled_spectra(scene)
    else:
        names, spectra = ("all pixels with data",), scene.cube[scene.cube.any(axis=2)]
        labels = np.ones(len(spectra), int)
    known = scene.wavelengths is not None
    draw_spectra(sheet, {scene.name: class_spectra(spectra, labels, len(names))},
                 {scene.name: scene.wavelengths if known else np.arange(scene.bands)},
                 "wavelength (nm)" if known else "band", names)
    return sheet.finish()


def plot_pair(source: Scene, target: Scene, title: str) -> Figure:
    """Both scenes in false colour, their label maps, and the mean spectra of their classes.

    Spectra are L2-normalised per pixel, as for training (dividing by the scene's maximum first changes nothing then).
    """
    names, roles = source.class_names, {"source": source, "target": target}
    images = [image for role, scene in roles.items() for image in (
        (f"{role}: {scene.name}", false_colour(scene.cube, scene.rgb_bands)),
        (f"{role}: ground truth", label_image(scene.labels, len(names))))]
    columns = _columns(np.mean([scene.shape[1] / scene.shape[0] for scene in roles.values()]), (1, 2, 4, 4))
    sheet = Sheet(page_width(max(scene.shape[1] for scene in roles.values()) * columns, columns), title)
    for start in range(0, 4, columns):
        sheet.image_row(images[start:start + columns])
    there = np.zeros_like(source.class_counts())
    there[:target.n_classes] = target.class_counts()       # a target may lack the source's last classes
    counts = [f"{ours:,} / {theirs:,}" for ours, theirs in zip(source.class_counts(), there)]
    sheet.legend([*_class_patches(names, counts), _patch(UNLABELLED, "unlabelled")],
                 "class (labelled pixels: source / target)")
    spectra = {role: class_spectra(*_labelled_spectra(scene), len(names)) for role, scene in roles.items()}
    known = all(scene.wavelengths is not None for scene in roles.values())
    positions = {role: scene.wavelengths if known else np.arange(scene.bands) for role, scene in roles.items()}
    draw_spectra(sheet, spectra, positions, "wavelength (nm)" if known else "band", names)
    return sheet.finish()


def _columns(aspect: float, choices: tuple[int, int, int, int]) -> int:
    """Panels beside each other for very wide, wide, squarish and tall scenes (aspect = width / height)."""
    return choices[sum(aspect < limit for limit in (2.2, 1.25, 0.45))]


def _patch(colour: Sequence[float], label: str) -> Patch:
    return Patch(facecolor=colour, edgecolor="0.4", linewidth=0.4, label=label)


def _class_patches(class_names: Sequence[str], counts: Sequence[str] | None = None) -> list[Patch]:
    labels = class_names if counts is None else [f"{name} ({count})" for name, count in zip(class_names, counts)]
    return [_patch(colour, label) for colour, label in zip(class_colours(len(class_names)), labels)]


def _labelled_spectra(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The labelled pixels' L2-normalised spectra [N, B] and labels [N]."""
    labelled = scene.labels > 0
    spectra = scene.cube[labelled].astype(np.float64)
    length = np.linalg.norm(spectra, axis=1, keepdims=True)
    return np.divide(spectra, length, out=np.zeros_like(spectra), where=length > 0), scene.labels[labelled]


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """100 part / whole; NaN where the whole is empty."""
    whole = np.broadcast_to(whole, part.shape)
    return 100 * np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _write_cells(axes: Axes, share: np.ndarray, image) -> None:
    """Percents in the cells; empty cells stay blank, so that the confused classes stand out."""
    for (row, column), value in np.ndenumerate(share):
        if value > 0:
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=SMALL,
                      color=text_on(image.cmap(image.norm(value))))


def _write_margins(axes: Axes, confusion: np.ndarray) -> None:
    """Labelled pixels to the right of the rows, user's accuracy above the columns."""
    n_classes = len(confusion)
    users = _percent(np.diag(confusion).copy(), confusion.sum(axis=0))
    style = {"fontsize": SMALL, "color": "0.25", "clip_on": False}
    for index, (pixels, value) in enumerate(zip(confusion.sum(axis=1), users)):
        axes.text(n_classes - 0.4, index, f"{pixels:,.0f}", ha="left", va="center", **style)
        axes.text(index, -0.65, "–" if np.isnan(value) else f"{value:.0f}", ha="center", va="bottom", **style)
    axes.text(n_classes - 0.4, -0.65, "pixels", ha="left", va="bottom", **style)
    axes.text(-0.65, -0.65, "user's accuracy (%)", ha="right", va="bottom", **style)
