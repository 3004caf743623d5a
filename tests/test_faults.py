"""Signals at any moment lose nothing, and every process makes the same bits.  See test_kills.py, test_full_disk.py."""

import itertools
import os
import signal
import subprocess
import sys
import time
from functools import partial
from importlib import import_module

import pytest

import main
from at_work import Place, bits, contents, make_old, parts, write_sweep_file
from conftest import same_state, unheard
from forked import finish
from utils.run.folder import RunFolder, find_runs

SIGNALS = [signal.SIGTERM, signal.SIGINT]

pytestmark = pytest.mark.slow


def test_hash_seeds_processes_and_sweeps_make_the_same_bits(pair, train_once, tmp_path):
    """In this process, in one that is started with another hash seed (drawn when Python starts), and in a sweep's."""
    words, file = pair.words("--recipe", "paper", "--oracle", "true"), tmp_path / "sweep.yaml"
    write_sweep_file(file, words, tmp_path / "swept", seeds=[333])
    subprocess.run([sys.executable, main.__file__, *words, "--save_path", str(tmp_path), "--run_name", "alone"],
                   check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": "1"})
    assert finish(["sweep", str(file)])[0] == 0
    (swept,) = find_runs([tmp_path / "swept"])
    here = bits(train_once("--recipe", "paper", "--oracle", "true"))
    assert all(same_state(here, bits(run)) for run in (RunFolder(tmp_path / "alone"), swept))


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_while_the_program_is_loaded_ends_it_without_a_word(tmp_path, number):
    (tmp_path / "tqdm.py").write_text(f"import os, time\nos.kill(os.getpid(), {number.value})\ntime.sleep(60)\n")
    ended = subprocess.run([sys.executable, main.__file__], capture_output=True,
                           env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (ended.returncode, ended.stdout, ended.stderr) == (-number, b"", b"")


PHASES = ["load_data", "build_method", "save", "environment", "diagnose", "evaluate", "select", "check_finite",
          "score_run", "run_table"]


@pytest.fixture(scope="module")
def calls(shared_pair, tmp_path_factory):
    """How often training calls the function of each phase."""
    found = dict.fromkeys(PHASES, 0)

    def counted(phase, plain):
        def call(*arguments, **options):
            found[phase] += 1
            return plain(*arguments, **options)
        return call

    with pytest.MonkeyPatch.context() as patch, unheard():
        for phase in PHASES:
            patch.setattr(main, phase, counted(phase, getattr(main, phase)))
        shared_pair.run("--recipe", "paper", save_path=tmp_path_factory.mktemp("counted"))
    return found


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_any_phase_of_training_loses_nothing(pair, train_once, tmp_path, monkeypatch, calls, phase, number):
    """phase: the function of main.py after whose last call in the run the signal comes."""
    plain, left = getattr(main, phase), itertools.count(calls[phase] - 1, -1)

    def signalled(*arguments, **options):
        result = plain(*arguments, **options)
        if next(left) == 0:
            os.kill(os.getpid(), number)
            time.sleep(0.01)                              # the handler runs before the next line
        return result

    words = pair.words("--recipe", "paper", "--save_path", str(tmp_path / "runs"), "--run_name", "run")
    with monkeypatch.context() as patch:
        patch.setattr(main, phase, signalled)
        assert main.main(words) == 130
    run = RunFolder(tmp_path / "runs" / "run")
    about = run.read_run()
    assert about.get("status") in ((None,) if not run.checkpoint.exists() else (None, "interrupted", "done", "running"))
    if about.get("status") != "done":
        assert main.main(["--resume", str(run.path)] if run.checkpoint.exists() else words) == 0
    assert run.read_run()["status"] == "done" and same_state(bits(run), bits(train_once("--recipe", "paper")))


PHASES_OF = {
    "predict": ["utils.commands.apply.parse_command", "utils.commands.apply.load_run", "utils.commands.apply.map_scene",
                "utils.commands.apply.write_map", "utils.figures.scenes.plot_maps", "utils.figures.sheet.save"],
    "figures": ["utils.commands.results.finished_runs", "utils.figures.of_run.load_run",
                "utils.figures.of_run.map_scene", "utils.figures.curves.plot_losses", "utils.figures.sheet.save"],
    "tables": ["utils.tables.collect.collect", "utils.tables.layouts.make", "utils.commands.results.write_text",
               "utils.commands.results.insert_table"]}


def signal_after(place: str, number: signal.Signals) -> None:
    """Have this process given a signal when the function MODULE.NAME has been called for the first time."""
    module, _, name = place.rpartition(".")
    plain, calls = getattr(import_module(module), name), itertools.count()

    def signalled(*arguments, **options):
        result = plain(*arguments, **options)
        if next(calls) == 0:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        return result

    setattr(import_module(module), name, signalled)


def interrupted(words: list[str], place: str, number: signal.Signals) -> str:
    """What the command says when it is given a signal there, and ends."""
    code, said = finish(words, prepare=partial(signal_after, place, number))
    assert code == 130 and "Traceback" not in said and "Error" not in said, (place, said)
    return said


@pytest.mark.parametrize("command", PHASES_OF)
def test_a_signal_in_any_phase_of_a_command_leaves_every_file_old_or_new(train_once, tmp_path, command):
    place = Place.made(tmp_path, train_once)
    before, words = contents(tmp_path), place.words(command)
    assert finish(words)[0] == 0
    made = contents(tmp_path)
    for phase, number in zip(PHASES_OF[command], itertools.cycle(SIGNALS)):
        old = make_old(before, made)
        interrupted(words, phase, number)
        now = contents(tmp_path)
        assert now.keys() == old.keys() and all(now[path] in (old[path], made[path]) for path in now), phase
    assert finish(words)[0] == 0 and contents(tmp_path) == made


def test_a_signal_in_any_phase_of_a_sweep_lets_it_go_on(pair, train_once, tmp_path):
    file, runs = tmp_path / "sweep.yaml", tmp_path / "runs"
    write_sweep_file(file, pair.words(), runs, seeds=[333], variants=[{"recipe": "paper"}, {"method": "erm"}])
    phases = ["sweep.sweep_runs", "sweep.check_made", "jobs.tqdm", "sweep.write_plan", "process.locked",
              "process._last_line"]
    for phase, number in zip(phases, itertools.cycle(SIGNALS)):
        words = ["sweep", str(file), "--jobs", "2" if phase.startswith("jobs.") else "1"]
        said = interrupted(words, f"utils.sweep.{phase}", number)
        assert ("Interrupted; what was under way is saved." in said) == phase.startswith("process."), phase
        assert not parts(tmp_path)
    code, said = finish(["sweep", str(file), "--jobs", "1"])
    assert code == 0, said
    made = {run.read_config().method: bits(run) for run in find_runs([runs])}
    whole = {"s2amsnet": train_once("--recipe", "paper"), "erm": train_once("--method", "erm")}
    assert same_state(made, {method: bits(run) for method, run in whole.items()})
