"""Numbers as text."""

import pytest

from utils import text


@pytest.mark.parametrize("seconds, words", [
    (0.0004, "1 ms"), (0.018, "18 ms"), (0.2, "0.2 s"), (2.44, "2.4 s"), (9.96, "10 s"), (59.4, "59 s"),
    (59.6, "1 min 0 s"), (250, "4 min 10 s"), (3599.8, "1 h 0 min"), (11520, "3 h 12 min"),
    (86399, "1 d 0 h"), (269000, "3 d 3 h")])
def test_durations(seconds, words):
    assert text.duration(seconds) == words
