"""The per-pixel controls: what they collect, what they fit, and that a checkpoint holds all of it."""

import json

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.svm import SVC

import main
from conftest import batch, build, same_state
from model.errors import CheckpointError
from model.methods import pixel
from model.methods.pixel import ABSENT, RAREST, ForestClassifier, SVMClassifier, tuned
from utils.run import checkpoint

NAMES = ("svm", "random_forest")
CLASSIFIERS = (SVMClassifier, ForestClassifier)


def patches(spectra, size=5):
    """Patches [N, B, P, P] that are noisy around spectra [N, B], with exactly these means."""
    noise = torch.randn(*spectra.shape, size, size, generator=torch.Generator().manual_seed(0))
    return spectra[:, :, None, None] + noise - noise.mean((2, 3), keepdim=True)


def blobs(n, n_classes=3, bands=6, seed=0):
    """x, y: spectra [N, B] of well-separated classes, as patches."""
    y = torch.arange(n) % n_classes
    noise = 0.1 * torch.randn(n, bands, generator=torch.Generator().manual_seed(seed))
    return patches(torch.eye(bands)[y] + noise), y


def fitted(kind, x, y, n_classes=3):
    classifier = kind(x.shape[1], n_classes, 7)
    classifier.collect(x, y)
    return classifier


def test_collects_the_mean_spectra_of_the_augmented_batches():
    method, (x, y) = build(method="svm"), batch(10)
    assert method.update(x[:6], y[:6]) == {} and method.update(x[6:], y[6:]) == {}
    means = torch.tensor([[band.mean() for band in patch] for patch in x])
    torch.testing.assert_close(method.discriminator.spectra, means)
    assert torch.equal(method.discriminator.labels, y)


def test_collects_no_more_than_the_cap(monkeypatch):
    monkeypatch.setattr(pixel, "MOST", 8)
    method, (x, y) = build(method="svm"), batch(6)
    for _ in range(3):
        method.update(x, y)
    assert torch.equal(method.discriminator.labels, torch.cat([y, y[:2]]))
    assert torch.equal(method.discriminator.spectra[6:], method.discriminator.spectra[:2])


def test_logits_of_the_forest_are_its_log_probabilities():
    x, y = blobs(60)
    logits = fitted(ForestClassifier, x, y)(x)
    forest = RandomForestClassifier(pixel.TREES, random_state=7).fit(x.mean((2, 3)).numpy(), y.numpy())
    expected = np.log(np.maximum(forest.predict_proba(x.mean((2, 3)).numpy()), RAREST))
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_logits_of_the_svm_are_its_decision_function_on_scaled_bands():
    """Of two classes: with more, the function jumps by one where two machines of other classes disagree by a hair."""
    x, y = blobs(60, n_classes=2)
    classifier = fitted(SVMClassifier, x, y, n_classes=2)
    logits = classifier(x)
    spectra = x.mean((2, 3)).double().numpy()
    scaled = (spectra - spectra.mean(0)) / spectra.std(0)
    chosen = classifier.fitted[-1]
    expected = SVC(C=chosen.C, gamma=chosen.gamma).fit(scaled, y.numpy()).decision_function(scaled)
    np.testing.assert_allclose((logits[:, 1] - logits[:, 0]).numpy(), expected, rtol=1e-3, atol=1e-3)


def test_the_svm_answers_as_its_machines_vote():
    x, y = blobs(60)
    classifier = fitted(SVMClassifier, x, y)
    assert torch.equal(classifier(x).argmax(1), y)
    assert np.array_equal(classifier.fitted.predict(x.mean((2, 3)).numpy()), y.numpy())


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_classes_that_were_never_seen_stay_below_all_others(kind):
    x, y = blobs(40, n_classes=2)
    logits = fitted(kind, x, 2 * y, n_classes=4)(x)                      # classes 0 and 2 of 4
    assert logits.isfinite().all() and torch.equal(logits.argmax(1), 2 * y)
    assert (logits[:, [1, 3]] == ABSENT).all() and (logits[:, [0, 2]] > ABSENT).all()


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_two_classes_and_a_single_one(kind):
    x, y = blobs(40, n_classes=2)
    logits = fitted(kind, x, y, n_classes=2)(x)
    assert logits.shape == (40, 2) and torch.equal(logits.argmax(1), y)
    one = fitted(kind, x, torch.ones_like(y))(x)
    assert one.isfinite().all() and (one.argmax(1) == 1).all()


