"""Errors that the user of the command line can mend: main.py prints them as one line, without a traceback."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

_OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|can't allocate memory|not enough memory|out of memory|ALLOC_FAILED")
_GPU = re.compile(r"CUDA|CUBLAS|CUDNN", re.IGNORECASE)


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


def out_of_memory(error: BaseException) -> str | None:
    """The memory that an error says is short, in words; None where it says something else."""
    said = f"{type(error).__name__}: {error}"
    if not (isinstance(error, MemoryError) or isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(said)):
        return None
    return "memory on the GPU" if _GPU.search(said) else "memory"


def shortened(value: object, longest: int = 80) -> str:
    """A value as text; of a long one the beginning."""
    text = str(value)
    return text if len(text) <= longest else text[:longest] + " …"


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean …?' where a known name is near; else nothing."""
    found = get_close_matches(name[:200], list(known), n=1)
    return f" Did you mean {found[0]}?" if found else ""
