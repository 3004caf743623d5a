"""One process at a time in a run folder, whichever commands meet there."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import main
from at_work import write_sweep_file
from model.errors import RunFolderError
from utils.run import checkpoint
from utils.run.folder import RunFolder
from utils.run.lock import INHERITED, LOCK, locked
from utils.sweep import sweep

ROOT = Path(main.__file__).parent
HOLD = "import sys; from pathlib import Path; from utils.run.lock import locked\n" \
       "with locked(Path(sys.argv[1]), wait=False): print('held', flush=True); sys.stdin.read()"


def held_by_another(folder, **options):
    """A process that holds a folder's lock until its input ends."""
    return subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK}


@pytest.mark.parametrize("words", [
    lambda run, other: ["--resume", str(run.path), "--max_epoch", "3"],
    lambda run, other: ["figures", str(run.path)]], ids=["resume", "figures"])
def test_a_second_process_is_told_at_once_and_changes_nothing(trained, other_target, capsys, words):
    run = trained("--method", "erm")
    before = contents(run.path)
    with RunFolder(run.path):                     # another open file, as another process would have it
        assert main.main(words(run, other_target)) == 2
    error = capsys.readouterr().err
    assert "RunFolderError: Another process works in" in error and str(run.path) in error
    assert contents(run.path) == before


@pytest.mark.slow
@pytest.mark.parametrize("words", [["refit"], ["transfer", "--target_name"]], ids=["refit", "transfer"])
def test_two_processes_do_not_derive_the_same_run(trained, other_target, caplog, capsys, words):
    run = trained("--method", "erm")
    words = [words[0], str(run.path), *words[1:], *([other_target] if words[1:] else [])]
    assert main.main(words) == 0
    made = Path(capsys.readouterr().out.split()[-1])
    (made / "run.json").write_text((made / "run.json").read_text().replace('"done"', '"running"'))
    before = contents(made)
    with RunFolder(made):
        assert main.main(words) == 2
    assert "Another process works in" in caplog.text and contents(made) == before
    assert main.main(words) == 0


@pytest.mark.slow
@pytest.mark.parametrize("command, middle", [
    ("train", "main.fit"), ("resume", "main.fit"), ("figures", "utils.figures.sheet.save"),
    ("transfer", "utils.trained.rescore.score_run"), ("refit", "utils.trained.rescore.score_run"),
    ("sweep", "utils.sweep.process._wait")])
def test_every_command_that_writes_in_a_run_folder_is_alone_there(trained, pair, other_target, tmp_path, monkeypatch,
                                                                  command, middle):
    """With the tests above, every pair of commands: whichever is there first, holds what the second one asks for."""
    if command == "sweep":
        write_sweep_file(tmp_path / "sweep.yaml", pair.words("--method", "erm"), tmp_path / "runs")
        words = ["sweep", str(tmp_path / "sweep.yaml")]
        (tmp_path / "main.py").touch()                     # a stand-in for the training process
        (tmp_path / "utils").symlink_to(ROOT / "utils")
        monkeypatch.setattr(sweep, "PROGRAM", str(tmp_path / "main.py"))
    elif command == "train":
        words = pair.words("--method", "erm", "--save_path", str(tmp_path / "runs"))
    else:
        run = str(trained("--method", "erm").path)
        words = {"resume": ["--resume", run, "--max_epoch", "3"], "figures": ["figures", run], "refit": ["refit", run],
                 "transfer": ["transfer", run, "--target_name", other_target]}[command]
    module, _, name = middle.rpartition(".")
    plain, met = getattr(import_module(module), name), []

    def meet(*arguments, **options):
        for path in (tmp_path / "runs").glob(f"*/{LOCK}"):
            try:
                with RunFolder(path.parent):
                    pass
            except RunFolderError as error:
                met.append(str(error))
        return plain(*arguments, **options)

    monkeypatch.setattr(f"{module}.{name}", meet)
    assert main.main(words) == 0
    assert met and all("Another process works in" in told for told in met)


def test_two_new_runs_of_one_name_do_not_mix(pair, tmp_path, capsys):
    words = pair.words("--method", "erm", "--run_name", "x", "--save_path", str(tmp_path))
    with RunFolder(tmp_path / "x"):
        assert main.main(words) == 2
    assert "Another process works in" in capsys.readouterr().err and not (tmp_path / "x" / "config.yaml").exists()
    assert main.main(words) == 0


def test_the_lock_goes_with_its_process(tmp_path):
    other = held_by_another(tmp_path)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(RunFolderError, match="Another process"):
        RunFolder(tmp_path).hold()
    other.kill()
    other.communicate()
    with RunFolder(tmp_path):
        pass


def test_a_child_shares_the_lock_that_it_was_given_and_no_other(tmp_path):
    folder, other = tmp_path / "a", tmp_path / "b"
    with locked(folder) as lock, locked(other):
        given = {"pass_fds": [lock.fileno()], "env": {**os.environ, INHERITED: str(lock.fileno())}}
        for place, options, code in ((folder, given, 0), (other, given, 1), (folder, {}, 1),
                                     (folder, {"env": {**os.environ, INHERITED: "9" * 30}}, 1)):
            child = held_by_another(place, **options)
            assert "BlockingIOError" in child.communicate("")[1] or code == 0
            assert child.returncode == code


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError), locked(tmp_path / "run"):
        pass
    with pytest.raises(RunFolderError, match="lock is a link"), RunFolder(tmp_path / "run"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_records_without_a_checkpoint_are_never_mixed_with_a_new_run(trained, pair, capsys):
    run = trained("--method", "erm")
    words = ["--config", str(run.config), "--save_path", str(run.path.parent), "--run_name", run.path.name]
    run.checkpoint.unlink()
    before = contents(run.path)
    assert main.main(words) == 2 and "is there already and done" in capsys.readouterr().err
    assert contents(run.path) == before
    run.update_run(status="running")
    assert main.main(words) == 0                                    # nothing to go on from: it starts anew
    assert [record["epoch"] for record in run.records(run.epochs)] == [1, 2]


def test_what_a_killed_process_left_half_written_goes_on_resume(trained):
    run = trained("--method", "erm")
    (run.path / ".0123456789abcdef.part").write_bytes(b"half")
    main.train(["--resume", str(run.path), "--max_epoch", "3"])
    assert not list(run.path.glob(".*.part")) and checkpoint.load_run(run.checkpoint)["state"]["epoch"] == 3


@pytest.mark.parametrize("name", ["validators.jsonl", "oracle.jsonl", "figures", "run.json", "tensorboard"])
def test_a_run_folder_with_links_is_not_written_through(trained, tmp_path, capsys, name):
    """Records were appended, and figures written, wherever a stranger's folder pointed."""
    run = trained("--method", "erm")
    outside = tmp_path / "outside"
    outside.mkdir() if name in ("figures", "tensorboard") else outside.write_text("mine")
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to(outside)
    for words in (["--resume", str(run.path), "--max_epoch", "3"], ["figures", str(run.path)]):
        assert main.main(words) == 2
        assert f"RunFolderError: {run.path / name} is" in capsys.readouterr().err or name == "run.json"
    assert (list(outside.iterdir()) == []) if outside.is_dir() else outside.read_text() == "mine"
