"""Files replaced atomically, names that stay in their folder, and signals that wait meanwhile.

Standard library only.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

PART = ".part"                       # how the name of a file in the making ends; what stands before it is random
_NAME = re.compile(rf"\.[0-9a-f]{{16}}{re.escape(PART)}")
LONGEST_NAME = 200                   # bytes; file systems take 255, and names of files add to it
_NEVER = {"/", "\\", "\x7f", *map(chr, range(32))}             # in a plain name
_STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def replacing(path: str | Path, sync: bool = False) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block has ended; it is yielded, open for writing.

    It lies in the same folder under a name that nobody can foresee, and is opened exclusively, so never through a link.
    If the block fails, it is removed and `path` stays as it was.  Signals that stop the program wait.  What a process
    that was killed left half written in this folder goes.

    sync: have the disk hold all of it before it takes its place.
    """
    path = Path(path)
    with signals_later(), named_in_errors(path), _new_part(path.parent) as file:
        try:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    if sync:
        sync_to_disk(path.parent)


@contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """An OSError inside names this file, whatever file it names or does not."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def sync_to_disk(path: Path) -> None:
    """Have the disk hold what a file, or the list of a folder, holds now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_parts(folder: Path) -> None:
    """Remove what processes that were killed left half written in a folder.

    A file that is being written is locked, so it stays.  So does what this user may not list or remove.
    """
    left = []
    with suppress(OSError), os.scandir(folder) as entries:
        left += [entry.path for entry in entries if _NAME.fullmatch(entry.name)]
    for path in left:
        with suppress(OSError), open(path, "r+b", opener=_not_through_links) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)


def _new_part(folder: Path) -> BinaryIO:
    """A new file in a folder, locked until it is closed, where the file system has locks; the killed ones' go first."""
    remove_parts(folder)
    while True:
        file = open(folder / f".{secrets.token_hex(8)}{PART}", "x+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:                      # another process just takes it for a killed one's
            file.close()
            continue
        except OSError:                              # no locks here: then nobody removes it either
            return file
        if os.path.exists(file.name):
            return file
        file.close()


def _not_through_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


@contextmanager
def signals_later() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM wait; the first that came is raised when the block has ended.

    Python's handlers run in the main thread; in another one nothing has to wait.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in _STOPPING}
    try:
        for number in before:
            signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if came:
            signal.raise_signal(came[0])


def is_plain_name(name: str) -> bool:
    """Whether a name can be that of a file in a folder, and of nothing outside it."""
    return (name not in ("", ".", "..") and not set(name) & _NEVER
            and len(name.encode("utf-8", "surrogatepass")) <= LONGEST_NAME)
