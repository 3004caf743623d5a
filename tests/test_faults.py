"""Kills, signals and full disks at any moment lose nothing, and every process makes the same bits."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import main
from conftest import same_state
from utils.run import checkpoint
from utils.run.folder import RunFolder

PROGRAM = Path(main.__file__)
KILLS = 12
LATEST_KILL = 4.0          # seconds after a process has started: imports, data, resume, first epochs
HANGS = 600.0              # seconds that only end a test that hangs

pytestmark = pytest.mark.slow


def start(words, *, limit=None, **environment):
    """main.py in a process of its own; limit: bytes that no file may exceed, as on a full disk."""
    shrink = None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return subprocess.Popen([sys.executable, str(PROGRAM), *words], env={**os.environ, **environment},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=shrink)


def finish(words, **options):
    """Exit code and what was said on stderr."""
    process = start(words, **options)
    return (process.communicate(timeout=HANGS)[1], process.returncode)[::-1]


def bits(run):
    """All that a run has made, but for seconds."""
    saved = checkpoint.load(run.checkpoint)
    records = {path.name: [{key: value for key, value in record.items() if key != "seconds"}
                           for record in run.records(path)] for path in (run.epochs, run.diagnostics)}
    return {"method": saved["method"], "streams": saved["streams"], "selected": saved["state"]["selected"],
            "records": records, "evaluation": json.loads(run.evaluation.read_text())}


def test_hash_seeds_processes_and_sweeps_make_the_same_bits(pair, tmp_path):
    words = pair.words("--recipe", "paper", "--oracle", "true")
    for seed in ("0", "1"):
        assert finish([*words, "--save_path", str(tmp_path), "--run_name", seed], PYTHONHASHSEED=seed)[0] == 0
    settings = {name.removeprefix("--"): yaml.safe_load(value) for name, value in zip(words[::2], words[1::2])}
    content = {"config": [], "settings": settings, "seeds": [333], "variants": [{}],
               "save_path": str(tmp_path / "swept")}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    assert finish(["sweep", str(tmp_path / "sweep.yaml")], PYTHONHASHSEED="2")[0] == 0
    swept, = (path.parent for path in (tmp_path / "swept").glob("*/config.yaml"))
    first, *others = (bits(RunFolder(path)) for path in (tmp_path / "0", tmp_path / "1", swept))
    assert all(same_state(first, other) for other in others)


def test_random_kills_lose_nothing(pair, tmp_path):
    """Kills at random moments from a process's start, and at random moments after it has recorded an epoch."""
    rng, run = random.Random(0), RunFolder(tmp_path / "runs" / "killed")
    first = pair.words("--max_epoch", "100000", "--save_path", str(run.path.parent), "--run_name", "killed")
    for number in range(KILLS):
        before = len(run.records(run.epochs))
        process = start(["--resume", str(run.path)] if run.checkpoint.exists() else first)
        if number % 2:
            time.sleep(rng.uniform(0, LATEST_KILL))
        else:
            end = time.monotonic() + HANGS
            while len(run.records(run.epochs)) <= before and process.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.3))
        process.kill()
        said = process.communicate()[1]
        assert process.returncode == -signal.SIGKILL, said
    done = checkpoint.load(run.checkpoint)["state"]["epoch"]
    code, said = finish(["--resume", str(run.path), "--max_epoch", str(done + 1)])
    assert code == 0, said
    whole = pair.run("--max_epoch", str(done + 1), save_path=tmp_path / "whole")
    assert same_state(bits(run), bits(whole))


PHASES = ["load_data", "build_method", "save", "environment", "diagnose", "evaluate", "select", "check_finite",
          "score_run", "run_table"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_any_phase_loses_nothing(pair, train_once, tmp_path, monkeypatch, phase, number):
    """phase: the function of main.py after whose last call in the run the signal comes."""
    plain, calls, stop = getattr(main, phase), [], [False]

    def signalled(*arguments, **options):
        result = plain(*arguments, **options)
        calls.append(phase)
        if stop[0] and len(calls) == last:
            os.kill(os.getpid(), number)
            time.sleep(0.01)                              # the handler runs before the next line
        return result

    monkeypatch.setattr(main, phase, signalled)
    words = pair.words("--recipe", "paper", "--save_path", str(tmp_path / "runs"), "--run_name", "run")
    assert main.main([*words[:-1], "counted"]) == 0
    last, stop[0] = len(calls), True
    calls.clear()
    assert main.main(words) == 130
    monkeypatch.setattr(main, phase, plain)
    run = RunFolder(tmp_path / "runs" / "run")
    about = run.read_run()
    assert about.get("status") in ((None,) if not run.checkpoint.exists() else (None, "interrupted", "done", "running"))
    if about.get("status") != "done":
        assert main.main(["--resume", str(run.path)] if run.checkpoint.exists() else words) == 0
    assert run.read_run()["status"] == "done" and same_state(bits(run), bits(train_once("--recipe", "paper")))


def told_in_one_line(code, said):
    """Whether the last words are one line of ours."""
    return code == 2 and "Traceback" not in said and "Error: " in said.strip().splitlines()[-1]


def test_a_full_disk_leaves_the_last_checkpoint(trained, pair, tmp_path):
    run = trained("--recipe", "paper")
    whole = pair.run("--recipe", "paper", "--max_epoch", "3", save_path=tmp_path / "a")
    before, more = run.checkpoint.read_bytes(), ["--resume", str(run.path), "--max_epoch", "3"]
    for limit in (0, 300, len(before) // 2, len(before) - 1):
        code, said = finish(more, limit=limit)
        assert told_in_one_line(code, said), said
        assert run.checkpoint.read_bytes() == before and not list(run.path.glob("*.part*"))
    assert finish(more)[0] == 0 and same_state(bits(run), bits(whole))


@pytest.mark.parametrize("command", ["predict", "tables"])
def test_a_full_disk_leaves_what_a_command_has_made_before(trained, tmp_path, command):
    run, out = trained("--method", "erm"), tmp_path / "out"
    out.mkdir()
    words = ["predict", "--run", str(run.path), "--out", str(out / "map.tif")] if command == "predict" else \
        ["tables", str(run.path), "--out", str(out)]
    assert finish(words)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, said = finish(words, limit=min(map(len, before.values())) // 2)
    assert told_in_one_line(code, said), said
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
