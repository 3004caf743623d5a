"""Runs that were broken off: nothing is lost, and what cannot be gone on with is refused."""

import json
import signal
import time

import pytest
import torch
import yaml

import main
from at_work import bits
from conftest import same_state
from datasets.writers import write_mat_v5
from forked import Started
from model.errors import CheckpointError, NonFiniteLossError
from model.methods import method_class
from utils.run import checkpoint
from utils.run.selection import RULES

RULE_NAMES = {rule.name for rule in RULES}


def weights(run):
    return checkpoint.load(run.checkpoint)["method"]["networks"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["released", "paper"])
def test_going_on_after_an_interruption_is_bit_identical(pair, tmp_path, monkeypatch, recipe):
    whole = pair.run("--recipe", recipe, "--max_epoch", "3", save_path=tmp_path / "a")
    plain, calls = method_class("s2amsnet").update, []

    def interrupted(self, x, y):
        calls.append(1)
        if len(calls) == 5:                     # in the middle of epoch 2
            raise KeyboardInterrupt
        return plain(self, x, y)

    monkeypatch.setattr(method_class("s2amsnet"), "update", interrupted)
    words = pair.words("--recipe", recipe, "--max_epoch", "3", "--save_path", str(tmp_path / "b"))
    assert main.main(words) == 130
    monkeypatch.setattr(method_class("s2amsnet"), "update", plain)
    folder = next((tmp_path / "b").iterdir())
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    run = main.train(["--resume", str(folder)])
    assert same_state(weights(whole), weights(run))
    assert [r["losses"] for r in whole.records(whole.epochs)] == [r["losses"] for r in run.records(run.epochs)]
    assert [r["epoch"] for r in run.records(run.epochs)] == [1, 2, 3]
    assert json.loads(whole.evaluation.read_text()) == json.loads(run.evaluation.read_text())


def test_another_number_of_threads_is_warned_of_on_resume(trained, caplog):
    run = trained("--method", "erm")
    main.train(["--resume", str(run.path), "--max_epoch", "3"])
    assert "bit by bit" not in caplog.text
    threads = torch.get_num_threads()
    run.update_run(threads=threads + 1)
    main.train(["--resume", str(run.path), "--max_epoch", "4"])
    assert f"threads {threads + 1}, now {threads}): its numbers will not be" in caplog.text
    assert run.read_run()["threads"] == threads and run.read_run()["status"] == "done"


def test_balanced_batches_go_on_where_they_were(trained):
    words = ("--method", "erm", "--balanced_batches", "on")
    run, whole = trained(*words), trained(*words, "--max_epoch", "4")
    plain = trained("--method", "erm", "--max_epoch", "4")
    main.train(["--resume", str(run.path), "--max_epoch", "4"])
    assert same_state(weights(whole), weights(run)) and not same_state(weights(whole), weights(plain))
    assert "balanced_batches=on" in run.read_run()["label"]


@pytest.mark.slow
def test_kill_nine_loses_nothing(pair, tmp_path):
    words = pair.words("--max_epoch", "100000", "--save_path", str(tmp_path / "b"))
    started = Started(words)
    while started.process.is_alive() and not list((tmp_path / "b").glob("*/epochs.jsonl")):
        time.sleep(0.01)
    started.kill()                                  # at some moment of the second epoch, or of one soon after
    assert started.end()[0] == -signal.SIGKILL
    folder = next((tmp_path / "b").iterdir())
    done = checkpoint.load(folder / "checkpoint.pt")["state"]["epoch"]
    run = main.train(["--resume", str(folder), "--max_epoch", str(done + 2)])
    whole = pair.run("--max_epoch", str(done + 2), save_path=tmp_path / "a")
    assert same_state(weights(whole), weights(run))
    assert [r["epoch"] for r in run.records(run.epochs)] == list(range(1, done + 3))


def test_a_record_cut_short_is_written_again(trained):
    run = trained("--method", "erm")
    with open(run.epochs, "a") as file:
        file.write('{"epoch": 3, "losses"')
    run = main.train(["--resume", str(run.path), "--max_epoch", "3"])
    assert [record["epoch"] for record in run.records(run.epochs)] == [1, 2, 3]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(pair, tmp_path, monkeypatch):
    plain, calls = method_class("erm").update, []

    def breaking(self, x, y):
        calls.append(1)
        losses = plain(self, x, y)
        return losses | {"ce": float("nan")} if len(calls) == 4 else losses

    monkeypatch.setattr(method_class("erm"), "update", breaking)
    with pytest.raises(NonFiniteLossError, match=r"ce is not finite at step 4 .epoch 2.*holds epoch 1"):
        pair.run("--method", "erm", save_path=tmp_path)
    folder = next(tmp_path.glob("field-coast*"))
    assert checkpoint.load(folder / "checkpoint.pt")["state"]["epoch"] == 1
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"


