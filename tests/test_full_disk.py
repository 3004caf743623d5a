"""A full disk, in every command that writes: one line, the old files as they were, nothing half written."""

import ctypes
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from multiprocessing import Process
from pathlib import Path

import pytest

import main
from at_work import AGAIN, Place, bits, contents, make_old, parts, told_in_one_line, write_sweep_file
from conftest import same_state
from datasets.simulator import simulate
from forked import finish
from utils.bench import bench
from utils.commands.registry import COMMANDS
from utils.run.folder import RunFolder, find_runs

pytestmark = pytest.mark.slow

ROOT = Path(main.__file__).parent
WRITE_NOTHING = {"evaluate", "parity"}
SMALL_DISK = 2 ** 25       # bytes
PAGE = 4096                # bytes; a file system in memory hands out no less
_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000        # linux/sched.h: CLONE_NEWUSER, CLONE_NEWNS


def mount_small_disk(folder: Path) -> None:
    """Put a small file system over a folder, for this process alone, which needs no rights for it where the system lets
    users do so.  Raises OSError where it does not."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()

    def done(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    done(libc.unshare(_NEW_USER | _NEW_MOUNTS))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        Path("/proc/self", name).write_text(text)
    done(libc.mount(b"none", bytes(folder), b"tmpfs", 0, f"size={SMALL_DISK}".encode()))


def fill(folder: Path, spare: int) -> None:
    """Fill the file system below a folder up to its last pages."""
    with open(folder / "filler", "wb", 0) as file:
        try:
            while file.write(bytes(PAGE)):
                pass
        except OSError:
            file.truncate(file.tell() - spare * PAGE)


def on_a_full_disk(folder: Path, spare: int) -> None:
    """Put a small disk in the place of a folder, its content on it, with so many pages to spare; at the end of the
    process its content as it is then goes to NAME-after."""
    shutil.copytree(folder, content := folder.with_name(f"{folder.name}-before"))
    mount_small_disk(folder)
    shutil.copytree(content, folder, dirs_exist_ok=True)
    fill(folder, spare)
    plain, here = main.main, os.getpid()

    def and_keep(words: list[str]) -> int:
        try:
            return plain(words)
        finally:
            if os.getpid() == here:                # not a sweep's training process
                after = folder.with_name(f"{folder.name}-after")
                shutil.copytree(folder, after, ignore=shutil.ignore_patterns("filler"))

    main.main = and_keep


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory) -> Callable[[list[str], Path, int], tuple[int, str]]:
    """small_disk(words, folder, spare): exit code and words of a command whose folder is on a disk with `spare` bytes
    left; the folder is as it was on that disk then."""
    probe = Process(target=mount_small_disk, args=(tmp_path_factory.mktemp("disk"),))
    probe.start()
    probe.join()
    if probe.exitcode:
        pytest.skip("this system lets users mount nothing, not even for themselves alone (unshare -rm)")

    def run(words: list[str], folder: Path, spare: int) -> tuple[int, str]:
        outcome = finish(words, prepare=partial(on_a_full_disk, folder, spare // PAGE))
        shutil.rmtree(folder)
        shutil.rmtree(folder.with_name(f"{folder.name}-before"))
        folder.with_name(f"{folder.name}-after").rename(folder)
        return outcome
    return run


def small_file(words: list[str], folder: Path, spare: int) -> tuple[int, str]:
    """The same where no file may be longer than `spare` bytes."""
    return finish(words, limit=spare)


@pytest.fixture(params=["limit", "disk"])
def full(request):
    return small_file if request.param == "limit" else request.getfixturevalue("small_disk")


def test_every_command_is_tried_that_writes():
    again = {Place(Path(), RunFolder(""), RunFolder("")).words(command)[0] for command in AGAIN}
    assert again | {"train", "sweep", "paper", "transfer", "refit", "bench"} | WRITE_NOTHING == COMMANDS.keys()


@pytest.mark.parametrize("command", AGAIN)
def test_files_that_were_there_stay(train_once, tmp_path, full, command):
    place = Place.made(tmp_path / "place", train_once)
    before, words = contents(place.folder), place.words(command)
    code, said = finish(words)
    assert code == 0, said
    made = contents(place.folder)
    old = make_old(before, made)
    changed = [path for path in made if made[path] != before.get(path)]
    code, said = full(words, place.folder, max(len(made[path]) for path in changed) // 2)
    assert told_in_one_line(code, said), said
    now = contents(place.folder)
    assert now.keys() == old.keys() and all(now[path] in (old[path], made[path]) for path in now)
    assert any(now[path] != made[path] for path in changed)


def measured_before() -> None:
    """Have `bench` take a measurement that is there already."""
    bench.speed = lambda *_: json.loads((ROOT / "figure" / "bench" / "speed.json").read_text())


def test_a_measurement_leaves_the_last_one(tmp_path):
    (tmp_path / "speed.json").write_bytes(b"old")
    words = ["bench", "--small", "--gpu", "-1", "--out", str(tmp_path)]
    code, said = finish(words, limit=1000, prepare=measured_before)
    assert told_in_one_line(code, said), said
    assert contents(tmp_path) == {tmp_path / "speed.json": b"old"}
    assert finish(words, prepare=measured_before)[0] == 0 and json.loads((tmp_path / "speed.json").read_text())


@pytest.mark.parametrize("command", ["transfer", "refit"])
def test_rescoring_leaves_the_run_and_is_made_again(train_once, other_target, tmp_path, full, command):
    place = Place.made(tmp_path / "place", train_once)
    words = [command, str(place.run.path), *(["--target_name", other_target] if command == "transfer" else [])]
    before = contents(place.run.path)
    for part in (0, 0.5):                         # of the checkpoint, the largest file
        code, said = full(words, place.folder, int(part * len(before[place.run.checkpoint])))
        assert told_in_one_line(code, said), said
        assert contents(place.run.path) == before and not parts(place.folder)
    code, said = finish(words)
    assert code == 0, said
    (made,) = (run for run in find_runs([place.folder]) if "derived_by" in run.read_run())
    shutil.move(made.path, whole := tmp_path / "first")
    assert finish(words)[0] == 0 and same_state(bits(made), bits(RunFolder(whole)))


def test_a_run_that_goes_on_leaves_the_last_checkpoint(trained, pair, tmp_path, full):
    run = trained("--recipe", "paper")
    before, more = run.checkpoint.read_bytes(), ["--resume", str(run.path), "--max_epoch", "3"]
    for spare in (0, 300, len(before) // 2, len(before) - 1):
        code, said = full(more, run.path, spare)
        assert told_in_one_line(code, said), said
        assert run.checkpoint.read_bytes() == before and not parts(run.path)
    assert finish(more)[0] == 0
    assert same_state(bits(run), bits(pair.run("--recipe", "paper", "--max_epoch", "3", save_path=tmp_path / "a")))


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_new_run_is_made_when_there_is_room_again(pair, train_once, tmp_path, full, command):
    words, runs = pair.words("--recipe", "paper"), tmp_path / "runs"
    runs.mkdir()
    if command == "sweep":
        write_sweep_file(tmp_path / "sweep.yaml", words, runs, seeds=[333])
        words = ["sweep", str(tmp_path / "sweep.yaml")]
    else:
        words += ["--save_path", str(runs)]
    whole = train_once("--recipe", "paper")
    for spare in (0, 8192, whole.checkpoint.stat().st_size - PAGE):
        code, said = full(words, runs, spare)
        assert "Traceback" not in said and not parts(runs), said
        assert told_in_one_line(code, said) or (code == 1 and "failed: " in said), said
    (run,) = find_runs([runs])
    code, said = finish(["--resume", str(run.path)] if command == "train" and run.checkpoint.exists() else words)
    assert code == 0, said
    assert len(find_runs([runs])) == 1 and same_state(bits(run), bits(whole))


def small_scenes() -> None:
    simulate.SHAPE = (60, 100)


def test_a_simulated_pair_is_written_whole_or_not_at_all(tmp_path):
    words = ["--source_name", "SimSource", "--target_name", "null", "--data_path", str(tmp_path / "data"),
             "--save_path", str(tmp_path / "runs")]
    code, said = finish(words, limit=1000, prepare=small_scenes)
    assert told_in_one_line(code, said), said
    assert not any((tmp_path / "data").iterdir()) and not (tmp_path / "runs").exists()
