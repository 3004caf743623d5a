"""Runs of a sweep on this machine: one process at a time in a run folder, several runs at a time."""

import fcntl
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from utils.run import lock
from utils.run.folder import ROOT
from utils.run.lock import LOCK, locked
from utils.sweep import sweep
from utils.sweep.process import Run, missing_there, train


def test_another_machine_says_what_it_does_not_see(tmp_path):
    there, mark = str(tmp_path), str(tmp_path / "mark")
    assert "--save_path" in missing_there(str(ROOT / "main.py"), there, mark)
    Path(mark).touch()
    assert missing_there(str(ROOT / "main.py"), there, mark) is None
    assert "the program" in missing_there(str(tmp_path / "main.py"), there, mark)
    assert "started in" in missing_there(str(ROOT / "main.py"), str(tmp_path / "gone"), mark)


PROGRAM = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[-1])
(folder / "begun").write_text(" ".join(sys.argv[1:]))
while not (folder / "go").exists():
    time.sleep(0.02)
(folder / "run.json").write_text('{"status": "done"}')
"""


@pytest.fixture
def program(tmp_path):
    """A stand-in for main.py that ends when told, with the guard beside it."""
    (tmp_path / "utils").symlink_to(ROOT / "utils")
    (tmp_path / "main.py").write_text(PROGRAM)
    return str(tmp_path / "main.py")


def wait_for(condition, seconds: float = 600.0) -> bool:
    """Whether the condition came true.  The limit only ends a test that hangs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.02)
    return condition()


def is_free(folder: Path) -> bool:
    with open(folder / LOCK) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_run_waits_while_another_process_has_its_folder(program, tmp_path, monkeypatch):
    run = Run("name", str(tmp_path / "run"), [str(tmp_path / "run")], False)
    started, tries = threading.Thread(target=train, args=(run, program, {})), []
    monkeypatch.setattr(lock, "time", SimpleNamespace(sleep=lambda _: tries.append(1) or time.sleep(0.01)))
    with locked(Path(run.folder)):
        started.start()
        assert wait_for(lambda: len(tries) > 5)
        assert not Path(run.folder, "begun").exists()
        Path(run.folder, "run.json").write_text('{"status": "done"}')      # the other process finishes it
    started.join()
    assert not Path(run.folder, "begun").exists()


def test_a_run_goes_on_from_its_checkpoint_on_the_gpu_that_is_named(program, tmp_path):
    folder = tmp_path / "run"
    run = Run("name", str(folder), ["--seed", "3"], True)
    assert run.arguments() == ["train", "--seed", "3", "--run_name", "name"]
    assert run.arguments(gpu=0) == ["train", "--seed", "3", "--run_name", "name", "--gpu", "0"]
    folder.mkdir()
    (folder / "checkpoint.pt").touch()
    assert run.arguments(gpu=-1) == ["train", "--resume", str(folder), "--gpu", "-1"]
    (folder / "go").touch()
    assert train(run, program, {}) == 0 and (folder / "begun").read_text() == f"train --resume {folder}"
    (folder / "begun").unlink()
    assert train(run, program, {}) == 0 and not (folder / "begun").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the lock alone keeps two processes apart")
def test_the_training_process_ends_with_the_one_that_asked_for_it(program, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoint.pt").touch()
    run = Run("name", str(folder), [], False)
    script = f"from utils.sweep.process import Run, train; train({run!r}, {program!r}, {{}})"
    asking = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    assert wait_for((folder / "begun").exists) and not is_free(folder)
    asking.send_signal(signal.SIGKILL)
    asking.wait()
    assert wait_for(lambda: is_free(folder)) and not (folder / "run.json").exists()


@pytest.fixture
def several(program, tmp_path, monkeypatch):
    """Four runs of the stand-in, as a sweep runs them two at a time."""
    monkeypatch.setattr(sweep, "PROGRAM", program)
    runs = [Run(f"run{i}", str(tmp_path / f"run{i}"), [], False) for i in range(4)]
    for run in runs:
        Path(run.folder).mkdir()
        Path(run.folder, "checkpoint.pt").touch()
    return runs, sweep._on_this_machine(runs, 2, 3, tqdm(disable=True))


def test_so_many_runs_go_at_a_time(several):
    runs, ended = several
    begun = [Path(run.folder, "begun") for run in runs]
    done = []
    working = threading.Thread(target=lambda: done.extend(ended))
    working.start()
    assert wait_for(lambda: begun[0].exists() and begun[1].exists())
    time.sleep(1.0)
    assert not begun[2].exists() and not begun[3].exists()
    Path(runs[1].folder, "go").touch()
    assert wait_for(begun[2].exists)
    for run in runs:
        Path(run.folder, "go").touch()
    working.join()
    assert {run.name for run, _ in done} == {run.name for run in runs} and not any(failure for _, failure in done)
    assert done[0][0] == runs[1]


def test_an_interrupted_sweep_ends_all_its_runs(several):
    runs, ended = several
    Path(runs[0].folder, "go").touch()
    assert next(ended) == (runs[0], None)
    assert wait_for(Path(runs[1].folder, "begun").exists)
    ended.close()
    assert all(is_free(Path(run.folder)) for run in runs[:2]) and not Path(runs[3].folder, LOCK).exists()
    assert not any(Path(run.folder, "run.json").exists() for run in runs[1:])
