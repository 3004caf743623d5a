"""Training end to end: records, protocol, and errors that lose nothing."""

import json
import sys

import numpy as np
import pytest
import torch

import main
from conftest import PairOnDisk, same_state, write_scene
from datasets.scene import Scene
from datasets.writers import write_mat_v5
from model.errors import ConfigError, RunFolderError
from utils.run import checkpoint
from utils.run.selection import RULES
from utils.run.tensorboard import Curves

RULE_NAMES = {rule.name for rule in RULES}


def weights(run):
    return checkpoint.load(run.checkpoint)["method"]["networks"]


@pytest.mark.slow_but("words0", "words2")
@pytest.mark.parametrize("words", [["--method", "erm"], ["--method", "erm_gain"], ["--recipe", "released"],
                                   ["--recipe", "paper", "--batchnorm_statistics", "source", "--split", "blocks"]])
def test_a_run_leaves_its_records(pair, tmp_path, capsys, words):
    run = pair.run(*words, save_path=tmp_path / "runs")
    records = run.records(run.epochs)
    assert [record["epoch"] for record in records] == [1, 2]
    assert records[0]["losses"] and 0 <= records[0]["source_val"]["oa"] <= 1
    about = run.read_run()
    assert about["status"] == "done" and about["seed"] == 333 and about["versions"]["torch"] and about["backend"]
    assert about["seconds"] > 0 and about["peak_memory_mib"] > 0
    assert set(about["sha256"]) == {f"{role}/{name}{end}.mat" for role, name in (("source", "field"), ("target", "coast"))
                                    for end in ("", "_gt")}
    content = json.loads(run.evaluation.read_text())
    assert set(content["rules"]) == RULE_NAMES and "oracle" not in content
    for entry in content["rules"].values():
        assert np.sum(entry["confusion"]) == entry["target"]["n"] == about["labelled_target_pixels"] == 7 * 24
    assert content["rules"]["last"]["epoch"] == 2 and content["constant"]["kappa"] == 0
    printed = capsys.readouterr().out
    assert "source-val" in printed and "constant answer" in printed and "grass healthy" in printed


def test_a_run_on_all_labels_has_its_last_epoch_alone(pair, tmp_path, capsys):
    run = pair.run("--method", "erm", "--split", "released", "--training_sample_ratio", "1", "--oracle",
                   "--eval_interval", "2", save_path=tmp_path / "runs")
    record, content = run.records(run.epochs)[0], run.read_evaluation()
    assert set(content["rules"]) == {"last"} and not {"source_val", "shifted_source"} & {*record, *content["oracle"]}
    assert sum(run.read_run()["training_pixels"]) == 7 * 24
    assert main.main(["--resume", str(run.path), "--max_epoch", "3"]) == 0
    for command in (["tables", str(tmp_path / "runs")], ["study", str(run.path)],
                    ["figures", str(tmp_path / "runs"), "--layout", "features"]):
        assert main.main([*command, "--out", str(tmp_path / "out")]) == 0
    table = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| erm"))
    assert table.split("|")[3].strip() == "–" and "nan" not in table
    assert main.main(["evaluate", "--run", str(run.path), "--rule", "source-val"]) == 2
    assert "holds no weights of the rule 'source-val'; it has last" in capsys.readouterr().err
    run.write_config(run.read_config(training_sample_ratio=0.8))              # the records of such a run are damaged
    with pytest.raises(RunFolderError, match="'last' lacks 'source_val'"):
        run.read_evaluation()


def test_the_saved_config_repeats_the_run(train_once, tmp_path):
    first = train_once("--recipe", "paper", "--oracle")
    second = main.train(["--config", str(first.config), "--save_path", str(tmp_path)])
    assert same_state(weights(first), weights(second))


def test_seeds_matter(train_once):
    first, second = (train_once("--method", "erm", *words) for words in ([], ["--seed", "2"]))
    assert not same_state(weights(first), weights(second))


def test_oracle_has_a_record_of_its_own(train_once):
    run = train_once("--recipe", "paper", "--oracle")
    assert [record["epoch"] for record in run.records(run.oracle)] == [1, 2]
    assert all("target" not in record for record in run.records(run.epochs))
    content = json.loads(run.evaluation.read_text())
    best = max(record["target"]["oa"] for record in run.records(run.oracle))
    assert content["oracle"]["target"]["oa"] == best


def test_a_run_without_a_target(pair, tmp_path):
    run = pair.run("--method", "erm", "--target_name", "null", "--max_epoch", "1", save_path=tmp_path)
    content = json.loads(run.evaluation.read_text())
    assert "target" not in content["rules"]["last"] and run.read_run()["target"] is None


