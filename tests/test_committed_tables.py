"""The committed tables are what the program makes of the committed records, and so are the pages that show them."""

import re
import shlex
import shutil
import subprocess
import tarfile
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest

import main
from utils.figures import study as study_figures
from utils.run.folder import ROOT

FIGURES = ROOT / "figure"
ARCHIVES = sorted(FIGURES.glob("*/records.tar.xz"))
MADE = re.compile(r"^Made by `python main\.py ((?:tables|study) .+)`$", re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """A command of the shell that made committed tables: tables or study, folders of runs, options."""

    text: str

    @property
    def runs(self) -> list[str]:
        """Folders of runs, as patterns of the shell."""
        return self.text.split(" --")[0].split()[1:]

    @property
    def options(self) -> dict[str, str]:
        """--NAME -> its value, of those that have one."""
        words = shlex.split(self.text)
        return {word: value for word, value in zip(words, words[1:]) if word.startswith("--")}


def top(path: str) -> str:
    """runs/NAME of a path below it."""
    return "/".join(path.split("/")[:2])


def archived() -> set[str]:
    """The folders of runs whose records are committed."""
    found = set()
    for archive in ARCHIVES:
        with tarfile.open(archive) as file:
            found |= set(map(top, file.getnames()))
    return found


def committed() -> dict[Command, list[Path]]:
    """What was made of committed records: command -> Markdown files."""
    found, folders = defaultdict(list), archived()
    for path in sorted(FIGURES.glob("*/*.md")):
        for text in MADE.findall(path.read_text()):
            if {*map(top, (command := Command(text)).runs)} <= folders:
                found[command].append(path)
    return found


TABLES = committed()


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A folder that holds all committed records, as the top of the project would."""
    folder = tmp_path_factory.mktemp("records")
    for archive in ARCHIVES:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
    return folder


def test_every_folder_with_an_archive_has_a_table_that_is_remade():
    assert {path.parent for paths in TABLES.values() for path in paths} >= {archive.parent for archive in ARCHIVES}
    assert {command.text.split()[0] for command in TABLES} == {"tables", "study"}


@pytest.mark.slow_but("tables runs/robust runs/robust_real --layout overview --out figure/robust")
@pytest.mark.parametrize("command", TABLES, ids=lambda command: command.text.partition(" --insert")[0])
def test_committed_tables_are_remade_from_their_records(command, records, tmp_path, monkeypatch):
    """Markdown, CSV, LaTeX and the page that they are put into: nothing differs but how the words were quoted."""
    monkeypatch.chdir(records)
    monkeypatch.setattr(study_figures, "draw", lambda points: {})            # tables alone
    options = command.options
    out, page = tmp_path / Path(options["--out"]).name, options.get("--insert")
    options["--out"] = str(out)
    if page:
        options["--insert"] = str(shutil.copyfile(ROOT / page, tmp_path / "page.md"))
    words = [command.text.split()[0], *expanded(command.runs), *chain.from_iterable(options.items())]
    assert main.main(words) == 0
    for path in TABLES[command]:
        for file in filter(Path.exists, map(path.with_suffix, (".md", ".csv", ".tex"))):
            assert without_command(out / file.name) == without_command(file), file
    if page:
        assert (tmp_path / "page.md").read_text() == (ROOT / page).read_text(), page


def expanded(patterns: list[str]) -> list[str]:
    """What a shell makes of patterns, in the current folder."""
    found = subprocess.run(["bash", "-c", f"printf '%s\\n' {' '.join(patterns)}"], capture_output=True, text=True,
                           check=True)
    return found.stdout.splitlines()


def without_command(path: Path) -> str:
    return MADE.sub("", path.read_text())
