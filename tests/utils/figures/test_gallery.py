"""Figures that compare methods: what they show, and that it can be read."""

import json

import numpy as np
import pandas as pd
import pytest

import main
from figure_checks import legend_texts, legible, shown
from model.errors import UserError
from table_runs import write_run
from utils.figures import of_runs
from utils.figures.comparison import plot_features, plot_map_gallery, plot_seeds, plot_severity

CLASSES = ("grass", "road", "water")


def scores(names=("erm", "s2amsnet robust"), severities=(0.0, 1.0, 2.0), seeds=range(3), pair="A → B"):
    """A row per run with a known κ: 0.9 - 0.1·severity + 0.01·seed, the second method 0.2 lower."""
    return pd.DataFrame([{"pair": pair, "name": name, "severity": severity, "seed": seed, "aa": 0.5,
                          "kappa": 0.9 - 0.1 * severity + 0.01 * seed - 0.2 * row}
                         for row, name in enumerate(names) for severity in severities for seed in seeds])


def test_maps_stand_beside_the_truth_with_one_legend():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (20, 30))
    maps = {f"method {k}: AA 50.0, κ 40.0": rng.integers(1, 4, (20, 30)) for k in range(5)}
    figure = plot_map_gallery(rng.random((20, 30, 5)), (3, 2, 1), labels, maps, CLASSES, "a pair")
    assert shown(figure) == ["scene, false colour", "ground truth", *maps]
    assert legend_texts(figure) == [*CLASSES, "unlabelled, no data"] and legible(figure)
    pictures = [axes.images[0].get_array() for axes in figure.axes]
    same = [len(np.unique(picture[labels == 1].reshape(-1, 3), axis=0)) == 1 for picture in pictures[1:]]
    assert same == [True] + [False] * 5                     # the truth shows the labels; the maps what was predicted


