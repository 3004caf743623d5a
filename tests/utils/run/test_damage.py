"""Run folders with damaged files, and a system that refuses: one line that names the file, and nothing lost."""

import json
import os
import resource
import signal
from contextlib import contextmanager

import pytest
import torch

import main
from model.errors import RunFolderError, UserError
from model.methods import method_class
from utils.run import checkpoint, records
from utils.run.folder import RunFolder
from utils.run.lock import LOCK

FILES = ("run.json", "evaluation.json", "config.yaml", "epochs.jsonl", "diagnostics.jsonl")
DAMAGE = {"empty": lambda whole: b"\n", "binary": lambda whole: bytes(range(128, 256)) + b"\n", "truncated":
          lambda whole: whole[:len(whole) // 2].rstrip(b"\n") + b"\n", "list": lambda whole: b"[1]\n",
          "number": lambda whole: b"5\n", "deep": lambda whole: b"[" * 100_000 + b"\n",
          "long number": lambda whole: b'{"epoch": ' + b"9" * 5000 + b"}\n"}
COMMANDS = {"tables": ["tables"], "study": ["study"], "figures": ["figures"], "refit": ["refit"], "transfer":
            ["transfer", "--severity", "2"], "evaluate": ["evaluate", "--run"], "resume": ["--resume"]}
NOT_READ = {("study", "evaluation.json"), ("figures", "diagnostics.jsonl"), ("evaluate", "evaluation.json")}   # slow


def words_of(command, run):
    first, *rest = COMMANDS[command]
    return [first, *rest, str(run.path)] if not command == "transfer" else [first, str(run.path), *rest]


@pytest.mark.slow_but("tables")
@pytest.mark.parametrize("command", COMMANDS)
def test_damaged_files_are_named_and_raise_nothing_else(trained, capsys, caplog, command):
    run = trained("--method", "erm")
    for name in (name for name in FILES if (command, name) not in NOT_READ):
        whole = (run.path / name).read_bytes()
        for damage in DAMAGE.values():
            (run.path / name).write_bytes(damage(whole))
            caplog.clear()
            code = main.main(words_of(command, run))
            said = capsys.readouterr().err + caplog.text
            assert code in (0, 2) and (code == 0 or str(run.path) in said), (name, said)
        (run.path / name).write_bytes(whole)


@pytest.mark.parametrize("name, content, word", [
    ("run.json", {"status": 5}, "'status' must be a text"), ("run.json", {"classes": [1]}, r"'classes'\[0\] must be a"),
    ("run.json", {}, "lacks 'source'"), ("evaluation.json", {"rules": []}, "'rules' is no mapping"),
    ("evaluation.json", {"rules": {"last": {"epoch": "1"}}}, "'epoch' must be a whole number"),
    ("evaluation.json", {"rules": {"last": {"epoch": 1}}}, "'last' lacks 'source_val'"),
    ("evaluation.json", {"rules": {"last": {"epoch": 1, "source_val": {"oa": None}, "shifted_source": {"oa": 1}}}},
     "'oa' must be a number")])
def test_a_record_of_another_shape_is_named_with_what_is_wrong(trained, name, content, word):
    run = trained("--method", "erm")
    (run.path / name).write_text(json.dumps(content))
    with pytest.raises(RunFolderError, match=f"{name} cannot be used: .*{word}.*copy"):
        run.read_run(*records.BEGUN)
        run.read_evaluation()


@pytest.mark.slow
def test_one_damaged_folder_does_not_stop_tables_and_study(trained, tmp_path, capsys, caplog):
    run, other = trained("--method", "erm", "--oracle"), trained("--method", "erm", "--oracle", "--seed", "2")
    run.evaluation.write_text("{")
    run.epochs.write_text("[]\n")
    for command in ("tables", "study"):
        caplog.clear()
        assert main.main([command, str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
        assert f"{run.path} is left out: its records are damaged" in caplog.text and other.path.name not in caplog.text


def contents(run):
    return {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file() and path.name != LOCK}


def lines(*epochs):
    return lambda path: path.write_text("".join(
        line for line in path.read_text().splitlines(keepends=True) if json.loads(line)["epoch"] in epochs))


@pytest.mark.parametrize("damage", [
    lambda run: lines(2)(run.epochs), lambda run: lines(1)(run.epochs), lambda run: run.epochs.unlink(),
    lambda run: run.epochs.write_text(2 * run.epochs.read_text()), lambda run: run.oracle.unlink(),
    lambda run: lines(0, 2)(run.diagnostics)],
    ids=["first", "last", "all", "twice", "oracle", "diagnostics"])
def test_missing_records_are_noticed_on_resume(trained, capsys, damage):
    run = trained("--method", "erm", "--oracle")
    damage(run)
    before = contents(run)
    assert main.main(["--resume", str(run.path), "--max_epoch", "3"]) == 2
    assert "RunFolderError" in (error := capsys.readouterr().err) and "jsonl" in error
    assert contents(run) == before


@contextmanager
def largest_file(size):
    """Files cannot grow beyond this, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(trained, capsys):
    run = trained("--method", "erm")
    before = run.checkpoint.read_bytes()
    with largest_file(16_000):
        assert main.main(["--resume", str(run.path), "--max_epoch", "3"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("SystemRefusedError: ") and "checkpoint.pt" in error and "Make room" in error
    assert run.read_run()["status"] == "failed" and run.checkpoint.read_bytes() == before
    assert not [name for name in os.listdir(run.path) if name.endswith(".part")]
    assert main.train(["--resume", str(run.path)]).read_run()["status"] == "done"


ON_GPU = "on the GPU. Try a smaller --batch_size, --pro_dim or --patch_size, or --precision bf16, or close"


@pytest.mark.parametrize("error, words", [
    (MemoryError(), ". Try a smaller --batch_size or --patch_size, or close"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), ". Try a smaller --batch_size"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), f" {ON_GPU}"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), f" {ON_GPU}")])
def test_out_of_memory_is_one_line_and_the_run_is_failed(pair, tmp_path, monkeypatch, capsys, error, words):
    def fail(*_):
        raise error

    monkeypatch.setattr(method_class("erm"), "update", fail)
    assert main.main(pair.words("--method", "erm", "--save_path", str(tmp_path / "runs"))) == 2
    assert f"SystemRefusedError: There is not enough memory{words}" in capsys.readouterr().err
    run = RunFolder(next((tmp_path / "runs").iterdir()))
    assert run.read_run()["status"] == "failed" and "memory" in run.read_run()["error"]


def test_out_of_memory_later_leaves_the_last_checkpoint(trained, monkeypatch, caplog):
    """And says how to go on."""
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    run = trained("--method", "erm")
    before = run.checkpoint.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(method_class("erm"), "update", fail)
        assert main.main(["--resume", str(run.path), "--max_epoch", "3"]) == 2
    assert run.checkpoint.read_bytes() == before and run.read_run()["status"] == "failed"
    assert f"Epoch 2 is saved. Once this is mended, go on with: python main.py --resume {run.path}" in caplog.text
    assert main.main(["--resume", str(run.path), "--max_epoch", "3"]) == 0 and run.read_run()["status"] == "done"


def test_another_error_of_the_program_is_not_hidden(pair, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(method_class("erm"), "update", fail)
    with pytest.raises(RuntimeError, match="a mistake"):
        main.main(pair.words("--method", "erm", "--save_path", str(tmp_path / "runs")))


def test_a_signal_while_a_checkpoint_is_written_comes_afterwards(pair, tmp_path, monkeypatch):
    plain, before = torch.save, signal.getsignal(signal.SIGTERM)

    def stopped(content, file):
        if content["state"]["epoch"] == 1:
            signal.raise_signal(signal.SIGTERM)
        plain(content, file)

    monkeypatch.setattr(torch, "save", stopped)
    try:
        assert main.main(pair.words("--method", "erm", "--save_path", str(tmp_path / "runs"))) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    run = RunFolder(next((tmp_path / "runs").iterdir()))
    assert run.read_run()["status"] == "interrupted" and checkpoint.load_run(run.checkpoint)["state"]["epoch"] == 1


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../x", "/x", "a\0b", "x" * 300])
def test_a_run_name_that_leaves_its_folder_is_refused(pair, tmp_path, capsys, name):
    assert main.main(pair.words("--method", "erm", "--save_path", str(tmp_path / "runs"), "--run_name", name)) == 2
    assert "ConfigError: run_name" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_a_scene_name_that_leaves_its_folder_is_refused(pair, tmp_path, capsys):
    for name in ("../../x", "..", "a/b"):
        pair.change(pair.target, name=name)
        assert main.main(pair.words("--save_path", str(tmp_path / "runs"))) == 2
        assert "SceneFormatError: A scene cannot be called" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_messages_have_one_line_whatever_they_quote():
    told = main.in_one_line(UserError("first\n  second\n" + 10_000 * "x "))
    assert told.startswith("UserError: first second x x") and len(told) < 1100 and "\n" not in told


def test_figures_of_a_run_without_an_epoch_are_refused(trained, capsys):
    run = trained("--method", "erm")
    run.epochs.write_text("")
    assert main.main(["figures", str(run.path)]) == 2
    assert f"RunFolderError: {run.epochs}" in capsys.readouterr().err
