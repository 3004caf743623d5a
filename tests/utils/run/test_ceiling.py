"""A ceiling: trained on half of the target's own labels, scored on the other half, the source left aside."""

import json
from dataclasses import replace

import numpy as np
import pytest

import main
from conftest import same_state, write_scene
from datasets.readers import load_scene
from datasets.splits import split_halves
from datasets.writers import write_mat_v5, write_mat_v73
from model.errors import ConfigError
from model.seeding import Streams
from utils.run import build, checkpoint
from utils.run.build import choose_device
from utils.run.config import parse_train
from utils.run.folder import run_label, run_name
from utils.tables.compare import Comparison, compare_runs
from utils.trained.load import load_run
from utils.trained.rescore import transfer

CEILING = ("--method", "erm", "--ceiling", "--max_epoch", "3")


@pytest.fixture
def run(trained):
    return trained(*CEILING)


@pytest.fixture
def halves(shared_pair):
    """The target with the labels of each half, as the run of seed 333 has them."""
    return split_halves(load_scene(str(shared_pair.target)), 5, Streams(333, choose_device(-1)).split)


def test_it_trains_on_one_half_and_is_scored_on_the_other(run, halves):
    trained_on, scored_on = halves
    data = load_run(run).data
    for samplers, half in (((data.train, data.val), trained_on), ((data.test,), scored_on)):
        found = np.concatenate([sampler.centres.numpy() for sampler in samplers])
        assert sorted(map(tuple, found)) == sorted(map(tuple, np.argwhere(half.labels)))
        for sampler in samplers:
            assert np.array_equal(half.labels[tuple(sampler.centres.numpy().T)] - 1, sampler.labels.numpy())
    assert data.train.repeat == -(-0.8 * 168 // len(data.train))       # no shorter epochs than those of the source
    about = run.read_run()
    assert about["labelled_target_pixels"] == (scored_on.labels > 0).sum() and about["ceiling"] is True
    confusion = np.array(json.loads(run.evaluation.read_text())["rules"]["last"]["target"]["per_class"], float)
    assert len(confusion) == 7 and np.sum(about["training_pixels"]) == len(data.train)


def test_everything_calls_it_a_ceiling(run):
    about, config = run.read_run(), run.read_config()
    assert about["label"] == run_label(config) == "ceiling (erm)" and config.ceiling
    assert (about["source"], about["target"]) == ("field", "coast")
    assert {name.partition("/")[0] for name in about["sha256"]} == {"source", "target"}
    assert run.path.name.startswith("field-coast_ceiling_erm_released_seed333_") and run.path.name == run_name(config)


def test_neither_the_source_nor_the_scored_labels_change_it(pair, scenes, train_once, tmp_path, caplog, monkeypatch):
    """A source of other spectra and labels, the target as its own source, other labels in the half that is scored:
    the same weights."""
    first = train_once(*CEILING)
    turned = replace(scenes[0], cube=scenes[0].cube[::-1].copy(), labels=scenes[0].labels[:, ::-1].copy())
    write_scene(pair.folder, turned, "field", write_mat_v73)
    others = [pair.run(*CEILING, *words, save_path=tmp_path / "a")
              for words in ([], ["--source_name", str(pair.target)])]
    assert "same files" not in caplog.text and "half of the labels of coast" in caplog.text

    def swapped(*scene):
        trained_on, scored_on = split_halves(*scene)
        return trained_on, replace(scored_on, labels=np.where(scored_on.labels > 0, scored_on.labels % 7 + 1, 0))
    monkeypatch.setattr(build, "split_halves", swapped)
    others.append(pair.run(*CEILING, save_path=tmp_path / "b"))
    state = checkpoint.load(first.checkpoint)["method"]
    assert all(same_state(state, checkpoint.load(one.checkpoint)["method"]) for one in others)
    confusions = [json.loads(one.evaluation.read_text())["rules"]["last"]["confusion"] for one in (first, *others)]
    assert confusions[0] == confusions[1] == confusions[2] != confusions[3]


def test_a_scene_without_one_of_the_classes_has_a_ceiling(pair, scenes, tmp_path):
    """And one that has a class in a single clump has none."""
    labels = scenes[1].labels * (scenes[1].labels != 4)
    pair.target = write_scene(pair.folder, replace(scenes[1], labels=labels), "coast", write_mat_v5)
    run = pair.run(*CEILING, "--max_epoch", "1", save_path=tmp_path / "runs")
    score = json.loads(run.evaluation.read_text())["rules"]["last"]["target"]
    assert score["per_class"][3] is None and run.read_run()["training_pixels"][3] == 0
    labels[:] = 0
    labels[:4, :4], labels[20:, 20:] = 1, 2
    pair.target = write_scene(pair.folder, replace(scenes[1], labels=labels), "coast", write_mat_v5)
    with pytest.raises(ConfigError, match="no two disjoint halves"):
        pair.run(*CEILING, save_path=tmp_path / "none")


def test_weights_are_scored_on_what_they_were_not_trained_on(run, trained, halves, shared_pair, other_target, capsys):
    """By evaluate and compare; another scene has all of its labels."""
    score = json.loads(run.evaluation.read_text())["rules"]["last"]["target"]
    n = (halves[1].labels > 0).sum()
    assert main.main(["evaluate", "--run", str(run.path)]) == 0
    said = capsys.readouterr().out
    assert f"({n} pixels)" in said and f"kappa {100 * score['kappa']:.2f}" in said
    assert main.main(["evaluate", "--run", str(run.path), "--scene", other_target]) == 0
    assert f"({(load_scene(other_target).labels > 0).sum()} pixels)" in capsys.readouterr().out
    erm = trained("--method", "erm")
    for folders in ((run.path, erm.path), (erm.path, run.path)):
        tables = compare_runs(*map(str, folders), Comparison("last", block=8, resamples=5))
        assert f": {n} pixels" in tables[0].title and any("ceiling (erm)" in row for row in tables[0].rows)
        assert any(note.startswith("Ceiling: ") for note in tables[0].notes)


def test_what_a_ceiling_cannot_be(run, other_target):
    with pytest.raises(ConfigError, match="is a ceiling"):
        transfer(run, other_target)
    with pytest.raises(ConfigError, match="no target_name"):
        parse_train(["--ceiling", "--target_name", "null"])
