"""The report: what its page holds, that it needs nothing beside it, and that names in runs stay names."""

import base64
import json
import re
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

import main
from datasets.scene import Scene
from table_runs import write_run, write_seeds
from utils.figures.palette import class_colours
from utils.report import album, grids, viewer
from utils.report.grids import Entry, Grid

HOSTILE = '</script><script>alert("x")</script><img src=http://x.invalid/y onerror=alert(1)>'


class Page(HTMLParser):
    """Elements with their attributes, the tables' cells, and all words."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.tables, self.words, self.grid = [], {}, [], None
        self.size = len(text.encode())
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if attributes.get("class") == "grid":
            self.grid = self.tables[attributes["id"]] = []
        if tag == "tr" and self.grid is not None:
            self.grid.append([])
        if tag in ("td", "th") and self.grid is not None:
            self.grid[-1].append("")

    def handle_data(self, data):
        self.words.append(data)
        if self.grid and self.grid[-1]:
            self.grid[-1][-1] += data.strip()

    def handle_endtag(self, tag):
        self.grid = None if tag == "table" else self.grid

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def written(runs, out, *words):
    """The page of some made-up runs, whose scenes do not exist."""
    assert main.main(["report", str(runs), "--out", str(out), "--gpu", "-1", *words]) == 0
    return (out / "index.html").read_text("utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of seven seeds of three methods."""
    write_seeds(folder := tmp_path_factory.mktemp("seeds"))
    return folder


@pytest.fixture(scope="module")
def seeds(runs, tmp_path_factory):
    """Their page without maps."""
    return Page(written(runs, tmp_path_factory.mktemp("page"), "--no_maps"))


def test_scores_are_those_of_the_tables(seeds):
    head, *rows = seeds.tables["scores"]
    assert head == ["method", "OA", "AA", "κ", "F1", "source-validation OA", "n", "rule"]     # one pair: in the title
    last = {row[0]: row[1:] for row in rows if row[-1] == "last"}
    assert last["erm"] == ["60.9 ± 0.9", "50.9 ± 0.9", "40.9 ± 0.9", "30.9 ± 0.9", "99.0 ± 0.0", "7", "last"]
    assert last["daan †"][5] == "6/7" and last["constant answer"][0] == "50.0"
    assert {row[-1] for row in rows} == {"last", "source-val"}


def test_scores_of_the_oracle_stand_in_tables_of_their_own(seeds):
    assert "oracle" not in {row[-1] for row in seeds.tables["scores"] + seeds.tables["classes"]}
    assert [row[0] for row in seeds.tables["scores-oracle"][1:]] == ["daan †", "constant answer"]
    assert any("not an honest score" in words for words in seeds.words)


def test_classes_have_a_row_per_method_and_rule(seeds):
    head, *rows = seeds.tables["classes"]
    assert head == ["class", "method", "accuracy", "rule"] and len(rows) == 2 * 2 * 4
    assert ["x", "erm", "60.9 ± 0.9", "last"] in rows and ["y", "erm", "–", "last"] in rows


def test_filters_begin_at_the_rule(seeds):
    filters = {attributes["id"]: json.loads(attributes["data-filters"]) for attributes in seeds.of("div")
               if attributes.get("class") == "grid"}
    assert filters["scores"] == [["rule", "last"], ["method", ""]]
    assert filters["classes"] == [["rule", "last"], ["class", ""], ["method", ""]]


def test_every_run_and_command_is_there(seeds):
    assert len(seeds.tables["runs"]) == 1 + 21
    assert sum(words.startswith("python main.py --config") for words in seeds.words) == 21
    assert any("c6: it has not finished (status failed)" in words for words in seeds.words)


