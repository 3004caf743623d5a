"""The page itself: Jinja2 with autoescape over what runs say, and the style and script that lie beside this file."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from utils.tables.markup import BEST, LEVEL
from utils.text import printable

MARKS = {"": "", BEST: "best", LEVEL: "level"}        # of a cell -> class of the style
TEMPLATES = Path(__file__).parent / "templates"


def rendered(content: dict[str, Any]) -> str:
    """The page of what the template names, its texts escaped.

    It may load nothing: its policy allows the pictures inside it, and the one script whose digest it names.
    """
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    style, script = ((TEMPLATES / name).read_text("utf-8") for name in ("style.css", "script.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("page.html")
    return page.render(content, marks=MARKS, digest=digest,
                       style=Markup(style), script=Markup(script))                 # nosec B704 # our own files


def _shown(value: Any) -> Any:
    """What a template shows of a value: of a text what a file can hold."""
    return printable(value) if type(value) is str else value
