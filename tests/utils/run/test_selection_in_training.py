"""The rule `shifted-source`, early stopping and the label-free validators in real runs."""

import json

import numpy as np
import pytest

import main
from conftest import same_state
from datasets.perturb import VIEWS
from datasets.writers import write_mat_v5
from model.errors import CheckpointError
from model.s2amsnet import S2AMSnet
from model.seeding import Streams
from utils.run import checkpoint, scoring
from utils.run.build import UNLABELLED_PIXELS, load_data
from utils.run.config import parse_train
from utils.run.folder import run_name
from utils.run.selection import RULES, SHIFTED_SOURCE
from utils.trained.load import load_run


@pytest.fixture
def scripted(monkeypatch):
    """Shifted-source scores as given, epoch by epoch."""
    def script(*scores):
        left = iter(scores)
        monkeypatch.setattr(scoring, "shifted_scores", lambda *_: {"oa": next(left), "aa": 0.5, "kappa": 0.5,
                                                                   "macro_f1": 0.5, "views": {}})
    return script


def epochs(run):
    return [record["epoch"] for record in run.records(run.epochs)]


def test_every_view_is_recorded_and_the_best_epoch_kept(pair, tmp_path):
    run = pair.run("--method", "erm", "--lr", "0.01", "--max_epoch", "5", save_path=tmp_path)
    records = run.records(run.epochs)
    for record in records:
        score = record["shifted_source"]
        assert list(score["views"]) == list(VIEWS) and set(score) == {"oa", "aa", "kappa", "macro_f1", "views"}
        assert all(set(view) == {"oa", "aa", "kappa"} for view in score["views"].values())
        for key in ("oa", "aa", "kappa"):
            assert score[key] == pytest.approx(np.mean([view[key] for view in score["views"].values()]))
    content = json.loads(run.evaluation.read_text())["rules"]
    for rule in RULES:
        chosen = records[rule.select(records) - 1]
        assert content[rule.name]["epoch"] == chosen["epoch"]
        assert content[rule.name]["shifted_source"] == chosen["shifted_source"]
        assert content[rule.name]["source_val"] == chosen["source_val"]


def test_the_kept_weights_repeat_the_recorded_score(pair, tmp_path):
    run = pair.run("--method", "erm", "--lr", "0.01", "--max_epoch", "4", save_path=tmp_path)
    trained = load_run(run, SHIFTED_SOURCE.name)
    data = load_data(trained.config, trained.device, Streams(trained.config.seed, trained.device).split)
    recorded = json.loads(run.evaluation.read_text())["rules"][SHIFTED_SOURCE.name]["shifted_source"]
    assert scoring.shifted_scores(trained.method, data.shifted, 7) == recorded
    assert scoring.shifted_scores(load_run(run, "last").method, data.shifted, 7)["oa"] <= recorded["oa"]


def test_a_run_stops_when_the_score_no_longer_rises_and_says_so(pair, tmp_path, scripted, caplog):
    scripted(0.3, 0.5, 0.5, 0.4, 0.9)
    run = pair.run("--method", "erm", "--max_epoch", "9", "--patience", "2", save_path=tmp_path)
    assert epochs(run) == [1, 2, 3, 4]
    assert run.read_run()["stopped_early"] == {"epoch": 4, "best_epoch": 2, "patience": 2}
    assert "Stopped early after epoch 4" in caplog.text and run.read_run()["status"] == "done"
    rules = json.loads(run.evaluation.read_text())["rules"]
    assert rules["last"]["epoch"] == 4 and rules["shifted-source"]["epoch"] == 3         # the later of two equals


@pytest.mark.slow
def test_a_stopped_run_stays_stopped_or_goes_on_as_if_it_had_never_stopped(pair, tmp_path, scripted):
    scripted(*2 * (0.9, 0.5, 0.4))
    run = pair.run("--method", "erm", "--max_epoch", "3", "--patience", "1", save_path=tmp_path / "a")
    assert epochs(run) == [1, 2]
    run = main.train(["--resume", str(run.path)])
    assert epochs(run) == [1, 2] and run.read_run()["stopped_early"]["epoch"] == 2
    run = main.train(["--resume", str(run.path), "--patience", "null"])
    assert epochs(run) == [1, 2, 3] and run.read_run()["stopped_early"] is None
    whole = pair.run("--method", "erm", "--max_epoch", "3", save_path=tmp_path / "b")
    assert same_state(*(checkpoint.load(each.checkpoint)["method"] for each in (run, whole)))


def test_patience_counts_across_an_interruption(pair, tmp_path, scripted):
    scripted(0.9, 0.5, 0.4, 0.3)
    words = ("--method", "erm", "--patience", "3")
    run = pair.run(*words, "--max_epoch", "2", save_path=tmp_path)
    run = main.train(["--resume", str(run.path), "--max_epoch", "9"])
    assert epochs(run) == [1, 2, 3, 4]
    assert run.read_run()["stopped_early"] == {"epoch": 4, "best_epoch": 1, "patience": 3}


