"""A run scored on another target is the run that training with that target would have made."""

import json

import numpy as np
import pytest
import yaml

import main
from conftest import SMALL, same_state, write_scene
from datasets.simulator import simulate
from datasets.writers import write_mat_v5
from model.errors import ConfigError
from utils.run import checkpoint
from utils.run.folder import RunFolder
from utils.trained.rescore import transfer


def test_it_is_the_run_that_training_would_have_made(trained, shared_pair, other_target, tmp_path):
    first = trained("--method", "erm", "--oracle")
    made = transfer(first, other_target)
    direct = shared_pair.run("--method", "erm", "--target_name", other_target, save_path=tmp_path / "again")
    assert made.path.name == direct.path.name and made.path.parent == first.path.parent
    assert json.loads(made.evaluation.read_text()) == json.loads(direct.evaluation.read_text())
    assert made.read_run()["sha256"] == direct.read_run()["sha256"]
    assert made.read_run()["trained_in"] == first.path.name and made.read_run()["status"] == "done"
    ours, theirs = (checkpoint.load(run.checkpoint) for run in (made, direct))
    assert ours["config"] == theirs["config"] and same_state(ours["method"], theirs["method"])
    assert not made.oracle.exists() and transfer(first, other_target) is None


@pytest.mark.slow
def test_the_command_scores_every_run_once(simulated, tmp_path, capsys):
    words = ["--source_name", "SimSource", "--target_name", "SimTarget", "--data_path", simulated, *SMALL,
             "--re_ratio", "1", "--method", "erm", "--max_epoch", "1", "--save_path", str(tmp_path / "runs")]
    run = main.train(words)
    assert main.main(["transfer", str(tmp_path / "runs"), "--severity", "2"]) == 0
    made = RunFolder(capsys.readouterr().out.strip().splitlines()[-1])
    assert yaml.safe_load(made.config.read_text())["simulation"] == {"severity": 2.0, "seed": 0}
    easy, hard = (json.loads(r.evaluation.read_text())["rules"]["last"] for r in (run, made))
    assert easy["source_val"] == hard["source_val"] and easy["target"] != hard["target"]
    assert main.main(["transfer", str(tmp_path / "runs"), "--severity", "2"]) == 0
    assert "already" in capsys.readouterr().out
    assert main.main(["figures", str(made.path)]) == 0
    assert main.main(["tables", str(tmp_path / "runs")]) == 0


@pytest.mark.slow
def test_targets_that_would_have_changed_the_training_are_refused(pair, other_target, scenes, tmp_path):
    run = pair.run("--method", "erm", "--max_epoch", "1", "--protocol", "counted", "--re_ratio", "5",
                   save_path=tmp_path / "runs")
    with pytest.raises(ConfigError, match="this target already"):
        transfer(run)
    few = type(scenes[1])("few", scenes[1].cube, scenes[1].labels * (scenes[1].labels == 1), scenes[1].class_names,
                          scenes[1].wavelengths, scenes[1].rgb_bands)
    with pytest.raises(ConfigError, match="index list"):
        run.update_run(labelled_target_pixels=10 ** 6)
        transfer(run, str(write_scene(pair.folder, few, "few", write_mat_v5)))
    run.update_run(labelled_target_pixels=100)
    unlabelled = type(scenes[1])("bare", scenes[1].cube, scenes[1].labels * 0, scenes[1].class_names,
                                 scenes[1].wavelengths, scenes[1].rgb_bands)
    with pytest.raises(ConfigError, match="no labelled pixel"):
        transfer(run, str(write_scene(pair.folder, unlabelled, "bare", write_mat_v5)))
    write_scene(pair.folder, scenes[1], "field", write_mat_v5)
    with pytest.raises(ConfigError, match="other files"):
        transfer(run, other_target)


def test_a_moved_run_is_scored_where_it_lies_and_a_run_of_its_own_is_left_alone(trained, other_target):
    run = trained("--method", "erm")
    assert str(run.path.parent) not in run.config.read_text()
    made = transfer(run, other_target)
    assert made.path.parent == run.path.parent
    about = {name: value for name, value in made.read_run().items() if name != "trained_in"}
    made.run.write_text(json.dumps(about | {"status": "interrupted"}))
    with pytest.raises(ConfigError, match="a run of its own"):
        transfer(run, other_target)
    with pytest.raises(ConfigError, match="scored on these files already"):
        transfer(run, severity=2.0)


@pytest.mark.slow
def test_a_drawn_target_may_lack_classes_and_stays_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(simulate, "SHAPE", (60, 100))
    run = main.train([*SMALL, "--source_name", "SimSource", "--target_name", "SimTarget", "--method", "random_forest",
                      "--data_path", str(tmp_path / "data"), "--simulation.gap", "drawn", "--simulation.seed", "11",
                      "--simulation.severity", "2", "--re_ratio", "1", "--save_path", str(tmp_path / "runs")])
    assert main.main(["transfer", str(tmp_path / "runs"), "--severity", "1"]) == 0
    made = RunFolder(capsys.readouterr().out.strip().splitlines()[-1])
    for folder, severity, missing in ((run, 2.0, {1, 2}), (made, 1.0, {1})):
        assert yaml.safe_load(folder.config.read_text())["simulation"] == {
            "severity": severity, "seed": 11, "gap": "drawn"}
        scores = json.loads(folder.evaluation.read_text())["rules"]["last"]["target"]
        assert {k for k, accuracy in enumerate(scores["per_class"]) if accuracy is None} == missing
        assert 0 < scores["aa"] < 1 and np.isfinite(scores["kappa"])
    assert main.main(["figures", str(run.path)]) == main.main(["tables", str(tmp_path / "runs")]) == 0
    assert len(list((tmp_path / "data").glob("drawn_severity2_seed11_*/gap.yaml"))) == 1
