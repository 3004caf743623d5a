"""README and pages hold: commands parse, links and tables are there, rows are those of the committed tables."""

import glob
import re
import shlex
from pathlib import Path

import pytest
import yaml

from datasets.readers import read_description
from model.errors import ConfigError
from utils.bench.bench import BenchConfig
from utils.commands import registry
from utils.commands import trust
from utils.commands.apply import Choice
from utils.run.config import TrainConfig
from utils.run.flags import tidy
from utils.sweep.sweep import SweepConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "figure" / "README.md"]
TABLES = sorted(path for path in (ROOT / "figure").glob("*/*.md"))
SPELLINGS = {"train": TrainConfig, "sweep": SweepConfig, "bench": BenchConfig, "evaluate": Choice, "predict": Choice,
             "trust": trust.Choice}
CALL = "python main.py"


def commands_of(text):
    """Every `python main.py …` of a page's code blocks and code spans but those of the table of commands, which are
    patterns: one string each, its lines joined, without `python main.py` and comment."""
    text = re.sub(r"<!-- commands -->.*?<!-- /commands -->", "", text, flags=re.S)
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.S | re.M)
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M))
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *(span.replace("\n", " ") for span in spans)]:
        if CALL in line:
            yield " ".join(line.partition(CALL)[2].partition(" #")[0].split())


COMMANDS = sorted({(page.name, command) for page in PAGES for command in commands_of(page.read_text("utf-8"))})


def parse(words):
    """The words of a command line through the parser of their command.  Raises ConfigError as the program would."""
    command, words = registry.find(words)
    words = [part for word in words for part in (sorted(glob.glob(word)) if "*" in word else []) or [word]]
    return command.parser().parse_args(tidy(words, SPELLINGS[command.name]) if command.name in SPELLINGS else words)


def test_commands_are_found():
    text = ("Do `python main.py tables runs\n--layout cost` and\n\n```\nX=1 python main.py sweep a.yaml \\\n"
            "    --print       # all\npython main.py --resume runs/X\n```\n")
    assert list(commands_of(text)) == ["sweep a.yaml --print", "--resume runs/X", "tables runs --layout cost"]
    named = {registry.find(shlex.split(command))[0].name for _, command in COMMANDS}
    assert named == registry.COMMANDS.keys()


@pytest.mark.parametrize("page, command", COMMANDS)
def test_commands_parse(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    mentioned = len(words) == 1 and words[0] in registry.COMMANDS
    if not mentioned and "--help" not in words and words != ["--version"]:
        parse(words)


@pytest.mark.parametrize("words", [["tables", "runs", "--no_such_flag"], ["train", "--patch_sise", "5"], ["tabels"],
                                   ["sweep"], ["--patch_size", "five"]])
def test_a_wrong_command_would_be_seen(words):
    with pytest.raises(ConfigError):
        parse(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_every_inserted_table_is_on_its_page():
    """A table whose last line says --insert PAGE stands on that page, and every mark on a page has its table."""
    marked = {(page.relative_to(ROOT).as_posix(), name) for page in PAGES
              for name in re.findall(r"<!-- (\w+/\w+) -->", page.read_text("utf-8"))}
    inserted = {(page, f"{path.parent.name}/{path.stem}") for path in TABLES
                for page in re.findall(r"Made by `python main.py .*--insert (\S+)`", path.read_text("utf-8"))}
    bench = {("docs/speed.md", "bench/speed"), ("docs/speed.md", "bench/growth")}      # their last line names no page
    assert len(inserted) >= 10
    assert marked == inserted | bench


def test_cited_sections_are_there():
    sources = [ROOT / "main.py", *(path for room in ("model", "datasets", "utils", "tests")
                                   for path in sorted((ROOT / room).rglob("*.py")))]
    cited = {(page, section) for path in sources
             for page, section in re.findall(r'(docs/[\w-]+\.md), \\?"([^"\\]+)\\?"', path.read_text("utf-8"))}
    assert len(cited) >= 10
    assert [(page, section) for page, section in sorted(cited) if section not in headings(ROOT / page)] == []


def headings(page):
    return re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)


def rows_of(path, title):
    """Method -> cells of the table below a title, without marks of significance."""
    below = path.read_text("utf-8").partition(f"**{title}")[2].partition("\n\n**")[0]
    cells = [[re.sub(r"</?ins>|\*\*", "", cell).strip() for cell in line.strip("|").split("|")]
             for line in below.splitlines() if line.startswith("|")]
    return {name.removesuffix(" †"): dict(zip(cells[0][1:], rest)) for name, *rest in cells[2:]}


def shown_rows(page, corner):
    """The rows of every table of a page whose head begins with `corner`."""
    for table in re.findall(rf"^\| ?{re.escape(corner)} \|.*\n(?:\|.*\n)+", page.read_text("utf-8"), re.M):
        for line in table.splitlines()[2:]:
            yield [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_of_the_methods_page_are_the_benchmarks():
    made = rows_of(ROOT / "figure/benchmark/overview.md", "κ, rule last")
    shown = list(shown_rows(ROOT / "docs/methods.md", "scores"))
    assert {row[0] for row in shown} == made.keys() - {"constant answer"}
    for name, *cells in shown:
        assert cells == list(made[name].values()), name


def test_readmes_results_are_the_tables():
    benchmark = rows_of(ROOT / "figure/benchmark/overview.md", "κ, rule last")
    crops = rows_of(ROOT / "figure/robust/overview.md", "κ, rule last")
    pairs = ("Houston18crop → MUUFL", "MUUFL → Houston18crop")
    shown = list(shown_rows(ROOT / "README.md", "method"))
    assert len(shown) == 6
    for label, mean, n, *of_pairs, crops_n, rule in shown:
        name = re.match(r"`(.+)`", label)[1]
        assert (mean, n, rule) == (benchmark[name]["mean over pairs"], benchmark[name]["n"], "`last`")
        expected = [crops[name][pair] for pair in pairs] + [crops[name]["n"]] if name in crops else ["–"] * 3
        assert [*of_pairs, crops_n] == expected


def test_scene_files_shown_are_scene_files(tmp_path):
    for page in ("README.md", "docs/data.md"):
        for block in re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text("utf-8"), re.S):
            path = tmp_path / "scene.yaml"
            path.write_text(block)
            assert read_description(path).name == yaml.safe_load(block)["name"] == "campus"


def test_the_citation_file_has_what_cff_asks_for():
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert content["cff-version"] == "1.2.0" and content["message"] and content["title"] and content["authors"]
    paper, = content["references"]
    assert paper["doi"] == "10.1109/TGRS.2024.3401231" and len(paper["authors"]) == 5
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert paper["title"] in readme and paper["doi"] in readme
