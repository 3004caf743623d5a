"""A run whose BatchNorm statistics are re-estimated afterwards is the run that training with that switch would make."""

import json

import pytest

import main
from conftest import same_state
from model.errors import CheckpointError, ConfigError
from utils.run import checkpoint
from utils.trained import rescore
from utils.trained.load import load_run
from utils.trained.rescore import refit, transfer


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--recipe", "paper"], ["--recipe", "robust"], ["--method", "dsan"]], ids=" ".join)
def test_it_is_the_last_epoch_of_the_run_that_training_would_have_made(pair, tmp_path, words):
    first = pair.run(*words, "--batchnorm_statistics", "running", "--oracle", "--validators",
                     save_path=tmp_path / "runs")
    made = refit(first)
    direct = pair.run(*words, "--batchnorm_statistics", "source", save_path=tmp_path / "again")
    assert made.path.name == direct.path.name and made.path.parent == first.path.parent
    ours, theirs = (json.loads(run.evaluation.read_text()) for run in (made, direct))
    assert ours["rules"] == {"last": theirs["rules"]["last"]} and ours["constant"] == theirs["constant"]
    assert made.read_run()["trained_in"] == first.path.name and made.read_run()["status"] == "done"
    record, last = made.records(made.epochs)[0], direct.records(direct.epochs)[-1]
    assert {name: value for name, value in record.items() if name != "seconds"} == \
        {name: value for name, value in last.items() if name != "seconds"}
    assert record["seconds"] == pytest.approx(sum(entry["seconds"] for entry in first.records(first.epochs)))
    before, saved, again = (checkpoint.load(run.checkpoint) for run in (first, made, direct))
    assert saved["config"] == again["config"] and same_state(saved["method"], again["method"])
    assert same_state(saved["state"]["selected"]["last"], again["state"]["selected"]["last"])
    assert not same_state(saved["state"]["selected"]["last"], before["state"]["selected"]["last"])
    assert not made.oracle.exists() and not made.validators.exists() and refit(first) is None
    with pytest.raises(CheckpointError, match="no weights of the rule 'shifted-source'; it has last"):
        load_run(made, "shifted-source")


@pytest.mark.slow
def test_it_goes_with_transfer_in_either_order(trained, other_target, tmp_path):
    first = trained("--method", "erm")
    one = transfer(refit(first, str(tmp_path / "fitted")), other_target)
    two = refit(transfer(first, other_target))
    assert one.path.name == two.path.name and tuple(map(rescore.derived_by, (one, two))) == ("transfer", "refit")
    assert json.loads(one.evaluation.read_text()) == json.loads(two.evaluation.read_text())
    assert one.records(one.epochs) == two.records(two.epochs)


@pytest.mark.slow
def test_the_command_makes_one_of_every_run_once_and_tables_take_it(trained, tmp_path, capsys):
    runs = [trained("--method", "erm"), trained("--recipe", "paper", "--batchnorm_statistics", "running")]
    words = ["refit", str(tmp_path / "runs"), "--save_path", str(tmp_path / "fitted")]
    assert main.main(words) == 0
    made = capsys.readouterr().out.strip().splitlines()[-2:]
    assert all(str(tmp_path / "fitted") in line for line in made) and len(made) == len(runs)
    assert main.main(words) == 0
    assert capsys.readouterr().out.count("already") == 2
    assert main.main(["tables", str(tmp_path / "runs"), str(tmp_path / "fitted")]) == 0
    assert "erm batchnorm_statistics=source" in capsys.readouterr().out
    assert main.main(["figures", made[0]]) == 0 and main.main(["evaluate", "--run", made[1]]) == 0


@pytest.mark.parametrize("derive", [lambda run, other: refit(run), transfer], ids=["refit", "transfer"])
def test_a_folder_is_done_only_when_all_of_it_is_written(trained, other_target, monkeypatch, derive):
    run, write = trained("--method", "erm"), rescore.write_text

    def break_off(path, text):
        raise KeyboardInterrupt
    monkeypatch.setattr(rescore, "write_text", break_off)
    with pytest.raises(KeyboardInterrupt):
        derive(run, other_target)
    monkeypatch.setattr(rescore, "write_text", write)
    made = derive(run, other_target)                                        # what was broken off does not count as done
    assert made.read_run()["status"] == "done" and made.records(made.epochs)[-1]["epoch"] == 2


def test_a_run_without_its_weights_does_not_stop_the_others(trained, tmp_path, capsys, caplog):
    trained("--method", "erm").checkpoint.unlink()
    trained("--method", "erm", "--seed", "2")
    assert main.main(["refit", str(tmp_path / "runs")]) == 2
    assert "1 of 2 runs could not be scored" in capsys.readouterr().err and "does not exist" in caplog.text
    assert len(list((tmp_path / "runs").glob("*source_seed2*/evaluation.json"))) == 1


@pytest.mark.slow
def test_what_has_nothing_to_re_estimate_is_refused(pair, tmp_path):
    with pytest.raises(ConfigError, match="already"):
        refit(pair.run("--method", "erm", "--batchnorm_statistics", "source", "--max_epoch", "1",
                       save_path=tmp_path / "runs"))
    with pytest.raises(ConfigError, match="has no BatchNorm"):
        refit(pair.run("--method", "svm", "--max_epoch", "1", save_path=tmp_path / "runs"))
    run = pair.run("--method", "mixup", "--max_epoch", "1", save_path=tmp_path / "runs")
    target = pair.folder / "coast.mat"
    target.write_bytes((pair.folder / "field.mat").read_bytes())
    with pytest.raises(CheckpointError, match="other data: target/coast.mat"):
        refit(run)
