"""Pages at exact sizes: boxes in inches from the top left, fonts that grow with the page."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from model.files import replacing

DPI = 150
MOST_PIXELS = 25_000_000                    # of a figure; one that is larger in inches gets fewer dots per inch
LABEL, SMALL, TITLE = 8.0, 7.0, 10.0        # points
_PAGE = 8.5             # inches; wider pages get fonts and gaps that are larger in proportion
_GAP = 0.1              # inches between boxes and at the page's edges
_LETTER = 0.55          # mean width of a letter in em
_DOLLAR = re.compile(r"(?<!\\)\$")
Box = tuple[float, float, float, float]     # left, top, width, height in inches


def letter_width(size: float) -> float:
    """Inches that a letter of `size` points takes on average."""
    return _LETTER * size / 72


def fold(text: str, width: float, size: float) -> str:
    """Break text into lines that fit `width` inches at `size` points; `plain`."""
    return plain("\n".join(textwrap.wrap(text, max(12, int(width / letter_width(size))))))


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: its dollar signs begin no formula."""
    return _DOLLAR.sub(r"\\$", text)


def plainly_labelled(handles: Sequence[Artist]) -> list[Artist]:
    """A legend's handles, their labels `plain`."""
    for handle in handles:
        handle.set_label(plain(handle.get_label()))
    return list(handles)


def page(width: float, height: float, title: str, layout: str) -> Figure:
    """An empty figure (inches) with a title; matplotlib's layout engine places the rest."""
    figure = Figure((width, height), dpi=DPI, layout=layout)
    figure.get_layout_engine().set(w_pad=_GAP, h_pad=_GAP)
    figure.suptitle(fold(title, width - 2 * _GAP, TITLE), fontsize=TITLE)
    return figure


def page_width(pixels: int, columns: int) -> float:
    """Page width (inches) for `columns` images of together `pixels` pixels.

    Each scene pixel becomes a whole number of dots at 150 dpi, so that single labelled pixels keep their shape; the
    images take about 10.5 inches, at most 16 (beyond 2,400 pixels some are skipped).
    """
    dots = max(1, round(10.5 * DPI / pixels))
    images = min(dots * pixels / DPI, 16.0)
    return max(images / (1 - (columns + 1) * _GAP / _PAGE), images + (columns + 1) * _GAP)