def test_validators_are_recorded_apart_and_change_nothing(pair, tmp_path):
    plain = pair.run("--method", "erm", save_path=tmp_path / "a")
    run = pair.run("--method", "erm", "--validators", save_path=tmp_path / "b")
    assert run.path.name == plain.path.name and not plain.validators.exists()
    records = run.records(run.validators)
    assert [set(record) for record in records] == [{"epoch", "entropy", "im", "snd", "uses"}] * 2
    assert [record["epoch"] for record in records] == [1, 2] and records[0]["uses"] == "unlabelled target"
    assert records[0]["entropy"] < 0 <= records[0]["im"]
    assert json.loads(run.evaluation.read_text()) == json.loads(plain.evaluation.read_text())
    assert same_state(*(checkpoint.load(each.checkpoint)["method"] for each in (run, plain)))
    with open(run.validators, "a") as file:
        file.write('{"epoch": 3, "entropy": 0}\n')
    run = main.train(["--resume", str(run.path), "--max_epoch", "3"])
    assert [record["epoch"] for record in run.records(run.validators)] == [1, 2, 3]
    assert run.records(run.validators)[-1]["snd"] > 0


def test_validators_look_at_pixels_spread_over_the_target_and_read_no_label(pair, scenes):
    cube = scenes[1].cube.copy()
    cube[:10] = 0                                                   # no data
    write_mat_v5(pair.folder / "coast.mat", {"ori_data": cube})
    config = parse_train(pair.words("--validators"))
    found = []
    for labels in (scenes[1].labels, np.zeros_like(scenes[1].labels)):
        write_mat_v5(pair.folder / "coast_gt.mat", {"map": labels})
        found.append(load_data(config, *device_and_split(config)).unlabelled)
    centres = found[0].centres.numpy()
    assert len(centres) == UNLABELLED_PIXELS and (centres == found[1].centres.numpy()).all()
    assert centres[:, 0].min() == 10 and not found[0].labels.any()
    steps = np.diff(centres @ [cube.shape[1], 1])
    assert steps.min() >= 1 and np.ptp(steps) <= 1                  # evenly


def device_and_split(config):
    device = main.choose_device(config.gpu)
    return device, Streams(config.seed, device).split


def test_settings_that_are_off_leave_a_runs_name_alone():
    plain = parse_train([])
    assert run_name(plain) == run_name(parse_train(["--validators"])) != run_name(parse_train(["--patience", "5"]))


@pytest.mark.slow
def test_evaluations_may_be_epochs_apart(pair, tmp_path):
    """The same weights from fewer records; the last epoch has one; a resumed run goes on from the last record."""
    words = ["--method", "erm", "--max_epoch", "5", "--lr_schedule", "cosine"]
    often = pair.run(*words, save_path=tmp_path / "often")
    seldom = pair.run(*words, "--eval_interval", "2", save_path=tmp_path / "seldom")
    assert epochs(often) == [1, 2, 3, 4, 5] and epochs(seldom) == [2, 4, 5]
    every, some = often.records(often.epochs), seldom.records(seldom.epochs)
    assert [record["source_val"] for record in some] == [every[i]["source_val"] for i in (1, 3, 4)]
    assert some[0]["losses"]["ce"] == pytest.approx((every[0]["losses"]["ce"] + every[1]["losses"]["ce"]) / 2)
    first, second = (checkpoint.load(run.checkpoint)["method"] for run in (often, seldom))
    assert same_state(first, second)


@pytest.mark.slow
def test_a_robust_run_interrupted_between_evaluations_goes_on_as_if_nothing_had_happened(pair, tmp_path, monkeypatch):
    words, plain, calls = ["--recipe", "robust", "--max_epoch", "5", "--eval_interval", "2"], S2AMSnet.update, []
    whole = pair.run(*words, save_path=tmp_path / "whole")
    steps = whole.records(whole.epochs)[0]["steps"]

    def breaking(self, x, y):
        calls.append(1)
        if len(calls) == 3 * steps + 2:
            raise KeyboardInterrupt
        return plain(self, x, y)

    monkeypatch.setattr(S2AMSnet, "update", breaking)
    with pytest.raises(KeyboardInterrupt):
        pair.run(*words, save_path=tmp_path / "broken")
    monkeypatch.setattr(S2AMSnet, "update", plain)
    folder = next((tmp_path / "broken").iterdir())
    assert checkpoint.load(folder / "checkpoint.pt")["state"]["epoch"] == 2
    resumed = main.train(["--resume", str(folder)])
    ours, theirs = (checkpoint.load(run.checkpoint) for run in (resumed, whole))
    assert same_state(ours["method"], theirs["method"]) and same_state(ours["streams"], theirs["streams"])
    assert same_state(ours["state"]["selected"], theirs["state"]["selected"])
    assert resumed.records(resumed.diagnostics) == whole.records(whole.diagnostics)
    with pytest.raises(CheckpointError, match="cannot change max_epoch"):
        main.train(["--resume", str(folder), "--max_epoch", "9"])
