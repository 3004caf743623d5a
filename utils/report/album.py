"""Pictures inside a page, as many as its size allows."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO

from matplotlib.figure import Figure

from utils.figures import sheet

MARKUP = 300               # bytes around a picture and its caption, which stands there three times
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """A caption, and a PNG as a data URI."""

    caption: str
    data: str


@dataclass
class Album:
    """Pictures by heading, in the order in which they came.

    room: bytes of the page that are left.  left_out: what was not taken, and why, in words.
    """

    room: float
    headings: dict[str, list[Picture]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    full: int = 0             # pictures that found no room

    def takes(self, size: int) -> bool:
        """Whether so many bytes find room; if so, they are taken."""
        if size > self.room:
            return False
        self.room -= size
        return True

    def add(self, heading: str, caption: str, make: Callable[[], Figure | bytes]) -> None:
        """A figure, drawn here, or the bytes of a PNG.  Once one has found no room, no later one is drawn."""
        if self.full:
            self.full += 1
            return
        made = make()
        content = made if isinstance(made, bytes) else _png(made)
        if not content.startswith(_PNG):
            self.left_out.append(f"{caption}: it is no PNG.")
        elif self.takes(len(data := data_uri(content)) + 3 * len(caption.encode()) + MARKUP):
            self.headings.setdefault(heading, []).append(Picture(caption, data))
        else:
            self.full = 1


def data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _png(figure: Figure) -> bytes:
    file = BytesIO()
    sheet.draw(figure, file)
    return file.getvalue()