class Sheet:
    """A figure that grows downwards; `finish` fixes its height and puts every part in its place.

    `top` is where the next part goes (inches from the top), `unit` the factor of fonts and gaps.
    """

    def __init__(self, width: float, title: str):
        self.figure = Figure((width, 1.0), dpi=DPI)
        self._canvas = FigureCanvasAgg(self.figure)
        self.width, self.unit = width, max(1.0, width / _PAGE)
        self.gap = self.top = _GAP * self.unit
        self._boxes: list[tuple[Axes, Box]] = []
        self._anchored: list[tuple[Artist, float, float]] = []
        self.note(title, TITLE)

    def note(self, text: str, size: float = SMALL) -> None:
        """Centred text, broken into lines where it is wider than the page."""
        text = fold(text, (self.width - 2 * self.gap) / self.unit, size)
        note = self.figure.text(0.5, 0.0, text, fontsize=size * self.unit, ha="center", va="top")
        self._anchored.append((note, self.width / 2, self.top))
        self.top += self._size(note)[1] + 0.5 * self.gap

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        axes = self.figure.add_axes((0.0, 0.0, 1.0, 1.0), label=f"box {len(self._boxes)}")
        axes.tick_params(labelsize=SMALL * self.unit)
        self._boxes.append((axes, (left, top, width, height)))
        return axes

    def image_row(self, images: Sequence[tuple[str, np.ndarray]], columns: int | None = None) -> Box | None:
        """A row of captioned images [h, w, 3] of equal height that fills the page, or `columns` equal columns of it.

        Returns the box of the empty columns, if any.
        """
        aspects = [image.shape[1] / image.shape[0] for _, image in images]
        columns = columns or len(images)
        total = sum(aspects) + (columns - len(images)) * aspects[0]
        height = (self.width - self.gap * (columns + 1)) / total
        captions = [fold(caption, height * aspect / self.unit, LABEL) for (caption, _), aspect in zip(images, aspects)]
        lines = 1 + max(caption.count("\n") for caption in captions)
        top, left = self.top + (0.06 + 0.14 * lines) * self.unit, self.gap
        for caption, (_, image), aspect in zip(captions, images, aspects):
            axes = self.axes(left, top, height * aspect, height)
            axes.imshow(image, interpolation="nearest", aspect="auto")
            axes.set_title(caption, fontsize=LABEL * self.unit, pad=3 * self.unit)
            bare(axes)
            left += height * aspect + self.gap
        self.top = top + height + 0.5 * self.gap
        return (left, top, self.width - self.gap - left, height) if len(images) < columns else None

    def grid(self, titles: Sequence[str], columns: int, ticks_right: bool = False) -> list[Axes]:
        """Titled panels for curves, row by row, with room for numbers and labels around the grid."""
        unit, rows = self.unit, -(-len(titles) // columns)
        left, right, between = 0.55 * unit, (0.55 if ticks_right else 0.15) * unit, 0.27 * unit
        width = (self.width - left - right - (columns - 1) * between) / columns
        titles = [fold(title, width / unit, LABEL) for title in titles]
        room = (0.16 + 0.14 * max(1 + title.count("\n") for title in titles)) * unit
        height, top = 1.15 * unit, self.top + room
        self.top += rows * (height + room) + 0.42 * unit
        panels = []
        for index, title in enumerate(titles):
            row, column = divmod(index, columns)
            panels.append(self.axes(left + column * (width + between), top + row * (height + room), width, height))
            panels[-1].set_title(title, fontsize=LABEL * unit, pad=3 * unit)
        return panels

    def legend(self, handles: Sequence[Artist], title: str, box: Box | None = None) -> None:
        """A legend in an empty box where it fits, otherwise below everything so far."""
        if box is not None:
            legend = self._legend(handles, title, box[2])
            width, height = self._size(legend)
            if width <= box[2] and height <= box[3]:
                self._anchored.append((legend, box[0], box[1]))
                return
            legend.remove()
        legend = self._legend(handles, title, self.width - 2 * self.gap)
        self._anchored.append((legend, self.gap, self.top + 0.5 * self.gap))
        self.top += self._size(legend)[1] + self.gap

    def finish(self) -> Figure:
        """Fix the height; boxes are moved to whole dots, so that image pixels stay even."""
        height = np.ceil((self.top + 0.5 * self.gap) * DPI) / DPI
        self.figure.set_size_inches(self.width, height)
        for axes, box in self._boxes:
            left, top, box_width, box_height = np.round(np.multiply(box, DPI)) / DPI
            axes.set_position((left / self.width, 1 - (top + box_height) / height,
                               box_width / self.width, box_height / height))
        for artist, left, top in self._anchored:
            place = (left / self.width, 1 - top / height)
            if isinstance(artist, Legend):
                artist.set_bbox_to_anchor(place)
            else:
                artist.set_position(place)
        return self.figure

    def _legend(self, handles: Sequence[Artist], title: str, width: float) -> Legend:
        """The legend with the most columns that fit `width` inches, at least one."""
        for columns in range(min(len(handles), 8), 0, -1):
            legend = self.figure.legend(
                handles=plainly_labelled(handles), title=title, ncols=columns, loc="upper left", alignment="left",
                frameon=False, borderpad=0, borderaxespad=0, handlelength=1.4, handleheight=0.9, columnspacing=1.4,
                fontsize=LABEL * self.unit, title_fontsize=LABEL * self.unit)
            if columns == 1 or self._size(legend)[0] <= width:
                return legend
            legend.remove()
        raise ValueError("a legend needs at least one entry")

    def _size(self, artist: Artist) -> np.ndarray:
        extent = artist.get_window_extent(self._canvas.get_renderer())
        return np.array([extent.width, extent.height]) / self.figure.dpi


def bare(axes: Axes) -> None:
    """Take the ticks away and leave a thin grey frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color="0.5", linewidth=0.5)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure's PNG (`draw`) atomically; creates the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        draw(figure, file)


def draw(figure: Figure, file: BinaryIO) -> None:
    """Write a PNG at 150 dpi, at fewer where that would be more than MOST_PIXELS, to an open file.  The same figure
    gives the same bytes."""
    figure.savefig(file, format="png", dpi=min(DPI, math.sqrt(MOST_PIXELS / np.prod(figure.get_size_inches()))))
