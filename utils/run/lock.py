"""A run folder's lock: one process at a time works there, and the lock goes with it, however it ends.

Standard library only.  Ray sends this module by value to machines that may not see the program's folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Optional

LOCK = "lock"                    # file of a run folder
INHERITED = "S2AMSNET_LOCK"      # environment variable: number of the open lock that a process got from its parent
POLL_SECONDS = 0.5
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[BinaryIO]:
    """Hold a run folder's lock; the file is yielded.  A process that was started with its parent's lock shares it.

    Raises BlockingIOError if another process holds it and `wait` is false, OSError where the file system has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _inherited(folder) or _opened(folder) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not wait:
                    raise
                time.sleep(POLL_SECONDS)
        yield file


def has_locks(error: OSError) -> bool:
    """Whether an error of `locked` says something else than that the file system has no locks."""
    return error.errno not in _NO_LOCKS


def _opened(folder: Path) -> BinaryIO:
    """The lock file, made where it is missing, not through a link."""
    return open(os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+b", 0)


def _inherited(folder: Path) -> Optional[BinaryIO]:
    """The lock that the parent holds and handed down, if it is this folder's; else None."""
    number = os.environ.get(INHERITED, "")
    try:
        same = number.isdecimal() and os.path.samestat(os.fstat(int(number)), os.stat(folder / LOCK))
        return open(os.dup(int(number)), "r+b", 0) if same else None
    except (OSError, OverflowError):                       # closed since, or no lock file there
        return None
