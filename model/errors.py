"""Errors that the user of the command line can mend: main.py prints them as one line, without a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something the user gave is wrong.  The message says what, where, and what to do."""


class ConfigError(UserError):
    """A setting has a value that cannot work."""


class CheckpointError(UserError):
    """A checkpoint is damaged or belongs to another configuration."""


class RunFolderError(UserError):
    """A file of a run folder is damaged or missing, or another process works in the folder."""


class SystemRefusedError(UserError):
    """The system refused something: the disk is full, a file cannot be opened, memory is short."""


class NonFiniteLossError(UserError):
    """A loss term became NaN or infinite during training."""


def shortened(value: object, longest: int = 80) -> str:
    """A value as text; of a long one the beginning."""
    text = str(value)
    return text if len(text) <= longest else text[:longest] + " …"


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean …?' where a known name is near; else nothing."""
    found = get_close_matches(name[:200], list(known), n=1)
    return f" Did you mean {found[0]}?" if found else ""
