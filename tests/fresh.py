"""A process of its own for what a test measures."""

import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module

from forked import server


def in_a_fresh_process(function, *arguments):
    """What the function returns; holes that earlier tests left in this process's heap would show in its memory."""
    with ProcessPoolExecutor(1, server()) as fresh:
        return fresh.submit(function, *arguments).result()


def modules_after(names: Iterable[str]) -> set[str]:
    """The modules that are loaded once these are."""
    for name in names:
        import_module(name)
    return set(sys.modules)
