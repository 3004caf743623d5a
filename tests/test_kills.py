"""SIGKILL at random moments: files are old or new, never half written; the same command again makes the same bits."""

import itertools
import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from at_work import Place, bits, contents, make_old, parts, write_sweep_file
from conftest import same_state
from forked import HANGS, Started, finish
from utils.run import checkpoint
from utils.run.folder import RunFolder, find_runs

# With those of the other commands there are 31 kills at random moments, and 12 at chosen ones.
TRAINING_KILLS = 8
SWEEP_KILLS = 3            # with each number of jobs
LATEST_KILL = 0.7          # seconds after a process has started: data, resume, first epochs

pytestmark = pytest.mark.slow


def killed(words: list[str], rng: random.Random, latest: float, group: bool = False) -> bool:
    """Kill the command at a random moment, `latest` seconds after its start at the latest; False where it had ended."""
    process = Started(words)
    process.process.join(rng.uniform(0, latest))
    process.kill(group)
    code, said = process.end()
    assert code in (0, -signal.SIGKILL) and "Traceback" not in said, said
    return code != 0


def kill_at_replacing(number: int) -> None:
    """Have this process killed when for the number-th time a whole new file is about to take an old one's place."""
    plain, calls = os.replace, itertools.count(1)

    def replace(*arguments, **options):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(*arguments, **options)

    os.replace = replace


def seconds(words: list[str]) -> float:
    """How long the command takes undisturbed."""
    started = time.monotonic()
    code, said = finish(words)
    assert code == 0, said
    return time.monotonic() - started


def test_a_killed_training_run_loses_nothing(pair, tmp_path):
    """Kills at random moments from a process's start, and at random moments after it has recorded an epoch."""
    rng, run = random.Random(0), RunFolder(tmp_path / "runs" / "killed")
    first = pair.words("--max_epoch", "100000", "--save_path", str(run.path.parent), "--run_name", "killed")
    for number in range(TRAINING_KILLS):
        before = len(run.records(run.epochs))
        words = ["--resume", str(run.path)] if run.checkpoint.exists() else first
        if number % 2:
            assert killed(words, rng, LATEST_KILL)
            continue
        process, end = Started(words), time.monotonic() + HANGS
        while len(run.records(run.epochs)) <= before and process.process.is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        code, said = process.end()
        assert code == -signal.SIGKILL, said
    done = checkpoint.load(run.checkpoint)["state"]["epoch"]
    code, said = finish(["--resume", str(run.path), "--max_epoch", str(done + 1)])
    assert code == 0, said
    assert not parts(tmp_path)
    assert same_state(bits(run), bits(pair.run("--max_epoch", str(done + 1), save_path=tmp_path / "whole")))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_sweep_goes_on_where_it_was(pair, tmp_path, jobs):
    """Every other kill strikes its training processes as well."""
    file, rng, kills = tmp_path / "sweep.yaml", random.Random(jobs), 0
    write_sweep_file(file, pair.words(), tmp_path / "runs", variants=[{"method": "erm"}, {"recipe": "paper"}])
    words = ["sweep", str(file), "--jobs", str(jobs)]
    latest = seconds([*words, "--save_path", str(tmp_path / "whole")])
    while kills < SWEEP_KILLS:
        kills += killed(words, rng, latest, group=bool(kills % 2))
        if [run.read_run().get("status") for run in find_runs([tmp_path / "runs"])] == ["done", "done"]:
            shutil.rmtree(tmp_path / "runs")
            latest *= 0.9
    code, said = finish(words)
    assert code == 0 and not parts(tmp_path), said
    made, whole = (find_runs([tmp_path / name]) for name in ("runs", "whole"))
    assert len(made) == 2 and all(same_state(bits(one), bits(other)) for one, other in zip(made, whole))


@pytest.mark.parametrize("command, kills, replaced", [
    ("predict", 5, 2), ("figures", 3, 3), ("tables", 5, 5), ("study", 0, 6), ("gallery", 0, 1),
    ("export", 0, 1), ("compare", 0, 2), ("prepare", 0, 1)])
def test_a_killed_command_leaves_every_file_old_or_new(train_once, tmp_path, command, kills, replaced):
    place, rng = Place.made(tmp_path, train_once), random.Random(command)
    before, words = contents(tmp_path), place.words(command)
    latest = seconds(words)
    made = contents(tmp_path)
    old = make_old(before, made)

    def check() -> None:
        left, now = set(parts(tmp_path)), contents(tmp_path)
        assert now.keys() - left == old.keys() and all(now[path] in (old[path], made[path]) for path in old)

    while kills:
        kills -= killed(words, rng, latest)
        latest *= 0.9
        check()
    assert finish(words, prepare=partial(kill_at_replacing, replaced))[0] == -signal.SIGKILL and parts(tmp_path)
    check()
    code, said = finish(words)
    assert code == 0 and contents(tmp_path) == made, said


@pytest.mark.parametrize("command", ["transfer", "refit"])
def test_a_killed_rescoring_is_made_again(train_once, other_target, tmp_path, command):
    place, rng = Place.made(tmp_path / "place", train_once), random.Random(command)
    before = contents(place.run.path)
    words = [command, str(place.run.path), *(["--target_name", other_target] if command == "transfer" else [])]
    latest = seconds(words)

    def derived() -> Path:
        return next(run.path for run in find_runs([place.folder / "runs"]) if "derived_by" in run.read_run())

    whole = derived().rename(tmp_path / "whole")
    assert killed(words, rng, latest / 2) and killed(words, rng, latest / 2)
    assert finish(words, prepare=partial(kill_at_replacing, 5))[0] == -signal.SIGKILL
    assert parts(derived()) and contents(place.run.path) == before
    code, said = finish(words)
    assert code == 0 and not parts(tmp_path) and contents(place.run.path) == before, said
    assert same_state(bits(RunFolder(derived())), bits(RunFolder(whole)))