def test_the_page_needs_nothing_beside_it(seeds):
    policy, = (attributes["content"] for attributes in seeds.of("meta") if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; img-src data:;") and "script-src 'sha256-" in policy
    assert not seeds.of("link") and all("src" not in attributes for attributes in seeds.of("script"))
    sources = [attributes["src"] for attributes in seeds.of("img") if "src" in attributes]
    assert len(sources) >= 3 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert all(attributes["href"].startswith("#") for attributes in seeds.of("a"))
    assert {attributes["href"][1:] for attributes in seeds.of("a")} <= {one.get("id") for _, one in seeds.elements}


def test_names_in_runs_stay_names(tmp_path):
    write_run(tmp_path / "runs" / "a", "erm", 0, 0.6, 0.5, target=HOSTILE)
    about = json.loads((tmp_path / "runs/a/run.json").read_text())
    about |= {"classes": [HOSTILE, "\ud800\x1b$x"], "command": [HOSTILE], "versions": {HOSTILE: HOSTILE}, "git": HOSTILE}
    (tmp_path / "runs/a/run.json").write_text(json.dumps(about))
    page = Page(written(tmp_path / "runs", tmp_path / "page"))
    assert len(page.of("script")) == 1 and all("onerror" not in one for one in page.of("img"))
    assert any(f"→ {HOSTILE}" in words for words in page.words)
    assert any(row[0] == "\ufffd\ufffd$x" for row in page.tables["classes"])


def test_what_finds_no_room_is_named(runs, seeds, tmp_path, capsys):
    few = Page(written(runs, tmp_path, "--no_maps", "--size_limit", str(seeds.size / 1e6)))
    assert few.size < seeds.size and len(few.of("img")) < len(seeds.of("img"))
    assert any(re.search(r"\d+ figures: no room in the file", words) for words in few.words)
    assert main.main(["report", str(runs), "--out", str(tmp_path / "other"), "--size_limit", "0.05"]) == 2
    assert "alone take" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_a_run_without_its_scene_or_weights_is_shown_without_maps(tmp_path):
    write_run(tmp_path / "runs" / "a", "erm", 0, 0.6, 0.5)
    page = Page(written(tmp_path / "runs", tmp_path))
    assert any(re.search(r"The map of .*runs/a: .*checkpoint.pt", words) for words in page.words)
    assert not any(attributes.get("id") == "viewer" for attributes in page.of("div"))
    assert [row[-1] for row in page.tables["scores"][1:]] == ["last", "last", "source-val", "source-val"]


def test_no_run_is_one_line(tmp_path, capsys):
    assert main.main(["report", str(tmp_path)]) == 2
    assert "No run below" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_long_table_says_what_it_lacks(monkeypatch):
    monkeypatch.setattr(grids, "MOST_ROWS", 2)
    grid = Grid("a", "title", ["x"], [[Entry(str(k))] for k in range(3)])
    assert [row[0].text for row in grid.rows] == ["0", "1"] and grid.notes[0].startswith("The first 2 of 3 rows")


def test_a_picture_that_is_none_is_left_out():
    shown = album.Album(1e6)
    shown.add("a", "caption", lambda: b"<svg onload=alert(1)>")
    assert not shown.headings and shown.left_out == ["caption: it is no PNG."]


@pytest.mark.parametrize("n_classes", [3, 300])
def test_the_viewers_numbers_are_the_maps(n_classes, monkeypatch):
    monkeypatch.setattr(viewer, "MOST_PIXELS", 600)
    rng = np.random.default_rng(0)
    labels, cube = rng.integers(0, n_classes + 1, (40, 60)), rng.random((40, 60, 4), np.float32)
    names = tuple(f"class {k}" for k in range(n_classes))
    prediction = rng.integers(1, n_classes + 1, (40, 60))
    found = viewer.viewed("A → B", "caption", Scene("B", cube, labels, names), names, {"erm": prediction})
    assert (found["height"], found["width"], found["step"]) == (20, 30, 2)
    for shown, image in ((found["truth"], labels), (found["maps"][0]["data"], prediction)):
        numbers = np.frombuffer(zlib.decompress(base64.b64decode(shown)), "<u2" if n_classes > 255 else np.uint8)
        np.testing.assert_array_equal(numbers.reshape(20, 30), image[::2, ::2])
    assert found["colours"][0] == "#%02x%02x%02x" % tuple(round(255 * part) for part in class_colours(1)[0])
    assert "truth" not in viewer.viewed("A → B", "", Scene("B", cube, 0 * labels, names), names, {})