def test_the_grid_search_chooses_what_separates():
    """Rings around each other: a wide kernel cannot tell them apart, so that gamma has to grow."""
    rng = np.random.default_rng(0)
    angle, y = rng.uniform(0, 2 * np.pi, 600), np.arange(600) % 6
    spectra = (1 + y)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.05 * rng.standard_normal((600, 2))
    machine = tuned(spectra, y, 0)
    assert machine[-1].gamma > 1 / 2 and machine.fit(spectra, y).score(spectra, y) > 0.98


def test_rare_classes_take_no_part_in_the_search_but_are_learnt(recwarn):
    x, y = blobs(60)
    y[y == 2] = 1
    y[-1], x[-1] = 2, x[-1] + 5
    logits = fitted(SVMClassifier, x, y)(x)
    assert logits.argmax(1)[-1] == 2
    few = tuned(np.eye(4), np.arange(4), 0)
    assert (few[-1].C, few[-1].gamma) == (100.0, 1 / 4)
    assert not recwarn.list


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_fits_when_something_new_was_collected_and_only_then(kind, monkeypatch):
    x, y = blobs(30)
    classifier, fits = fitted(kind, x, y), []
    make = classifier.classifier
    monkeypatch.setattr(classifier, "classifier", lambda *given: fits.append(len(given[1])) or make(*given))
    classifier(x), classifier(x)
    classifier.load_state_dict({name: value.clone() for name, value in classifier.state_dict().items()})
    classifier(x)
    assert fits == [30]
    classifier.collect(x, y)
    classifier.fit(), classifier(x)
    assert fits == [30, 60]


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_loaded_state_of_another_size_fits_to_the_same_result(kind):
    (x, y), (other, _) = blobs(45), blobs(12, seed=1)
    classifier, loaded = fitted(kind, x, y), kind(6, 3, 99)
    loaded.collect(other, torch.arange(12) % 3)
    before = loaded(other)
    checkpoint.load_discriminator(loaded, classifier.state_dict(), "here")
    assert same_state(loaded.state_dict(), classifier.state_dict())
    assert torch.equal(loaded(other), classifier(other)) and not torch.equal(loaded(other), before)
    with pytest.raises(CheckpointError, match="spectra has shape"):
        checkpoint.load_discriminator(kind(7, 3, 0), classifier.state_dict(), "here")


@pytest.mark.parametrize("name", NAMES)
def test_options_of_networks_do_nothing(name):
    """Neither averaged weights nor re-estimated statistics, which some recipes have."""
    found = []
    for entries in ({}, {"recipe": "robust", "batchnorm_statistics": "source"}):
        method, (x, y) = build(method=name, **entries), batch(12)
        method.update(x, y)
        with method.evaluating([(x, y)]):
            found.append(method.predict(x))
    assert torch.equal(*found)


def test_seeds_come_from_the_run():
    one, other = (build(method="random_forest", seed=seed) for seed in (0, 1))
    assert one.discriminator.seed != other.discriminator.seed
    assert one.discriminator.seed == build(method="random_forest", seed=0).discriminator.seed


@pytest.mark.slow_but("svm")
@pytest.mark.parametrize("name", NAMES)
def test_a_run_can_be_gone_on_with_and_evaluated(name, pair, tmp_path, capsys):
    run = pair.run("--method", name, "--max_epoch", "5", "--oracle", "--validators", save_path=tmp_path)
    assert [record["epoch"] for record in run.records(run.epochs)] == [1]
    evaluation = run.evaluation.read_text()
    assert main.main(["--resume", str(run.path)]) == 0 and run.evaluation.read_text() == evaluation
    capsys.readouterr()
    assert main.main(["evaluate", "--run", str(run.path)]) == 0
    confusion = np.array(json.loads(evaluation)["rules"]["last"]["confusion"])
    assert f"OA {100 * confusion.trace() / confusion.sum():.2f}" in capsys.readouterr().out


@pytest.mark.slow
def test_maps_figures_and_tables_of_a_run(pair, tmp_path, capsys):
    run = pair.run("--method", "svm", save_path=tmp_path / "runs")
    assert main.main(["figures", str(run.path)]) == 0 and main.main(["tables", str(tmp_path / "runs")]) == 0
    assert {path.stem for path in run.figures.glob("*.png")} == {"losses", "spectra", "patches", "pair", "maps",
                                                                 "confusion"}
    assert "svm" in (tmp_path / "runs" / "pairs.md").read_text()
    assert main.main(["export", "--run", str(run.path)]) == 2 and "nothing to export" in capsys.readouterr().err
