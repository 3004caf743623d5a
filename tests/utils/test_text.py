"""Numbers as text."""

import pandas as pd
import pytest

from utils import text


@pytest.mark.parametrize("seconds, words", [
    (0.0004, "1 ms"), (0.018, "18 ms"), (0.2, "0.2 s"), (2.44, "2.4 s"), (9.96, "10 s"), (59.4, "59 s"),
    (59.6, "1 min 0 s"), (250, "4 min 10 s"), (3599.8, "1 h 0 min"), (11520, "3 h 12 min"),
    (86399, "1 d 0 h"), (269000, "3 d 3 h")])
def test_durations(seconds, words):
    assert text.duration(seconds) == words


@pytest.mark.parametrize("name, words", [
    ("a|b", "a\\|b"), ("<b>", "&lt;b&gt;"), ("a\nb", "a b"), ("a\r\nb\u2028c", "a b c"), ("\x1b[2Ja", "\ufffd[2Ja"),
    ("<!-- /o/per_class -->", "&lt;!-- /o/per_class --&gt;"), ("κ ± 1 → ‖x̂‖", "κ ± 1 → ‖x̂‖")])
def test_names_stay_in_their_cell(name, words):
    assert text.shown(name) == words
    made = text.markdown(pd.DataFrame({name: [name]}, index=[name]), name)
    assert made.count(words) == 4 and len(made.splitlines()) == 3
    assert [line.replace("\\|", "").count("|") for line in made.splitlines()] == [3, 3, 3]


def test_a_class_called_like_a_mark_does_not_make_a_page_grow(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- o/per_class -->\n<!-- /o/per_class -->\nafter\n")
    made = text.markdown(pd.DataFrame({"n": ["1"]}, index=["<!-- /o/per_class -->"]), "<!-- o/per_class -->")
    sizes = []
    for _ in range(3):
        text.insert_table(page, "o/per_class", made)
        sizes.append(len(page.read_text()))
    assert len(set(sizes)) == 1 and text.text_between(page, "o/per_class") == made


def test_a_name_is_no_link_and_keeps_its_backslash():
    assert text.shown("![i](http://x)") == "![i]\\(http://x)" and text.shown("a\\|b") == "a\\\\\\|b"