def test_features_show_every_class_of_both_domains():
    rng = np.random.default_rng(0)
    samples = {name: (rng.normal(size=(n, 2)), np.arange(n) % 3, np.repeat(["source", "target"], n // 2))
               for name, n in (("erm", 60), ("s2amsnet robust", 48), ("dsan", 60), ("svm", 60))}
    figure = plot_features(samples, CLASSES, "a pair")
    assert shown(figure) == list(samples) and legible(figure)
    assert legend_texts(figure) == [*CLASSES, "source, held out", "target"]
    for axes, (points, classes, domains) in zip(figure.axes, samples.values()):
        parts = iter(axes.collections)                          # class by class, the source's before the target's
        for k in range(3):
            for domain in ("source", "target"):
                np.testing.assert_array_equal(next(parts).get_offsets(), points[(classes == k) & (domains == domain)])


def test_severity_curves_are_the_means_in_percent():
    figure = plot_severity(scores(), "the simulated pair")
    kappa, aa = figure.axes
    assert legible(figure) and legend_texts(figure) == ["erm (n=3)", "s2amsnet robust (n=3)"]
    assert kappa.get_ylabel() == "target κ (%)" and aa.get_ylabel() == "target AA (%)"
    np.testing.assert_allclose(kappa.lines[0].get_xydata(), [[0, 91], [1, 81], [2, 71]])
    np.testing.assert_allclose(kappa.lines[1].get_ydata(), [71, 61, 51])
    low, high = (f(kappa.collections[0].get_paths()[0].vertices[:, 1]) for f in (np.min, np.max))
    assert (low, high) == pytest.approx((70, 92))


def test_severity_says_where_seeds_are_missing():
    table = scores()
    figure = plot_severity(table[~((table["name"] == "erm") & (table["severity"] == 2) & (table["seed"] > 0))], "x")
    assert legend_texts(figure)[0] == "erm (n=1 to 3)"


def test_seeds_are_points_in_the_order_of_the_means():
    names = ("a method with a name that is far too long for a single line of the figure", "erm")
    table = pd.concat([scores(names, severities=[1.0]), scores(names[1:], severities=[2.0], pair="C → D")])
    figure = plot_seeds(table, "seeds")
    left, right = figure.axes
    assert legible(figure) and legend_texts(figure) == ["a seed", "mean"]
    assert [text.get_text().replace("\n", " ") for text in left.get_yticklabels()] == list(names[::-1])
    points = [line.get_xdata() for line in left.lines if line.get_marker() == "."]
    np.testing.assert_allclose(points, [[60, 61, 62], [80, 81, 82]])
    assert len(right.lines) == 2                            # one method, its points and its mean


def test_drawn_pairs_have_severity_figures_of_their_own(tmp_path):
    for severity in (1.0, 2.0):
        for gap in ("fixed", "drawn"):
            write_run(tmp_path / f"{gap}{severity}", "erm", 0, 0.6, 0.5, data=f"{gap}{severity}", target="SimTarget",
                      simulation={"severity": severity, "gap": gap})
    assert sorted(of_runs.gallery("severity", [tmp_path])) == ["severity_A-SimTarget_0", "severity_A-SimTarget_drawn_0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, simulated):
    """A folder of runs of two methods on the simulated pair at two severities."""
    folder = tmp_path_factory.mktemp("runs")
    words = ["--config", "configs/simulated.yaml", "--data_path", simulated, "--pro_dim", "8", "--batch_size", "512",
             "--max_epoch", "1", "--gpu", "-1", "--save_path", str(folder)]
    for method in ("erm", "erm_gain"):
        main.train([*words, "--method", method, "--seed", "0"])
    main.train([*words, "--method", "erm", "--seed", "1"])
    assert main.main(["transfer", str(folder), "--severity", "2"]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("gallery")
def test_pairs_and_methods_are_told_apart(runs):
    table = of_runs.collect([runs])
    found = of_runs.named(table[table["rule"] == "last"])
    assert set(found["pair"]) == {f"SimSource → SimTarget (severity {k}, seed 0)" for k in (1, 2)}
    assert set(found["name"]) == {"erm", "erm_gain"} and len(found) == 6


@pytest.mark.slow
@pytest.mark.xdist_group("gallery")
@pytest.mark.parametrize("layout, files", [
    ("seeds", ["seeds.png"]), ("severity", ["severity_SimSource-SimTarget_0.png"]),
    ("maps", [f"maps_SimSource-SimTarget_severity_{k}_seed_0.png" for k in (1, 2)]),
    ("features", [f"features_SimSource-SimTarget_severity_{k}_seed_0.png" for k in (1, 2)])])
def test_figures_from_the_command_line(runs, tmp_path, capsys, monkeypatch, layout, files):
    monkeypatch.setattr(of_runs, "PER_CLASS", 10)           # samples enough for t-SNE
    assert main.main(["figures", str(runs), "--layout", layout, "--out", str(tmp_path), "--gpu", "-1"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert sorted(capsys.readouterr().out.split()) == [str(tmp_path / name) for name in files]


@pytest.mark.slow
@pytest.mark.xdist_group("gallery")
def test_maps_show_one_seed_that_methods_share(runs):
    drawn = of_runs.gallery("maps", [runs], gpu=-1)
    for figure in drawn.values():
        assert [name.split(":")[0] for name in shown(figure)[2:]] == ["erm", "erm_gain"]
    run = json.loads(next(runs.glob("*erm_gain*/evaluation.json")).read_text())["rules"]["last"]["target"]
    captions = [name for figure in drawn.values() for name in shown(figure)]
    assert f"erm_gain: AA {100 * run['aa']:.1f}, κ {100 * run['kappa']:.1f}" in captions


@pytest.mark.slow
@pytest.mark.xdist_group("gallery")
def test_severity_needs_two_of_them(runs):
    with pytest.raises(UserError, match="two severities"):
        of_runs.gallery("severity", list(runs.glob("*erm_gain*"))[:1])
