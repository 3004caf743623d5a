"""What is done when weights are applied: averaging of runs, statistics of another scene, adaptation."""

import json

import numpy as np
import pytest
import rasterio
import torch
import yaml

import main
from datasets.correction import reference_of
from datasets.harmonize import preprocess, unit_spectra
from datasets.readers import load_scene
from utils.run.build import scene_sampler, spread_sampler
from utils.run.metrics import confusion_matrix, scores
from utils.run.predict import probabilities, scene_probabilities
from utils.trained.adapt import LEAST_SHARE, adapt, scene_shares
from utils.trained.load import load_run

CORRECTED = ("--method", "erm", "--scene_correction", "ratio", "--reference_branch", "0.7", "--max_epoch", "16",
             "--eval_interval", "16")


@pytest.fixture
def run(trained):
    return trained(*CORRECTED)


@pytest.fixture
def target(shared_pair):
    return load_scene(str(shared_pair.target))


def printed_kappa(capsys, *words: str) -> float:
    capsys.readouterr()
    assert main.main(["evaluate", *words]) == 0
    return float(capsys.readouterr().out.split("kappa ")[1].split()[0])


def test_evaluate_repeats_the_scores_of_a_corrected_run(run, capsys):
    score = json.loads(run.evaluation.read_text())["rules"]["last"]["target"]
    assert printed_kappa(capsys, "--run", str(run.path)) == pytest.approx(100 * score["kappa"], abs=0.01)


def test_probabilities_of_runs_are_averaged(run, trained, target, capsys, tmp_path):
    """In scores and in the map; the members differ in recipe and correction."""
    other = trained("--method", "erm", "--seed", "5")
    words = ["--run", str(run.path), str(other.path)]
    loaded = [load_run(one) for one in (run, other)]
    samplers = [scene_sampler(target, one.config, one.device) for one in loaded]
    total = sum(probabilities(one.method, sampler) for one, sampler in zip(loaded, samplers)) / 2
    assert torch.allclose(total.sum(1), torch.ones(len(total)), atol=1e-5)
    expected = scores(confusion_matrix(samplers[0].labels.numpy(), total.argmax(1).numpy(), target.n_classes))
    assert printed_kappa(capsys, *words) == pytest.approx(100 * expected.kappa, abs=0.01)
    assert main.main(["predict", *words, "--out", str(tmp_path / "both.tif")]) == 0
    with rasterio.open(tmp_path / "both.tif") as file:
        labels = file.read(1)
    cubes = [preprocess(target.cube, one.config.scene_correction) for one in loaded]
    whole = sum(scene_probabilities(one.method, cube, 5, one.device, "auto", progress=False)
                for one, cube in zip(loaded, cubes))
    assert np.array_equal(labels, whole.argmax(2) + 1)


def test_runs_of_other_classes_are_not_averaged(run, trained, pair, tmp_path, capsys):
    pair.change(pair.source, class_names=[f"class {k}" for k in range(7)])
    other = pair.run("--method", "erm", "--target_name", "null", "--max_epoch", "1", save_path=tmp_path / "others")
    assert main.main(["evaluate", "--run", str(run.path), str(other.path)]) == 2
    assert "trained on other classes" in capsys.readouterr().err


def test_statistics_come_from_another_scene(run, trained, shared_pair, target, tmp_path, capsys, caplog):
    """A window of the target with the whole one's statistics sees what the whole target sees there."""
    window = np.s_[:20, :30]
    with rasterio.open(tmp_path / "window.tif", "w", driver="GTiff", height=20, width=30, count=48,
                       dtype="float32") as file:
        file.write(np.moveaxis(target.cube[window], 2, 0))
    scene = tmp_path / "window.yaml"
    scene.write_text(yaml.safe_dump({"name": "window", "cube": {"file": "window.tif"},
                                     "class_names": list(target.class_names)}))
    maps = {}
    for name, words in {"own": [], "other": ["--statistics_from", str(shared_pair.target)]}.items():
        caplog.clear()
        out = str(tmp_path / f"{name}.tif")
        assert main.main(["predict", "--run", str(run.path), "--scene", str(scene), "--out", out, *words]) == 0
        with rasterio.open(out) as file:
            maps[name] = file.read(1)
        assert ("600 pixels with data" in caplog.text) == (name == "own")
    loaded = load_run(run)
    reference = reference_of(unit_spectra(target.cube))
    expected = scene_probabilities(loaded.method, preprocess(target.cube[window], "ratio", reference), 5, loaded.device,
                                   "auto", progress=False).argmax(2) + 1
    assert np.array_equal(maps["other"], expected) and not np.array_equal(maps["own"], maps["other"])
    plain = trained("--method", "erm")
    assert main.main(["evaluate", "--run", str(plain.path), "--statistics_from", str(shared_pair.target)]) == 2
    assert "has no use" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["bn", "tent"])