def test_an_existing_run_is_never_overwritten(pair, tmp_path):
    run = pair.run("--method", "erm", save_path=tmp_path)
    before = run.checkpoint.read_bytes()
    again = main.train(["--config", str(run.config)])
    assert again.path.name == run.path.name + "_2" and same_state(weights(run), weights(again))
    assert run.checkpoint.read_bytes() == before
    run.update_run(status="interrupted")
    with pytest.raises(ConfigError, match="unfinished. Go on with it: --resume"):
        pair.run("--method", "erm", save_path=tmp_path)
    with pytest.raises(ConfigError, match="must be a plain name"):
        pair.run("--run_name", "../x", save_path=tmp_path)


def test_bad_input_is_one_line_and_leaves_no_folder(pair, tmp_path, capsys):
    pair.change(pair.target, class_names=["a", "b"])
    assert main.main(pair.words("--save_path", str(tmp_path / "runs"))) == 2
    assert "2 class names" in capsys.readouterr().err and not (tmp_path / "runs").exists()
    assert main.main(["--source_name", "Houston13", "--data_path", str(tmp_path)]) == 2
    assert "SceneNotFoundError: Houston13.mat" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_written_is_named(pair, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match="cannot be written"):
        pair.run(save_path=tmp_path / "file")


@pytest.mark.slow
def test_a_target_without_labels_is_mapped_not_scored(pair, tmp_path, scenes):
    write_mat_v5(pair.folder / "coast_gt.mat", {"map": np.zeros_like(scenes[1].labels)})
    assert main.main(pair.words("--oracle", "--save_path", str(tmp_path / "a"))) == 2
    run = pair.run("--method", "erm", save_path=tmp_path / "b")
    assert "target" not in json.loads(run.evaluation.read_text())["rules"]["last"]
    assert main.main(["figures", str(run.path)]) == 0


def test_source_and_target_may_be_the_same_but_not_silently(pair, tmp_path, caplog):
    pair.target = pair.source
    pair.run("--method", "erm", save_path=tmp_path)
    assert "scores include training pixels" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("bands,names", [(2, ["a", "b"]), (3, ["a", "b", "c"])])
def test_small_scenes_train_from_the_command_line(tmp_path, bands, names):
    rng = np.random.default_rng(0)
    source, target = (Scene("s", rng.random((12, 14, bands)).astype(np.float32) + 0.1,
                            rng.integers(0, len(names) + 1 - i, (12, 14)), tuple(names[:len(names) - i]))
                      for i in (0, len(names) - 2))
    source, target = (write_scene(tmp_path, scene, name, write_mat_v5)
                      for scene, name in ((source, "s"), (target, "t")))
    run = PairOnDisk(tmp_path, source, target).run("--recipe", "paper", save_path=tmp_path / "runs")
    assert run.read_run()["status"] == "done" and main.main(["figures", str(run.path)]) == 0


def test_curves_without_tensorboard_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard=="):
        Curves(tmp_path, 1)


def test_tensorboard_curves_are_those_of_the_records(pair, train_once, tmp_path):
    loaded = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="an extra")
    run = pair.run("--method", "erm", "--tensorboard", "--log_interval", "1", save_path=tmp_path)
    curves = loaded.EventAccumulator(str(run.path / "tensorboard")).Reload()
    records = run.records(run.epochs)
    steps, ends = records[0]["steps"], [record["epoch"] * record["steps"] for record in records]
    points = curves.Scalars("loss/ce")
    assert [point.step for point in points] == list(range(1, ends[-1] + 1))
    means = [np.mean([point.value for point in points[end - steps:end]]) for end in ends]
    assert means == pytest.approx([record["losses"]["ce"] for record in records], rel=1e-5)
    names = {f"{kind}/{score}" for kind in ("source-val", "shifted-source") for score in ("oa", "aa", "kappa")}
    assert set(curves.Tags()["scalars"]) == {"loss/ce"} | names
    for name in names:
        kind, score = name.replace("-", "_").split("/")
        assert [point.step for point in curves.Scalars(name)] == ends
        values = [record[kind][score] for record in records]
        assert [point.value for point in curves.Scalars(name)] == pytest.approx(values)
    assert not (train_once("--method", "erm").path / "tensorboard").exists()


def test_a_machine_without_a_gpu_says_so(pair, tmp_path, caplog):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    pair.run("--method", "erm", "--gpu", "0", "--max_epoch", "1", save_path=tmp_path)
    assert "running on the CPU" in caplog.text
