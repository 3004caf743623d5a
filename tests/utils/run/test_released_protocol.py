"""The released code's protocol: its layer of settings, and the weights that the target's labels chose."""

import numpy as np
import pytest

import main
from conftest import same_state
from model.errors import CheckpointError, ConfigError
from utils.run import checkpoint
from utils.run.config import parse_train, read_config
from utils.run.metrics import scores
from utils.run.scoring import evaluate_target
from utils.run.selection import NOT_HONEST, ORACLE
from utils.sweep.file import layered
from utils.trained.load import load_run

WORDS = ["--method", "erm", "--protocol", "released", "--max_epoch", "4", "--lr", "0.05"]
LAYER = "configs/protocol/released.yaml"


@pytest.fixture(scope="module")
def run(shared_pair, tmp_path_factory):
    return shared_pair.run(*WORDS, save_path=tmp_path_factory.mktemp("released"))


def test_flag_file_and_sweep_bring_the_same_layer_and_what_is_given_beside_it_wins():
    config = parse_train(["--protocol", "released", "--config", "configs/cpu.yaml"])
    assert (config.split, config.eval_interval, config.oracle, config.patch_size) == ("released", 1, True, 7)
    assert config == parse_train(["--config", "configs/cpu.yaml", "--config", LAYER]) == \
        read_config("configs/cpu.yaml", protocol="released") == \
        layered([{"config": "configs/cpu.yaml"}, {"protocol": "released"}]).config()
    assert parse_train(["--config", LAYER, "--config", "configs/cpu.yaml"]).eval_interval == 2
    assert parse_train(["--protocol", "released", "--split", "random", "--eval_interval", "7"]).eval_interval == 7
    assert not parse_train(["--config", LAYER, "--protocol", "sealed", "--oracle", "false"]).oracle
    for words in (["--oracle", "false"], ["--target_name", "null"]):
        with pytest.raises(ConfigError, match="oracle"):
            parse_train(["--protocol", "released", *words])


def test_the_first_best_epoch_is_kept_with_its_weights(run):
    records = run.records(run.oracle)
    accuracies = [record["target"]["oa"] for record in records]
    kept = run.evaluation_of(ORACLE.name)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert kept["epoch"] == 1 + int(np.argmax(accuracies)) and kept["target"]["oa"] == max(accuracies)
    trained = load_run(run, ORACLE.name)
    assert evaluate_target(trained.method, trained.data) == {key: kept[key] for key in ("target", "confusion")}
    assert kept["epoch"] != 4 and not same_state(                     # else it were no test
        trained.method.discriminator.state_dict(), load_run(run).method.discriminator.state_dict())


def test_an_interrupted_run_keeps_the_same_weights(run, shared_pair, tmp_path):
    first = shared_pair.run(*WORDS[:-4], "--lr", "0.05", "--max_epoch", "2", save_path=tmp_path)
    resumed = main.train(["--resume", str(first.path), "--max_epoch", "4"])
    ours, theirs = (checkpoint.load(each.checkpoint)["state"]["selected"] for each in (run, resumed))
    assert same_state(ours, theirs) and ORACLE.name in ours


def test_every_command_takes_them_and_says_how_they_were_chosen(run, tmp_path, capsys, caplog):
    common = ["--run", str(run.path), "--rule", "oracle"]
    assert main.main(["evaluate", *common]) == 0
    kept = run.evaluation_of(ORACLE.name)
    told = capsys.readouterr().out
    assert NOT_HONEST in told and f"OA {100 * kept['target']['oa']:.2f}" in told and NOT_HONEST in caplog.text
    assert main.main(["predict", *common, "--out", str(tmp_path / "map.tif")]) == 0 and (tmp_path / "map.png").exists()
    assert main.main(["figures", str(run.path), "--rule", "oracle"]) == 0
    assert (run.figures / "oracle" / "maps.png").exists() and not (run.figures / "maps.png").exists()


def test_export_leaves_the_files_of_the_released_code(run, tmp_path):
    kept = run.evaluation_of(ORACLE.name)
    assert main.main(["export", "--run", str(run.path), "--rule", "oracle", "--out", str(tmp_path / "best.pth")]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"best.pth", "settings.txt", "train_log.txt"}
    settings = dict(line.strip("\t").split("\t") for line in (tmp_path / "settings.txt").read_text().splitlines())
    assert settings["patch_size"] == "5" and settings["nce_layers"] == "0,4,8,12,16" and settings["lr"] == "0.05"
    told = (tmp_path / "train_log.txt").read_text()
    names = ["best_epoch", "best_acc", "Confusion_matrix", "OA", "TPR", "F1scores", "kappa", "finished"]
    assert [line.split(":")[0] for line in told.splitlines() if ":" in line] == names
    for line in (f"best_epoch: {kept['epoch']}", f"OA: {100 * kept['target']['oa']:.2f}",
                 f"kappa: {kept['target']['kappa']:.4f}", "finished: True"):
        assert line in told.splitlines()
    f1 = told[told.index("F1scores: [") + len("F1scores: ["):]
    found = np.array(f1[:f1.index("]")].split(), float)
    assert found.mean() == pytest.approx(scores(kept["confusion"]).macro_f1, abs=1e-6) and len(found) == 7


def test_runs_without_these_weights_say_how_to_get_them(trained):
    with pytest.raises(CheckpointError, match="'oracle'.*--oracle"):
        load_run(trained("--method", "erm"), ORACLE.name)