def test_adaptation_reads_no_label(run, target, how):
    """BatchNorm's statistics become the scene's; with Tent predictions are more decided than with statistics alone."""
    found, entropy = [], []
    for labels in (target.labels, np.zeros_like(target.labels)):
        loaded = load_run(run)
        object.__setattr__(target, "labels", labels)
        sampler = spread_sampler(target, scene_sampler(target, loaded.config, loaded.device).cube, loaded.config)
        before = [value.clone() for value in loaded.method.discriminator.state_dict().values()]
        adapt(loaded.method, sampler, how)
        after = list(loaded.method.discriminator.state_dict().values())
        assert any(not torch.equal(one, other) for one, other in zip(before, after))
        p = probabilities(loaded.method, sampler)
        entropy.append(float(-(p * p.clamp_min(1e-9).log()).sum(1).mean()))
        found.append(after)
    assert all(torch.equal(one, other) for one, other in zip(*found))
    if how == "tent":
        loaded = load_run(run)
        adapt(loaded.method, sampler, "bn")
        p = probabilities(loaded.method, sampler)
        assert entropy[0] < float(-(p * p.clamp_min(1e-9).log()).sum(1).mean())


def test_a_classifier_without_batch_norm_cannot_adapt(trained, capsys):
    forest = trained("--method", "random_forest")
    assert main.main(["evaluate", "--run", str(forest.path), "--adapt", "bn"]) == 2
    assert "no BatchNorm" in capsys.readouterr().err


def test_shares_of_a_scene_are_found_where_the_probabilities_are_right():
    """Two classes of known densities; the scene has other shares than training; no share is below the least."""
    random, truth, trained_on = np.random.default_rng(0), np.array([0.9, 0.07, 0.03]), np.array([0.2, 0.5, 0.3])
    labels = random.choice(3, 20000, p=truth)
    values = random.normal(2.0 * labels, 1.0)
    density = np.exp(-0.5 * (values[:, None] - 2.0 * np.arange(3)) ** 2)                                   # [N, K]
    p = density * trained_on / (density * trained_on).sum(1, keepdims=True)
    shares = scene_shares(p, trained_on)
    assert shares.sum() == pytest.approx(1) and np.abs(shares - truth).max() < 0.01
    before, after = ((q.argmax(1) == labels).mean() for q in (p, p * shares / trained_on))
    assert after > before + 0.05
    assert scene_shares(p, trained_on) == pytest.approx(scene_shares(p[::-1], trained_on))
    sure = np.eye(3)[np.zeros(50, int)]
    assert scene_shares(sure, trained_on).min() == pytest.approx(LEAST_SHARE)
    assert scene_shares(np.full((5, 1000), 1e-3), np.full(1000, 1e-3)) == pytest.approx(np.full(1000, 1e-3))


@pytest.mark.parametrize("several", [False, True])
def test_probabilities_are_weighed_by_the_shares_of_the_scene(run, trained, target, capsys, caplog, tmp_path, several):
    """In scores and in the map, of one run and of averaged ones; one of them had balanced batches."""
    others = [trained("--method", "erm", "--balanced_batches", "on")] * several
    folders = [str(one.path) for one in (run, *others)]
    loaded = [load_run(one) for one in (run, *others)]
    counts = np.array(run.read_run()["training_pixels"])
    assert counts.tolist() == np.bincount(loaded[0].data.train.labels).tolist()
    trained_on = np.mean([counts / counts.sum(), *[np.full(7, 1 / 7)] * several], axis=0)
    cubes = [preprocess(target.cube, one.config.scene_correction) for one in loaded]
    whole = sum(scene_probabilities(one.method, cube, 5, one.device, "auto", progress=False)
                for one, cube in zip(loaded, cubes)) / len(loaded)
    shares = scene_shares(whole.reshape(-1, 7), trained_on)                 # it has fewer pixels than are looked at
    expected = (whole * (shares / trained_on).astype(np.float32)).argmax(2)
    assert not np.array_equal(expected, whole.argmax(2))
    there = target.labels > 0
    kappa = scores(confusion_matrix(target.labels[there] - 1, expected[there], 7)).kappa
    assert printed_kappa(capsys, "--run", *folders, "--adapt", "prior") == pytest.approx(100 * kappa, abs=0.01)
    names = target.class_names
    assert f"{names[0]} {100 * shares[0]:.1f} % ({100 * trained_on[0]:.1f} %)" in caplog.text
    gone = [name for name, share in zip(names, shares) if share < 0.002]
    assert f"has hardly any {', '.join(gone)}. Where" in caplog.text if gone else "hardly any" not in caplog.text
    words = ["--adapt", "prior", "--out", str(tmp_path / "map.tif")]
    assert main.main(["predict", "--run", *folders, *words]) == 0
    with rasterio.open(tmp_path / "map.tif") as file:
        assert np.array_equal(file.read(1), expected + 1)
    assert main.main(["evaluate", "--run", *folders, "--adapt", "prior"]) == 0
    assert "adapted by prior" in capsys.readouterr().out


def test_shares_of_training_must_be_known(trained, shared_pair, tmp_path, capsys):
    run = trained("--method", "erm")
    words = ["evaluate", "--adapt", "prior", "--scene", str(shared_pair.target)]
    assert main.main(["export", "--run", str(run.path), "--out", str(tmp_path / "best.pth")]) == 0
    run.run.write_text(json.dumps({key: value for key, value in run.read_run().items() if key != "training_pixels"}))
    assert main.main([*words, "--run", str(run.path)]) == 2
    assert "does not say how many pixels of each class were trained on" in capsys.readouterr().err
    assert main.main([*words, "--weights", str(tmp_path / "best.pth")]) == 2
    assert "which --weights do not tell" in capsys.readouterr().err
