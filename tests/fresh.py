"""A process of its own for what a test measures."""

from concurrent.futures import ProcessPoolExecutor

from forked import server


def in_a_fresh_process(function, *arguments):
    """What the function returns; holes that earlier tests left in this process's heap would show in its memory."""
    with ProcessPoolExecutor(1, server()) as fresh:
        return fresh.submit(function, *arguments).result()