def test_weights_that_are_not_finite_never_reach_the_checkpoint(pair, tmp_path, monkeypatch):
    plain = method_class("erm").update

    def breaking(self, x, y):
        losses = plain(self, x, y)
        with torch.no_grad():
            self.discriminator.head.bias[0] = float("inf")
        return losses

    monkeypatch.setattr(method_class("erm"), "update", breaking)
    with pytest.raises(NonFiniteLossError, match="discriminator.head.bias .* epoch 1"):
        pair.run("--method", "erm", "--batch_size", "500", save_path=tmp_path)          # one step per epoch
    folder = next(tmp_path.glob("field-coast*"))
    assert all(value.isfinite().all() for value in weights(main.open_run(folder)).values())


def test_a_checkpoint_of_another_configuration_is_refused(trained):
    run = trained("--method", "erm")
    with pytest.raises(CheckpointError, match="cannot change lr, pro_dim"):
        main.train(["--resume", str(run.path), "--lr", "0.1", "--pro_dim", "16"])
    run.config.write_text(yaml.safe_dump(yaml.safe_load(run.config.read_text()) | {"lr": 0.5}))
    with pytest.raises(CheckpointError, match=r"another configuration: lr \(0.001 there, 0.5 here\)"):
        main.train(["--resume", str(run.path)])


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"x": torch.arange(10000), "y": {"z": [1, 2.0, "three", None]}})
    whole = path.read_bytes()
    for content in [whole[:size] for size in (0, 1, 10, 100, 1000, 5000, len(whole) // 2, len(whole) - 10)] + [
            b"just words, and quite a few of them", bytes(5000)]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="checkpoint.pt cannot be read.*truncated"):
            checkpoint.load(path)


def test_resume_refuses_other_data_and_another_kind_of_device(pair, tmp_path, scenes):
    run = pair.run("--method", "erm", save_path=tmp_path)
    saved = checkpoint.load(run.checkpoint)
    checkpoint.save(run.checkpoint, saved | {"device": "cuda"})
    with pytest.raises(CheckpointError, match="written on cuda"):
        main.train(["--resume", str(run.path), "--max_epoch", "3"])
    checkpoint.save(run.checkpoint, saved)
    labels = scenes[0].labels.copy()
    labels[labels == 1] = 2
    labels[0, :4] = 1
    write_mat_v5(pair.folder / "field_gt.mat", {"map": labels})
    with pytest.raises(CheckpointError, match="other data: source/field_gt.mat changed"):
        main.train(["--resume", str(run.path), "--max_epoch", "3"])
    assert run.read_run()["status"] == "done" and checkpoint.load(run.checkpoint)["state"]["epoch"] == 2


def test_a_run_may_be_ended_early(pair, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(main, "score_run", interrupted)
        assert main.main(pair.words("--method", "erm", "--save_path", str(tmp_path))) == 130
    folder = next(tmp_path.glob("field-coast*"))
    assert main.main(["figures", str(folder)]) == 2 and main.main(["tables", str(folder)]) == 2
    run = main.train(["--resume", str(folder)])
    assert run.read_run()["status"] == "done" and set(json.loads(run.evaluation.read_text())["rules"]) == RULE_NAMES
    longer = main.train(["--resume", str(folder), "--max_epoch", "3"])
    assert yaml.safe_load(longer.config.read_text())["max_epoch"] == 3


def test_checkpoints_never_run_code(tmp_path):
    torch.save({"state": Exploit()}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match="more than tensors"):
        checkpoint.load(tmp_path / "bad.pt")
    assert not Exploit.ran


class Exploit:
    ran = False

    def __reduce__(self):
        return (exec, ("import test_resume; test_resume.Exploit.ran = True",))


@pytest.mark.cuda
@pytest.mark.parametrize("recipe", ["released", "paper", "robust"])
def test_deterministic_runs_on_a_gpu_repeat_and_resume_bit_by_bit(pair, tmp_path, recipe):
    words = ["--gpu", "0", "--deterministic", "--recipe", recipe, "--max_epoch"]
    try:
        whole, again, broken = (pair.run(*words, epochs, save_path=tmp_path / name)
                                for name, epochs in (("a", "2"), ("b", "2"), ("c", "1")))
        assert same_state(bits(whole), bits(again))
        if recipe != "robust":                                      # whose schedule knows how long the run is
            assert same_state(bits(whole), bits(main.train(["--resume", str(broken.path), "--max_epoch", "2"])))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.cuda
@pytest.mark.parametrize("words", [["--recipe", "released"], ["--recipe", "paper"], ["--cuda_graph"],
                                   ["--precision", "bf16"]], ids=str)
def test_a_run_on_a_gpu_resumes_and_is_evaluated_on_the_cpu(pair, tmp_path, words):
    run = pair.run("--gpu", "0", *words, "--max_epoch", "1", save_path=tmp_path / "a")
    run = main.train(["--resume", str(run.path), "--max_epoch", "2"])
    assert run.read_run()["status"] == "done" and [r["epoch"] for r in run.records(run.epochs)] == [1, 2]
    assert main.main(["evaluate", "--run", str(run.path), "--gpu", "-1"]) == 0
