"""How far a map may be trusted: calibration where there are labels, distance from the training scene where there are none."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

import main
from datasets.simulator import cache, simulate
from figure_checks import legible
from utils.commands.trust import shift_of
from utils.figures.trust import plot_trust
from utils.run.build import read_scene
from utils.run.config import Simulation, changed
from utils.trained import trust
from utils.trained.load import load_run


def made_up(n=4000, k=4, seed=0, scale=1.0):
    """Logits [n, k] of a calibrated classifier, times `scale`, and classes drawn from their softmax."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, k))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return scale * logits, (p.cumsum(1) < rng.random((n, 1))).sum(1), p


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_takes_back_by_what_logits_were_multiplied(scale):
    logits, y, _ = made_up(scale=scale)
    assert trust.temperature(logits, y) == pytest.approx(scale, rel=0.08)


def test_calibration_against_loops_and_scikit_learn():
    _, y, p = made_up(n=500)
    p = 0.7 * p + 0.3 * np.eye(4)[p.argmax(1)]                   # too sure of itself
    found = trust.calibration(p, y)
    surest, right, ece = p.max(1), p.argmax(1) == y, 0.0
    for low in np.arange(15) / 15:
        inside = (surest >= low) & (surest < low + 1 / 15)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - surest[inside].mean())
    assert found.ece == pytest.approx(ece) and found.ece > 0.05
    assert found.brier == pytest.approx(brier_score_loss(y, p, scale_by_half=False))
    assert found.nll == pytest.approx(log_loss(y, p))
    order = np.argsort(-surest, kind="stable")
    assert found.risk[99] == pytest.approx((~right[order[:100]]).mean()) and found.risk[-1] == pytest.approx((~right).mean())
    assert found.coverage[-1] == 1 and found.share.sum() == pytest.approx(1) and found.risk[0] <= found.risk[-1]


def test_band_distances_are_those_of_shifted_and_widened_spectra():
    rng = np.random.default_rng(0)
    source = rng.normal(size=(4000, 3)) * [1, 2, 3]
    scene = np.stack([source[:, 0] + 0.5, source[:, 1], 2 * source[:, 2]], 1)
    found = trust.band_distances(source, scene)
    assert found == pytest.approx([0.5, 0.0, np.sqrt(2 / np.pi)], abs=0.05)      # E|z| of a normal


def test_members_agree_pair_by_pair():
    assert trust.agreement([np.array([1, 2, 3, 3])]) is None
    one, two, three = np.array([1, 2, 3, 3]), np.array([1, 2, 3, 1]), np.array([2, 2, 3, 1])
    assert trust.agreement([one, two, three]) == pytest.approx((0.75 + 0.5 + 0.75) / 3)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run on the simulated pair, a sixth of its size, with targets of four severities."""
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate, "SHAPE", (60, 100))
        for severity in (0.0, 1.0, 2.0, 3.0):
            cache.scene_folder("SimTarget", str(folder), severity, 0)
    return main.train(["--config", "configs/simulated.yaml", "--data_path", str(folder), "--save_path", str(folder / "runs"),
                       "--method", "erm", "--pro_dim", "16", "--max_epoch", "3", "--gpu", "-1", "--seed", "0"])


@pytest.mark.slow
def test_the_sentence_gets_worse_with_the_gap_and_reads_no_label(small):
    trained, found, scenes = load_run(small), [], []
    for severity in (0.0, 1.0, 2.0, 3.0):
        scenes.append(read_scene(changed(trained.config, simulation=Simulation(severity=severity)), "SimTarget"))
        found.append(shift_of([trained], scenes[-1]))
    assert np.all(np.diff([shift.bands.mean() for shift in found]) > 0)
    levels, unlike = ([getattr(shift, name) for shift in found] for name in ("level", "unlike"))
    assert levels == sorted(levels) and levels[0] < levels[-1] == 3
    assert unlike[0] == min(unlike) and found[0].usual == pytest.approx(0.05, abs=0.01)
    unlabelled = replace(scenes[1], labels=np.zeros_like(scenes[1].labels))
    assert shift_of([trained], unlabelled).sentence("x") == found[1].sentence("x")
    own = read_scene(trained.config, "SimSource")
    assert shift_of([trained], own).bands.mean() < found[0].bands.mean()


def test_the_command_writes_page_numbers_and_picture(trained, tmp_path, capsys):
    runs = [trained("--method", name) for name in ("erm", "erm_gain")]
    words = [word for run in runs for word in ("--run", str(run.path))]
    assert main.main(["trust", "--run", str(runs[0].path), str(runs[1].path), "--out", str(tmp_path)]) == 0, words
    text = capsys.readouterr().out
    numbers = json.loads((tmp_path / "trust_coast.json").read_text())
    assert numbers["sentence"] in text and "two members agree on" in text and 0 <= numbers["agreement"] <= 1
    assert len(numbers["bands"]) == 48 and len(numbers["norms"]) == 9 and len(numbers["calibration"]) == 2
    assert text.strip() == (tmp_path / "trust_coast.md").read_text().strip() and (tmp_path / "trust_coast.png").exists()


def test_the_picture_is_legible_with_and_without_labels():
    shift = trust.Shift(np.linspace(0, 1, 48), {f"stages.{k}.spectral_norm": 0.1 * k for k in range(9)}, 0.4, 0.05)
    _, y, p = made_up(n=300)
    for calibrated in ({}, {"as trained": trust.calibration(p, y), "T = 1.20": trust.calibration(p, y)}):
        assert legible(plot_trust(shift, np.linspace(400, 1000, 48), calibrated, shift.sentence("coast")))


def test_a_run_without_held_out_pixels_is_refused(trained, capsys):
    run = trained("--method", "erm", "--training_sample_ratio", "1")
    assert main.main(["trust", "--run", str(run.path)]) == 2 and "none is held out" in capsys.readouterr().err
