"""Files replaced atomically: nothing half written stays, no link is followed, no signal comes in between."""

import errno
import fcntl
import os
import signal
import stat

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from datasets.writers import write_mat_v5, write_mat_v73
from model.files import PART, is_plain_name, remove_parts, replacing, signals_later
from utils.figures import sheet
from utils.run import checkpoint
from utils.text import write_text

WRITERS = {"text": lambda path: write_text(path, "new"), "figure": lambda path: sheet.save(Figure(), path),
           "checkpoint": lambda path: checkpoint.save(path, {"x": torch.zeros(2)}),
           "mat v5": lambda path: write_mat_v5(path, {"x": np.zeros(2)}),
           "mat v7.3": lambda path: write_mat_v73(path, {"x": np.zeros(2)})}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_link_under_the_name_that_a_part_once_had_is_not_followed(tmp_path, write):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for name in ("x.png.part", "x.png"):
        (tmp_path / name).symlink_to(precious)
    write(tmp_path / "x.png")
    assert precious.read_text() == "precious" and (tmp_path / "x.png").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "x.png", "x.png.part"]


def test_a_part_has_a_name_of_its_own_and_the_rights_of_any_file(tmp_path):
    with replacing(tmp_path / "a") as first, replacing(tmp_path / "a") as second:
        assert first.name != second.name and first.name.endswith(PART)
        first.write(b"1")
        second.write(b"2")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").read_bytes() == b"1"                     # the one that ends last
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(type(error)) as raised, replacing(path) as file:
        file.write(b"ne")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]
    assert not isinstance(error, OSError) or raised.value.filename == str(path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_the_file_is_there(tmp_path, number):
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), signals_later(), replacing(tmp_path / "a") as file:
            signal.raise_signal(number)
            file.write(b"all of it")
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert (tmp_path / "a").read_bytes() == b"all of it" and os.listdir(tmp_path) == ["a"]


def half_written(folder, digit="0"):
    """What a killed process leaves."""
    (path := folder / f".{16 * digit}{PART}").write_bytes(b"half")
    return path


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_what_a_killed_process_left_in_a_folder_goes_when_the_next_one_writes_there(tmp_path, write):
    half_written(tmp_path)
    write(tmp_path / "x")
    assert os.listdir(tmp_path) == ["x"]


def test_parts_of_a_killed_process_are_removed_and_nothing_else(tmp_path):
    half_written(tmp_path), half_written(tmp_path, "1").rename(tmp_path / f"b{PART}")
    (tmp_path / "a").touch()
    (link := tmp_path / f".{16 * '2'}{PART}").symlink_to(tmp_path / "a")
    os.mkfifo(queue := tmp_path / f".{16 * '3'}{PART}")
    with replacing(tmp_path / "c") as file:                        # nor what is being written
        remove_parts(tmp_path)
        own = os.path.basename(file.name)
        assert sorted(os.listdir(tmp_path)) == sorted([own, link.name, queue.name, "a", f"b{PART}"])
    remove_parts(tmp_path / "nowhere")


def test_a_part_that_another_process_takes_for_a_killed_ones_is_made_again(tmp_path, monkeypatch):
    lock, met = fcntl.flock, []

    def late(file, operation):
        """The first time another process is faster, and has removed the file; the second time it is about to."""
        met.append(file.name)
        if len(met) == 1:
            os.unlink(file.name)
        if len(met) == 2:
            raise BlockingIOError(errno.EAGAIN, "held")
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with replacing(tmp_path / "a") as file:
        file.write(b"all of it")
    assert len(set(met)) == 3 and (tmp_path / "a").read_bytes() == b"all of it"


def test_without_locks_parts_stay_and_files_are_written_all_the_same(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    left = half_written(tmp_path)
    write_text(tmp_path / "a", "new")
    assert sorted(os.listdir(tmp_path)) == [left.name, "a"] and (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("name, plain", [
    ("Houston13", True), ("Ground truth µ.2", True), ("", False), (".", False), ("..", False), ("a/b", False),
    ("../../x", False), ("/x", False), ("a\\b", False), ("a\0b", False), ("a\nb", False), ("x" * 300, False)])
def test_names_that_leave_their_folder_are_told_apart(name, plain):
    assert is_plain_name(name) == plain
