"""tests/gpu_check.sh: its commands, what it writes in a dry run, and what of a part that failed."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import gpu_report
import main
from test_docs import parse
from utils.bench import measure

ROOT = Path(main.__file__).parent
SCRIPT = ROOT / "tests" / "gpu_check.sh"


def check(*words, **environment):
    """The script, ended."""
    given = {name: value for name, value in os.environ.items() if name not in ("GPU", "JOBS", "SCENES", "TESTS")}
    given |= {"PYTHON": sys.executable} | {name: str(value) for name, value in environment.items()}
    return subprocess.run([str(SCRIPT), *map(str, words)], capture_output=True, text=True, env=given)


@pytest.fixture
def commands(tmp_path):
    """commands(*words, **environment): the words of every command of all parts, none of which is run."""
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(f'#!/bin/sh\nprintf "%s " "$@" >>{log}\necho >>{log}\n')
    python.chmod(0o755)

    def given(*words, **environment):
        log.unlink(missing_ok=True)
        ended = check(*words, "all", tmp_path / "out", PYTHON=python, **environment)
        assert (ended.returncode, ended.stderr) == (0, "")
        return [shlex.split(line) for line in log.read_text().splitlines()]
    return given


@pytest.mark.parametrize("words, environment, gpu", [([], {}, "0"), ([], {"GPU": "3"}, "3"), (["--dry-run"], {}, "-1"),
                                                     ([], {"GPU": "-1"}, "-1")])
def test_every_command_parses_and_goes_to_the_device(commands, words, environment, gpu, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = commands(*words, **environment)
    programs = [command[1:] for command in given if command[0] == "main.py"]
    assert [command[0] for command in programs] == ["bench", "bench", "bench", "train", "--resume"]
    for command in programs:
        parse(command)
        assert command[0] == "--resume" or command[command.index("--gpu") + 1] == gpu
    tests = [command for command in given if command[:2] == ["-m", "pytest"]]
    assert [command[command.index("-k") + 1:-3] for command in tests] == [["not", "compile"], ["compile"]]
    reports = [command[2:] for command in given if command[0] == "tests/gpu_report.py"]
    assert [report[0] for report in reports] == list(gpu_report.PARTS) and {report[-1] for report in reports} == {gpu}
    assert ("--small" in programs[0]) == (gpu == "-1")


@pytest.mark.parametrize("words", [[], ["tests"], ["test", "out"], ["tests", "out", "more"]])
def test_other_words_are_explained(words, tmp_path):
    ended = check(*words)
    assert ended.returncode == 2 and "tests" in ended.stderr and "training" in ended.stderr


@pytest.mark.slow
def test_a_dry_run_writes_what_it_found(commands, simulated, tmp_path, monkeypatch):
    """Part by part into one record and one page: training and layouts by the script's commands, in this process."""
    monkeypatch.setattr(measure, "SHORTEST", 0.0)
    monkeypatch.chdir(ROOT)
    given, out = commands("--dry-run", SCENES=simulated), tmp_path / "out"
    programs = [command[1:] for command in given if command[0] == "main.py"]
    assert [main.main(words) for words in (programs[0], *programs[3:])] == [0, 0, 0]
    for _, *words in (command for command in given if command[0] == "tests/gpu_report.py"):
        if words[1] in ("layouts", "training"):
            gpu_report.main(*words)
    ended = check("--dry-run", "tests", out, TESTS="tests/utils/run/test_build.py")
    assert ended.returncode == 0, (out / "gpu_check" / "tests.log").read_text()
    parts, page = json.loads((out / "gpu_check.json").read_text())["parts"], (out / "gpu_check.md").read_text()
    assert list(parts) == ["tests", "layouts", "training"]
    assert all(part["dry_run"] and part["exit"] == 0 and part["device"].startswith("cpu (") and part["date"][:2] == "20"
               for part in parts.values())
    tests, training = parts["tests"]["found"], parts["training"]["found"]
    assert tests["tests"] == tests["passed"] + sum(tests["skipped"].values()) == 1 and not tests["failures"]
    assert [epoch["epoch"] for epoch in training["epochs"]] == [1, 2] and training["status"] == "done"
    names = list(parts["layouts"]["found"]["step"])
    assert names[0].startswith("reference") and [name.partition(", ")[2] for name in names[1:]] == [
        f"{precision}, {layout}" for precision in ("float32", "bf16") for layout in ("channels last", "NCHW")]
    assert "## tests\n\ndone in " in page and "a dry run, which says nothing about a GPU" in page
    assert "1 tests: " in page and "| training step " in page and "| epoch | seconds |" in page and "status done" in page
    assert page.index("## tests") < page.index("## layouts") < page.index("## training")


@pytest.mark.parametrize("part", gpu_report.PARTS)
def test_a_part_that_failed_stands_beside_the_others(part, tmp_path):
    folder = tmp_path / "gpu_check"
    folder.mkdir()
    found = {"tests": 3, "passed": 1, "failures": {"a::b": "no"}, "skipped": {"needs 2": 1}}
    earlier = {"tests": {"date": "2026-01-01", "dry_run": False, "exit": 0, "seconds": 5, "device": "NVIDIA X",
                         "gpu": None, "machine": "NVIDIA X.", "last_words": [], "found": found}}
    (tmp_path / "gpu_check.json").write_text(json.dumps({"parts": earlier}))
    (folder / f"{part}.log").write_text("one\ntwo\nthree\nTraceback\nError: it broke\n")
    gpu_report.main(str(tmp_path), part, "124", "580", "-1")
    parts = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    page = (tmp_path / "gpu_check.md").read_text()
    assert list(parts) == list(dict.fromkeys(["tests", part])) and parts[part]["found"] is None
    assert f"## {part}\n\nfailed with exit code 124 in 9 min 40 s" in page
    assert "Error: it broke\nNothing can be read" in page
    if part != "tests":
        assert "3 tests: 1 passed, 1 failed, 1 skipped.\n- failed: `a::b`: no\n- skipped: 1 × needs 2" in page
        assert parts["tests"] == earlier["tests"] and "2026-01-01, NVIDIA X. NVIDIA X." in page
