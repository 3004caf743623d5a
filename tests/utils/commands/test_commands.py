"""The commands beside train, on real runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from PIL import Image

import main
from conftest import same_state
from datasets.readers import load_scene
from forked import finish
from model.settings import flipped_switches, recipe_switches
from utils.released import weights
from utils.run import checkpoint
from utils.run.config import parse_train
from utils.run.folder import RunFolder
from utils.sweep.sweep import SweepConfig, sweep_runs

PAPER = ("--recipe", "paper", "--oracle")


@pytest.fixture
def run(trained):
    return trained(*PAPER)


def test_evaluate_repeats_the_recorded_scores(run, capsys):
    capsys.readouterr()
    for rule in ("last", "source-val", "shifted-source"):
        assert main.main(["evaluate", "--run", str(run.path), "--rule", rule]) == 0
        score = json.loads(run.evaluation.read_text())["rules"][rule]["target"]
        printed = capsys.readouterr().out
        assert f"OA {100 * score['oa']:.2f}" in printed and f"kappa {100 * score['kappa']:.2f}" in printed


def test_predict_writes_a_map_that_agrees_with_evaluate(run, shared_pair):
    scene = load_scene(str(shared_pair.target))
    assert main.main(["predict", "--run", str(run.path), "--scene", str(shared_pair.target)]) == 0
    with rasterio.open(run.path / "coast_map.tif") as file:
        labels = file.read(1)
        assert file.tags()["class_1"] == "grass healthy"
    assert labels.shape == scene.shape and labels.min() >= 1
    right = (labels == scene.labels)[scene.labels > 0].mean()
    assert right == pytest.approx(json.loads(run.evaluation.read_text())["rules"]["last"]["target"]["oa"])
    assert Image.open(run.path / "coast_map.png").width > 300


@pytest.mark.slow
def test_predict_maps_a_new_scene_without_the_training_data(pair, tmp_path, scenes, capsys):
    run = pair.run(*PAPER, save_path=tmp_path / "runs")
    for path in pair.folder.iterdir():
        path.unlink()
    cube = scenes[1].cube[:20, :30].copy()
    cube[3, 4] = 0                              # no data
    transform = rasterio.transform.from_origin(500000, 4000000, 1, 1)
    with rasterio.open(tmp_path / "new.tif", "w", driver="GTiff", height=20, width=30, count=48, dtype="float32",
                       crs="EPSG:32615", transform=transform) as file:
        file.write(np.moveaxis(cube, 2, 0))
    (tmp_path / "new.yaml").write_text(yaml.safe_dump({"name": "new", "cube": {"file": "new.tif"},
                                                       "class_names": list(scenes[1].class_names)}))
    assert main.main(["predict", "--run", str(run.path), "--scene", str(tmp_path / "new.yaml"),
                      "--out", str(tmp_path / "map.tif")]) == 0
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.crs.to_epsg() == 32615 and file.transform == transform and file.shape == (20, 30)
        labels = file.read(1)
        assert file.nodata == 0 and labels[3, 4] == 0 and (labels == 0).sum() == 1
    words = ["--run", str(run.path), "--scene", str(tmp_path / "new.yaml")]
    assert main.main(["evaluate", *words]) == 2
    assert main.main(["predict", *words, "--out", "map.png"]) == 2
    assert "must end in .tif" in capsys.readouterr().err


def test_released_checkpoints_are_written_and_read_bit_by_bit(run, shared_pair, tmp_path, capsys):
    path = tmp_path / "best.pth"
    assert main.main(["export", "--run", str(run.path), "--out", str(path)]) == 0
    ours = checkpoint.load(run.checkpoint)["state"]["selected"]["last"]["discriminator"]
    theirs = checkpoint.load(path)
    assert list(theirs) == ["Discriminator"]
    assert "Spectral_Weight_1.f_inv_12.conv1.conv.weight" in theirs["Discriminator"]
    state, task, width = weights.read_weights(path)
    assert same_state(state, dict(ours)) and (task.bands, task.n_classes, task.patch_size, width) == (48, 7, 5, 8)
    capsys.readouterr()
    assert main.main(["evaluate", "--run", str(run.path)]) == 0
    assert main.main(["evaluate", "--weights", str(path), "--scene", str(shared_pair.target), "--kernel_activation",
                      "none"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:len(lines) // 2] == lines[len(lines) // 2 + 1:] and "these weights" in lines[1]
    maps = []
    for words in (["--run", str(run.path)], ["--weights", str(path), "--kernel_activation", "none"]):
        out = tmp_path / f"map{len(maps)}.tif"
        assert main.main(["predict", *words, "--scene", str(shared_pair.target), "--out", str(out)]) == 0
        with rasterio.open(out) as file:
            maps.append(file.read(1))
    np.testing.assert_array_equal(*maps)


def test_weights_that_do_not_fit_are_named(run, shared_pair, tmp_path, capsys):
    path = tmp_path / "best.pth"
    main.main(["export", "--run", str(run.path), "--out", str(path)])
    words = ["evaluate", "--weights", str(path), "--scene", str(shared_pair.target)]
    content = checkpoint.load(path)["Discriminator"]
    for spoil, message in ((lambda s: s.pop("fc1.weight"), "fc1.weight"),
                           (lambda s: s.update(x=s["fc1.bias"]), "holds x"),
                           (lambda s: s.pop("Weight_Alpha"), "lacks branch_logits"),
                           (lambda s: s.update({"fc1.bias": s["fc1.bias"][:-1]}), "shape")):
        spoiled = dict(content)
        spoil(spoiled)
        checkpoint.save(path, {"Discriminator": spoiled})
        assert main.main(words) == 2
        assert message in capsys.readouterr().err
    checkpoint.save(path, {"model": content})
    assert main.main(words) == 2 and "no 'Discriminator'" in capsys.readouterr().err
    assert main.main(["evaluate"]) == 2 and "either --run" in capsys.readouterr().err


def test_figures_of_a_run(run, capsys):
    before = run.checkpoint.read_bytes()
    assert main.main(["figures", str(run.path)]) == 0
    names = {path.stem for path in run.figures.glob("*.png")}
    assert names == {"losses", "spectra", "patches", "pair", "maps", "confusion"}
    assert sorted(capsys.readouterr().out.split()) == sorted(map(str, run.figures.glob("*.png")))
    for path in run.figures.glob("*.png"):
        assert np.asarray(Image.open(path).convert("L")).std() > 5
    assert run.checkpoint.read_bytes() == before


@pytest.mark.slow
def test_figures_of_a_control_without_a_target(pair, tmp_path):
    run = pair.run("--method", "erm_gain", "--target_name", "null", save_path=tmp_path)
    assert main.main(["figures", str(run.path)]) == 0
    assert {path.stem for path in run.figures.glob("*.png")} == {"losses", "spectra", "patches"}


def test_tables_are_printed_and_written(run, capsys):
    assert main.main(["tables", str(run.path.parent)]) == 0
    text = (run.path.parent / "pairs.md").read_text()
    assert "s2amsnet paper" in text and "field → coast" in text and "constant answer" in capsys.readouterr().out
    assert len((run.path.parent / "runs.csv").read_text().splitlines()) == 5       # heading, three rules, oracle


def test_gradient_norms_are_recorded_and_tabled(run, capsys):
    records = run.records(run.diagnostics)
    assert [record["epoch"] for record in records] == [0, 1, 2]
    assert all(record["gradient_mi"] > 0 and record["gradient_consistency_max"] > 0 for record in records)
    assert main.main(["tables", str(run.path.parent), "--layout", "gradients"]) == 0
    printed = capsys.readouterr().out
    assert "s2amsnet paper, start" in printed and "s2amsnet paper, end" in printed
    ratio = records[0]["gradient_mi"] / records[0]["gradient_consistency_max"]
    assert f"{ratio:.1e}" in (run.path.parent / "gradients.md").read_text()


def test_a_path_with_a_nul_is_told_in_one_line(run, pair, tmp_path, capsys):
    for words in (pair.words("--method", "erm", "--save_path", f"{tmp_path}/a\0b"),
                  ["predict", "--run", str(run.path), "--out", f"{tmp_path}/a\0b.tif"]):
        assert main.main(words) == 2
        assert "holds a NUL" in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_is_no_run_is_named(tmp_path, capsys):
    for words in (["evaluate", "--run", str(tmp_path)], ["figures", str(tmp_path)], ["tables", str(tmp_path)]):
        assert main.main(words) == 2
        assert str(tmp_path) in capsys.readouterr().err


def write_sweep(path, pair, tmp_path, **entries):
    settings = dict(zip((w.removeprefix("--") for w in pair.words()[::2]), map(yaml.safe_load, pair.words()[1::2])))
    content = {"config": [], "settings": settings | {"max_epoch": 1}, "seeds": [0, 1],
               "variants": [{"method": "erm"}, {"recipe": "paper", "ablate": ["no_noise"]}],
               "save_path": str(tmp_path / "sweep")}
    path.write_text(yaml.safe_dump(content | entries))


def a_run_of_the_sweep(pair, tmp_path):
    """The folder of the sweep's run of ERM with seed 0, trained here: what the sweep itself would leave."""
    return pair.run("--method", "erm", "--max_epoch", "1", "--seed", "0", save_path=tmp_path / "sweep").path


