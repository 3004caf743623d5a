"""Runs on two sensors, and runs that have moved: every later scene is brought to the run's bands and classes."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import yaml

import main
from conftest import SMALL, PairOnDisk, same_state, write_scene
from datasets.writers import write_mat_v5
from model.errors import CheckpointError
from utils.run import checkpoint
from utils.run.folder import RunFolder
from utils.trained.load import load_run

COARSE = np.linspace(400, 1000, 30)


@pytest.fixture
def sensors(tmp_path, scenes):
    """The pair, the target as a coarser sensor with other class numbers and one class of its own."""
    folder = tmp_path / "data"
    folder.mkdir()
    source, target = scenes
    order = (3, 1, 2, 5, 4, 7, 6)
    labels = np.array([0, *(1 + order.index(k) for k in range(1, 8))])[target.labels]
    labels[0, :5] = 8
    cube = np.apply_along_axis(lambda s: np.interp(COARSE, target.wavelengths, s), 2, target.cube).astype(np.float32)
    names = tuple(source.class_names[k - 1].upper() for k in order) + ("swamp",)
    other = replace(target, cube=cube, labels=labels, class_names=names, wavelengths=COARSE, rgb_bands=(9, 5, 2))
    return PairOnDisk(folder, write_scene(folder, source, "field", write_mat_v5),
                      write_scene(folder, other, "coast", write_mat_v5))


def test_a_pair_of_two_sensors_is_trained_scored_mapped_and_transferred(sensors, tmp_path, caplog, capsys):
    run = sensors.run("--method", "erm", save_path=tmp_path / "runs")
    about, saved = run.read_run(), checkpoint.load_run(run.checkpoint)
    assert about["resampling"] == {"source": "linear", "target": "as they are"} and about["bands"] == 30
    np.testing.assert_allclose(about["wavelengths"], COARSE)
    assert saved["wavelengths"] == about["wavelengths"] and saved["class_names"] == about["classes"]
    assert "SWAMP (5 pixels)".casefold() in caplog.text.casefold() and about["preprocessing"][0].startswith("resampled")
    assert main.main(["evaluate", "--run", str(run.path)]) == 0
    oa = run.evaluation_of("last")["target"]["oa"]
    assert f"OA {100 * oa:.2f}" in capsys.readouterr().out
    sensors.change(sensors.source, labels=None, class_names=[])                    # the run knows the classes
    out = tmp_path / "map.tif"
    assert main.main(["predict", "--run", str(run.path), "--scene", str(sensors.source), "--out", str(out)]) == 0
    with rasterio.open(out) as file:
        assert file.read(1).min() >= 1
    sensors.change(sensors.source, wavelengths=np.linspace(400, 700, 48).tolist())
    assert main.main(["predict", "--run", str(run.path), "--scene", str(sensors.source), "--out", str(out)]) == 2
    assert "reaches from 400 to 700 nm" in capsys.readouterr().err


def test_the_common_grid_reads_no_label_of_the_target(sensors, tmp_path, scenes):
    first = sensors.run("--method", "erm", save_path=tmp_path / "a")
    write_mat_v5(sensors.folder / "coast_gt.mat", {"map": np.where(scenes[1].labels > 0, 2, 0)})
    second = sensors.run("--method", "erm", save_path=tmp_path / "b")
    ours, theirs = (checkpoint.load(run.checkpoint) for run in (first, second))
    assert same_state(ours["method"], theirs["method"]) and ours["wavelengths"] == theirs["wavelengths"]


def test_a_run_goes_on_elsewhere(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(pair.folder)
    run = main.train(["--source_name", "field.yaml", "--target_name", "coast.yaml", *SMALL, "--method", "erm",
                      "--save_path", str(tmp_path / "runs")])
    monkeypatch.chdir(tmp_path)
    assert load_run(run).data.source.name == "field"                              # from another folder
    os.rename(pair.folder, tmp_path / "moved")
    moved = RunFolder(shutil.move(run.path, tmp_path / "elsewhere"))
    assert main.main(["evaluate", "--run", str(moved.path)]) == 2
    words = ["--data_path", str(tmp_path / "moved")]
    assert main.main(["evaluate", "--run", str(moved.path), *words]) == 0
    assert main.main(["--resume", str(moved.path), "--max_epoch", "3", *words]) == 0
    assert yaml.safe_load(moved.config.read_text())["source_name"] == str(tmp_path / "moved" / "field.yaml")


def test_a_scene_file_that_changed_before_a_resume_is_noticed(pair, tmp_path):
    run = pair.run("--method", "erm", save_path=tmp_path)
    pair.change(pair.source, rgb_bands=[3, 2, 1])                                  # of pictures alone
    main.train(["--resume", str(run.path), "--max_epoch", "3"])
    pair.change(pair.source, wavelengths=[[382, 1050, 48]])
    with pytest.raises(CheckpointError, match="source/wavelengths changed"):
        main.train(["--resume", str(run.path), "--max_epoch", "4"])


def test_a_checkpoint_without_wavelengths_loads(pair, tmp_path):
    run = pair.run("--method", "erm", save_path=tmp_path)
    saved = checkpoint.load_run(run.checkpoint)
    for name in ("wavelengths", "preprocessing", "said"):
        saved.pop(name)
    checkpoint.save(run.checkpoint, saved)
    assert main.main(["evaluate", "--run", str(run.path)]) == 0
    main.train(["--resume", str(run.path), "--max_epoch", "3"])


def test_a_folder_of_other_files_is_not_filled_with_simulated_scenes(pair, capsys):
    before = sorted(pair.folder.iterdir())
    assert main.main(["--source_name", "SimSource", "--target_name", "null", "--data_path", str(pair.folder), *SMALL]) == 2
    assert "holds other files" in capsys.readouterr().err and sorted(pair.folder.iterdir()) == before