@pytest.mark.slow
def test_a_sweep_runs_what_is_missing_and_nothing_twice(pair, tmp_path, capsys):
    write_sweep(tmp_path / "sweep.yaml", pair, tmp_path)
    code, said = finish(["sweep", str(tmp_path / "sweep.yaml"), "--seeds", "0"])
    assert code == 0, said
    folders = sorted((tmp_path / "sweep").iterdir())
    folders = [folder for folder in folders if folder.is_dir()]
    assert len(folders) == 2 and all(RunFolder(folder).read_run()["status"] == "done" for folder in folders)
    assert "2/2" in said and "step/s" not in said       # one bar over all; what the runs say is in their logs
    assert all("selection rule" in (folder / "log.txt").read_text() for folder in folders)
    times = [(folder / "evaluation.json").stat().st_mtime_ns for folder in folders]
    RunFolder(folders[0]).update_run(status="interrupted")
    assert finish(["sweep", str(tmp_path / "sweep.yaml"), "--seeds", "0"])[0] == 0
    after = [(folder / "evaluation.json").stat().st_mtime_ns for folder in folders]
    assert after[0] > times[0] and after[1] == times[1]
    assert main.main(["sweep", str(tmp_path / "sweep.yaml"), "--print"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 2 and all("--seed 1" in command for command in commands)


def test_a_sweep_goes_on_with_a_run_that_was_killed_before_its_first_step(pair, tmp_path, capsys):
    write_sweep(tmp_path / "sweep.yaml", pair, tmp_path, seeds=[0], variants=[{"method": "erm"}])
    run = a_run_of_the_sweep(pair, tmp_path)
    (run / "run.json").write_text('{"initial_weights": {}}')            # as between the first checkpoint and `begin`
    capsys.readouterr()
    assert main.main(["sweep", str(tmp_path / "sweep.yaml"), "--print"]) == 0
    assert f"--resume {run}" in capsys.readouterr().out


def test_a_sweep_takes_no_run_on_other_data_as_done(pair, tmp_path, capsys, caplog):
    write_sweep(tmp_path / "sweep.yaml", pair, tmp_path, seeds=[0], variants=[{"method": "erm"}])
    words, run = ["sweep", str(tmp_path / "sweep.yaml")], a_run_of_the_sweep(pair, tmp_path)
    before = (run / "evaluation.json").read_bytes()
    labels = pair.folder / "coast_gt.mat"
    kept = labels.read_bytes()
    labels.write_bytes(kept + b" ")
    assert main.main(words) == 2
    message = capsys.readouterr().err
    assert f"{run} was made with other data: target/coast_gt.mat changed" in message and "--save_path" in message
    labels.unlink()                                    # records alone are what tables are made of
    assert main.main(words) == 0 and "cannot be held against their data" in caplog.text
    labels.write_bytes(kept)
    assert main.main(words) == 0 and (run / "evaluation.json").read_bytes() == before
    assert [path for path in run.parent.iterdir() if path.is_dir()] == [run]


@pytest.mark.slow
def test_a_sweep_takes_no_run_of_other_settings_as_its_own(pair, tmp_path, capsys):
    write_sweep(tmp_path / "sweep.yaml", pair, tmp_path, seeds=[0], variants=[{"method": "erm"}])
    words, run = ["sweep", str(tmp_path / "sweep.yaml")], a_run_of_the_sweep(pair, tmp_path)
    settings = run / "config.yaml"
    now = settings.read_text()
    settings.write_text(now.replace("lr: 0.001", "lr: 0.5"))         # as if the default had been another one then
    for status in ("done", "interrupted"):
        RunFolder(run).update_run(status=status)
        assert main.main(words) == 2
        assert f"{run} was made with other settings: lr (0.5 there, 0.001 now)" in capsys.readouterr().err
    (run / "checkpoint.pt").unlink()                                 # never begun: nothing to lose
    assert main.main(words) == 0 and settings.read_text() == now and RunFolder(run).read_run()["status"] == "done"


def test_a_sweep_file_with_another_key_is_refused(tmp_path, capsys):
    (tmp_path / "sweep.yaml").write_text("methods: [erm]\n")
    assert main.main(["sweep", str(tmp_path / "sweep.yaml")]) == 2
    assert "methods" in capsys.readouterr().err


@pytest.mark.parametrize("entry", [{"variants": None}, {"config": "a.yaml"}, {"seeds": ["one"]}, {"settings": 3}])
def test_a_sweep_file_of_another_form_is_named(pair, tmp_path, capsys, entry):
    write_sweep(tmp_path / "sweep.yaml", pair, tmp_path, **entry)
    assert main.main(["sweep", "--print", str(tmp_path / "sweep.yaml")]) == 2
    assert next(iter(entry)) in capsys.readouterr().err


def test_the_switch_study_flips_every_switch_from_both_ends():
    path = Path(main.__file__).parent / "configs" / "sweep" / "switches.yaml"
    flips = {(config.recipe, *flipped_switches(config)) for run, _ in sweep_runs(path, SweepConfig(seeds=[0]))
             for config in [parse_train(run.words)]}
    differing = {name for name, value in recipe_switches("paper").items() if recipe_switches("released")[name] != value}
    for recipe in ("paper", "released"):
        assert (recipe,) in flips
        assert all((recipe, name) in flips for name in differing | {"generators", "source_ce", "batchnorm_statistics"})


def test_prepare_says_where_houston_comes_from(tmp_path, capsys):
    assert main.main(["prepare", "houston", "--out", str(tmp_path)]) == 2
    assert "hyperspectral.ee.uh.edu" in capsys.readouterr().err
