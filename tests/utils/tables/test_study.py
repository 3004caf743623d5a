"""The study: synthetic run folders with known values -> points, tables and figures."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import main
from figure_checks import legend_texts, legible
from model.errors import UserError
from table_runs import write_settings
from utils.figures import study as study_figures
from utils.tables import study

LAYERS = ("stages.0.spectral.involution.conv1.bn", "stages.0.spectral_norm", "stages.0.spatial_norm",
          "stages.1.spectral_norm")
GENERATED = ("gradient_mi", "gradient_consistency_max", "rms_ratio_a", "rms_ratio_b", "cosine_a", "cosine_b", "ce_a",
             "ce_b", "ce_a_mix", "ce_b_mix")


def score(value):
    return {"oa": value, "aa": value - 0.1, "kappa": value - 0.2, "macro_f1": value - 0.3, "per_class": [value, None]}


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_run(folder, label="erm", seed=0, val=(0.5, 0.6), target=(0.4, 0.5), steps=100, status="done", pair="AB",
              shifted=None, im=None, diagnostics=None, data="one", uses_target=False, **settings):
    """A run folder with a value per epoch in val, target, shifted and im; diagnostics: records."""
    about = write_settings(folder, label, seed=seed, oracle=True, **settings)
    (folder / "run.json").write_text(json.dumps(about | {"source": pair[0], "target": pair[1], "status": status,
                                                         "sha256": {"cube": data}, "uses_target": uses_target}))
    shifts = [{}] * len(val) if shifted is None else \
        [{"shifted_source": score(value) | {"views": {}}} for value in shifted]
    write_lines(folder / "epochs.jsonl", [{"epoch": k, "losses": {"ce": 1.0}, "seconds": 2.5, "steps": steps,
                                           "source_val": score(value), **shift}
                                          for k, (value, shift) in enumerate(zip(val, shifts), 1)])
    write_lines(folder / "oracle.jsonl", [{"epoch": k, "target": score(value), "confusion": [[2, 1], [0, 1]]}
                                          for k, value in enumerate(target, 1)])
    if im is not None:
        write_lines(folder / "validators.jsonl", [{"epoch": k, "entropy": -value, "im": value, "snd": 2 + value,
                                                   "uses": "unlabelled target"} for k, value in enumerate(im, 1)])
    if diagnostics is not None:
        write_lines(folder / "diagnostics.jsonl", diagnostics)
    return folder


def measured(epoch, value, names=GENERATED):
    return {"epoch": epoch, "ce_source": value, **{f"variance_ratio_{layer}": value for layer in LAYERS},
            **{name: value for name in names}}


def write_study(folder, pairs=("AB", "CD"), labels=("erm", "s2amsnet paper"), seeds=4, epochs=5):
    """Runs whose target score rises with shifted-source and falls with source-val."""
    draw = np.random.default_rng(0)
    for number, (pair, label, seed) in enumerate((p, m, s) for p in pairs for m in labels for s in range(seeds)):
        good = 0.3 + 0.4 * draw.random() + np.linspace(0, 0.2, epochs)
        names = () if label.startswith("erm") else GENERATED
        records = [measured(k, 10.0 ** draw.uniform(-1, 1), names) for k in range(epochs + 1)]
        write_run(folder / f"run{number}", label, seed, val=1 - good / 10, target=good, shifted=good / 2,
                  im=draw.random(epochs), pair=pair, steps=2000, diagnostics=records)


def test_a_point_per_epoch_with_steps_and_all_that_was_recorded(tmp_path):
    write_run(tmp_path / "a", shifted=(0.7, 0.8), im=(0.1, 0.2), diagnostics=[measured(0, 3.0), measured(2, 5.0)])
    points = study.read([tmp_path])
    assert list(points["epoch"]) == [0, 1, 2] and list(points["step"]) == [0, 100, 200]
    assert set(points["pair"]) == {"A → B"} and set(points["name"]) == {"erm"} and points["finished"].all()
    last = points.iloc[-1]
    assert (last["source_val_oa"], last["shifted_source_aa"], last["target_kappa"]) == (0.6, pytest.approx(0.7), 0.3)
    assert (last["im"], last["gradient_mi"], last[f"variance_ratio_{LAYERS[2]}"]) == (0.2, 5.0, 5.0)
    assert points["gradient_mi"].isna().tolist() == [False, True, False]
    assert last["constant_oa"] == 0.75 and last["constant_aa"] == 0.5 and last["constant_kappa"] == 0


def test_a_ceiling_ranks_nothing(tmp_path):
    """Which score tells good runs from bad ones is asked of runs on the source alone; the constant answer is theirs."""
    write_study(tmp_path / "runs", pairs=("AB",))
    before = study.read([tmp_path])
    folder = write_run(tmp_path / "top", seed=9, target=(0.9, 0.95), shifted=(0.1, 0.1), im=(0.1, 0.2), ceiling=True)
    write_lines(folder / "oracle.jsonl", [{"epoch": k, "target": score(0.9), "confusion": [[9, 1], [0, 0]]}
                                          for k in (1, 2)])
    points = study.read([tmp_path])
    pd.testing.assert_frame_equal(study.selection(points), study.selection(before))
    (table,), (expected,) = (study.score_tables(each).values() for each in (points, before))
    assert table.index[-2] == "ceiling (erm)" and table.loc["ceiling (erm)", "target κ"] == "70.0"
    assert table.drop("ceiling (erm)").equals(expected)
    assert "Ceiling: " in study.make_tables(points)["scores"][0]


def test_missing_files_and_keys_leave_gaps(tmp_path):
    folder = write_run(tmp_path / "a", diagnostics=[{"epoch": 0, "ce_source": 2.0}])
    (folder / "oracle.jsonl").unlink()
    points = study.read([tmp_path])
    assert points[["target_kappa", "shifted_source_oa", "entropy", "constant_oa"]].isna().all(axis=None)
    table, = study.score_tables(points).values()
    assert list(table.index) == ["erm"] and table.loc["erm", "source-val OA"] == "60.0"
    assert table.loc["erm", "target κ"] == "–"
    assert study.selection(points).empty and list(study.make_tables(points)) == ["scores"]
    assert list(study_figures.draw(points)) == ["scores", "classifier"]


def test_unfinished_runs_count_up_to_their_last_finished_epoch(tmp_path):
    write_run(tmp_path / "a", seed=0)
    folder = write_run(tmp_path / "b", seed=1, val=(0.4,), target=(0.2, 0.9), status="running")
    with open(folder / "epochs.jsonl", "a") as file:
        file.write('{"epoch": 2, "source')                              # cut short by a crash
    write_run(tmp_path / "c", seed=2, val=(), target=())
    table, = study.score_tables(study.read([tmp_path])).values()
    assert table.loc["erm", "n"] == "2 (1 unfinished)" and table.loc["erm", "steps"] == "100–200"
    assert table.loc["erm", "target OA"] == "35.0 ± 21.2" and table.loc["erm", "seconds"] == "4"


def test_scores_at_the_last_step(tmp_path):
    for seed, (val, target) in enumerate([(0.9, 0.5), (0.8, 0.6), (0.7, 0.7)]):
        write_run(tmp_path / f"{seed}", seed=seed, val=(0.1, val), target=(0.9, target),
                  shifted=(0.5, 0.5) if seed == 0 else None)
    write_run(tmp_path / "other", "s2amsnet paper")
    (title, table), = study.score_tables(study.read([tmp_path])).items()
    assert title == "A → B (percent, mean ± std over n seeds, rule last)"
    assert list(table.index) == ["erm", "s2amsnet paper", "constant answer"]
    assert list(table.loc["erm"]) == ["3", "200", "80.0 ± 10.0", "50.0 (n=1)", "60.0 ± 10.0", "50.0 ± 10.0",
                                      "40.0 ± 10.0", "40.0 ± 10.0", "5"]
    assert list(table.loc["constant answer"]) == ["–", "–", "–", "–", "75.0", "50.0", "0.0", "–", "–"]


def test_kappa_of_the_second_half_is_a_mean_over_its_evaluations(tmp_path):
    write_run(tmp_path / "even", target=(0.9, 0.3, 0.5, 0.7), val=(0.5,) * 4)
    write_run(tmp_path / "odd", seed=1, target=(0.9, 0.5, 0.7), val=(0.5,) * 3)
    last = study.last_epochs(study.read([tmp_path])).set_index("seed")["second_half_kappa"]
    assert last[0] == pytest.approx(0.6 - 0.2) and last[1] == pytest.approx(0.6 - 0.2)      # score(): κ is OA - 0.2


def test_rank_correlations_agree_with_scipy(tmp_path):
    write_study(tmp_path)
    points = study.read([tmp_path])
    found = study.selection(points).set_index(["pair", "score"])
    ends = points[(points["epoch"] == 5) & (points["pair"] == "C → D")]
    assert len(ends) == 8
    for name, column in (("source-val", "source_val_oa"), ("shifted-source", "shifted_source_oa"), ("IM", "im")):
        row = found.loc["C → D", name]
        assert row["n"] == 8
        assert row["rho_kappa"] == pytest.approx(spearmanr(ends[column], ends["target_kappa"]).statistic)
        assert row["rho_oa"] == pytest.approx(spearmanr(ends[column], ends["target_oa"]).statistic)
    within = [spearmanr(run["im"], run["target_kappa"], nan_policy="omit").statistic
              for _, run in points[points["pair"] == "C → D"].groupby("folder")]
    assert found.loc[("C → D", "IM"), "rho_epochs"] == pytest.approx(np.mean(within))
    assert found.loc[("C → D", "shifted-source"), "rho_kappa"] == 1
    assert found.loc[("C → D", "source-val"), "rho_epochs"] == pytest.approx(-1)
    assert found.loc[("C → D", "entropy"), "rho_kappa"] == pytest.approx(-found.loc[("C → D", "SND"), "rho_kappa"])


def test_correlations_need_four_pairs_that_vary():
    assert study.rank_correlation(np.array([1, 2, 3, 4]), np.array([1, 3, 9, 27])) == 1
    for a in ([1, 2, 3, np.nan], [1, 1, 1, 1]):
        assert np.isnan(study.rank_correlation(np.array(a), np.array([1, 3, 9, 27])))


def test_regret_is_what_the_selected_epoch_lacks(tmp_path):
    write_run(tmp_path / "a", seed=0, val=(0.9, 0.9, 0.8, 0.7), target=(0.5, 0.6, 0.8, 0.7), im=(0.4, 0.3, 0.2, 0.1))
    write_run(tmp_path / "b", seed=1, val=(0.6, 0.9, 0.8, 0.7), target=(0.9, 0.6, 0.7, 0.5), im=(0.4, 0.3, 0.2, 0.1))
    points = study.read([tmp_path])
    found = study.selection(points).set_index("score")["regret"]
    assert found["source-val"] == pytest.approx((0.2 + 0.3) / 2)        # among equals the latest epoch
    assert found["IM"] == pytest.approx((0.3 + 0.0) / 2)
    assert found["entropy"] == found["last"] == pytest.approx((0.1 + 0.4) / 2)
    assert "shifted-source" not in found


def test_selection_table_marks_what_reads_the_target_and_leaves_out_what_is_too_few(tmp_path):
    write_run(tmp_path / "a", val=(0.9, 0.8, 0.7, 0.6), target=(0.5, 0.6, 0.7, 0.8), im=(0.4, 0.3, 0.2, 0.1))
    write_run(tmp_path / "b", seed=1, val=(1.0,) * 4, target=(0.5, 0.6, 0.7, 0.8))
    table, = study.selection_tables(study.selection(study.read([tmp_path]))).values()
    assert list(table["uses"]) == ["no target"] * 2 + ["uses unlabelled target"] * 3
    assert list(table.loc["source-val"]) == ["no target", "2", "–", "–", "-1.00 (n=1)", "15.0"]
    assert list(table.loc["IM"]) == ["uses unlabelled target", "1", "–", "–", "-1.00", "30.0"]
    assert list(table.loc["last"]) == ["no target", "2", "–", "–", "1.00", "0.0"]


def test_methods_that_saw_the_target_are_marked(tmp_path):
    write_run(tmp_path / "b", "erm")
    assert "†" not in study.make_tables(study.read([tmp_path]))["scores"][0]
    write_run(tmp_path / "a", "dsan", uses_target=True)
    text, _ = study.make_tables(study.read([tmp_path]))["scores"]
    assert "| dsan †          |" in text and "| erm             |" in text
    assert "\n† sees unlabelled target patches while it trains.\n" in text
    assert text.endswith("dsan: losses of the method on the backbone of S²AMSnet, not its authors' network.")


def test_norms_are_geometric_means_of_the_last_record(tmp_path):
    write_run(tmp_path / "a", seed=0, diagnostics=[measured(0, 7.0), measured(1, 0.1)])
    write_run(tmp_path / "b", seed=1, diagnostics=[measured(2, 10.0)])
    write_run(tmp_path / "c", "s2amsnet paper")
    points = study.read([tmp_path])
    ratios = study.norm_ratios(points)
    assert list(ratios.columns) == ["stage 0 spectral involution", "stage 0 spectral", "stage 0 spatial",
                                    "stage 1 spectral"]
    assert list(ratios.index) == [("A → B", "erm")]
    np.testing.assert_allclose(ratios.to_numpy(), 1)
    assert list(study.make_tables(points)) == ["scores", "selection", "norms"]


def test_runs_of_other_settings_or_other_data_stay_apart(tmp_path):
    write_run(tmp_path / "a", lr=0.1)
    write_run(tmp_path / "b", lr=0.2)
    write_run(tmp_path / "c", pair="CD", data="two", simulation={"severity": 2.0, "seed": 0})
    write_run(tmp_path / "d", pair="CD", validators=True, patience=None)
    write_run(tmp_path / "e", pair="EF", data="one")
    write_run(tmp_path / "f", pair="EF", data="two")
    points = study.read([tmp_path])
    names = points.groupby("pair")["name"].unique().map(sorted)
    assert names["A → B"] == ["erm lr=0.1", "erm lr=0.2"]
    assert names["C → D (severity 2, seed 0)"] == names["C → D (severity 1, seed 0)"] == ["erm"]
    assert len(names) == 5 and sum("E → F (data " in pair for pair in names.index) == 2


def test_damaged_and_repeated_runs_are_left_out_with_a_word(tmp_path, caplog):
    write_run(tmp_path / "a", target=(0.2, 0.2), status="running")
    write_run(tmp_path / "b", val=(0.1, 0.2, 0.3), target=(0.5, 0.5, 0.5), status="running")
    (write_run(tmp_path / "c", seed=1) / "run.json").write_text("{")
    write_run(tmp_path / "d", seed=2, val=(), target=(), status="running")
    table, = study.score_tables(study.read([tmp_path])).values()
    assert table.loc["erm", "n"] == "1 (1 unfinished)" and table.loc["erm", "target OA"] == "50.0"
    assert f"{tmp_path / 'a'} is left out: it repeats" in caplog.text
    assert f"{tmp_path / 'c'} is left out: its records are damaged" in caplog.text
    assert f"{tmp_path / 'd'} is left out: it has no finished epoch" in caplog.text
    with pytest.raises(UserError, match="No run with a finished epoch"):
        study.read([tmp_path / "d"])


def rows_of(figure, columns):
    return [axes.get_ylabel().replace("\n", " ") for axes in figure.axes[::columns]]


@pytest.mark.slow_but("pairs0")
@pytest.mark.parametrize("pairs", [("AB",), ("AB", "CD")])
def test_figures_have_their_panels_and_legends(tmp_path, pairs):
    write_study(tmp_path, pairs=pairs, seeds=3)
    drawn = study_figures.draw(study.read([tmp_path]))
    assert list(drawn) == ["scores", "gradients", "images", "classifier", "norms", "selection"]
    n, both = len(pairs), ["erm (n=3)", "s2amsnet paper (n=3)"]
    assert rows_of(drawn["scores"], n) == ["source-val OA (%)", "shifted-source OA (%)", "target κ × 100"]
    assert rows_of(drawn["gradients"], n) == ["‖∇MI‖", "‖∇C‖"]
    assert rows_of(drawn["images"], n) == ["rms x̂ / rms x", "cos(x̂, x)"]
    assert rows_of(drawn["classifier"], n)[:3] == ["CE of x (nats)", "CE of x̂ (nats)", "CE of mixed x̂ (nats)"]
    assert [legend_texts(drawn[name]) for name in ("scores", "classifier", "selection")] == [both] * 3
    assert [legend_texts(drawn[name]) for name in ("gradients", "images")] == [both[1:]] * 2
    titles = [f"{pair[0]} → {pair[1]}" for pair in pairs]
    assert [axes.get_title() for axes in drawn["scores"].axes[:n]] == titles
    assert [axes.get_title() for axes in drawn["norms"].axes[:n]] == titles
    assert len(drawn["selection"].axes) == 5 * n
    for name, figure in drawn.items():
        assert legible(figure), name


@pytest.mark.slow
def test_six_pairs_fit_side_by_side(tmp_path):
    write_study(tmp_path, pairs=("AB", "CD", "EF", "GH", "IJ", "KL"), seeds=1, epochs=2)
    points = study.read([tmp_path])
    for figure, rows in ((study_figures.plot_curves(points, study_figures.SCORES, "scores"), 3),
                         (study_figures.plot_selection(study.last_epochs(points)), 5)):
        assert len(figure.axes) == 6 * rows and legible(figure)


def test_more_methods_than_can_be_told_apart_get_tables_but_no_figures(tmp_path, caplog, monkeypatch):
    """The figures of 10,000 runs in 50 settings were a page of thousands of curves, and took minutes."""
    monkeypatch.setattr(study_figures, "MOST_METHODS", 2)
    write_study(tmp_path, labels=("erm", "coral", "mixup"), seeds=1)
    assert study_figures.draw(study.read([tmp_path])) == {} and "3 methods cannot be told apart" in caplog.text
    monkeypatch.setattr(study_figures, "MOST_METHODS", 3)
    assert study_figures.draw(study.read([tmp_path]))


def test_a_line_is_the_mean_and_the_band_the_range(tmp_path):
    for seed, values in enumerate([(0.2, 1.0), (0.4, 100.0), (0.9, 10.0)]):
        write_run(tmp_path / f"{seed}", seed=seed, target=(0.4, values[0]),
                  diagnostics=[measured(0, 5.0), measured(1, 0.0), measured(2, values[1])])
    drawn = study_figures.draw(study.read([tmp_path]))
    kappa = drawn["scores"].axes[1]
    line, = kappa.lines
    np.testing.assert_allclose(line.get_xdata(), [0.1, 0.2])
    np.testing.assert_allclose(line.get_ydata(), [20, 30])
    assert kappa.collections[0].get_datalim(kappa.transData).ymax == pytest.approx(70)
    gradient = drawn["gradients"].axes[0]
    assert gradient.get_yscale() == "log"
    np.testing.assert_allclose(gradient.lines[0].get_ydata(), [5, 10])         # a log scale has no place for 0
    assert [line.get_linestyle() for line in drawn["images"].axes[0].lines] == ["-", "--"]
    assert {axes.get_yscale() for axes in drawn["classifier"].axes[:3]} == {"symlog"}


def test_scatter_shows_every_run_with_its_rank_correlation(tmp_path):
    write_study(tmp_path, pairs=("AB",))
    figure = study_figures.draw(study.read([tmp_path]))["selection"]
    titles = [axes.get_title().replace("\n", " ") for axes in figure.axes]
    assert titles[:2] == ["A → B source-val ρ = -1.00 (n=8)", "shifted-source ρ = 1.00 (n=8)"]
    assert [("uses unlabelled target" in title) for title in titles] == [False, False, True, True, True]
    for axes in figure.axes:
        assert sorted(len(line.get_xdata()) for line in axes.lines) == [4, 4]
    shifted, kappa = figure.axes[1].lines[0].get_data()
    np.testing.assert_allclose(2 * np.asarray(shifted) - 20, kappa)


def test_a_method_has_one_colour_and_its_own_n(tmp_path):
    write_study(tmp_path, seeds=2)
    write_run(tmp_path / "more", "erm", seed=9, target=(0.4, 0.5))
    drawn = study_figures.draw(study.read([tmp_path]))
    colours = {name: {line.get_color() for line in figure.legends[0].get_lines()} for name, figure in drawn.items()
               if figure.legends}
    assert colours["gradients"] == colours["images"] < colours["scores"] == colours["selection"]
    assert legend_texts(drawn["scores"]) == ["erm (n=3/2)", "s2amsnet paper (n=2)"]
    many = study_figures.method_colours(pd.DataFrame({"name": list("abcdefghijklmnopqr")}))
    assert len(set(map(str, many.values()))) == 18


@pytest.mark.slow
def test_the_command_writes_figures_tables_and_their_command(tmp_path, capsys):
    write_study(tmp_path / "runs", pairs=("AB",))
    page, out = tmp_path / "page.md", tmp_path / "diagnosis"
    page.write_text("<!-- diagnosis/scores -->\n<!-- /diagnosis/scores -->")
    words = ["study", str(tmp_path / "runs"), "--out", str(out), "--insert", str(page)]
    assert main.main(words) == 0
    assert {path.name for path in out.iterdir()} == {
        *(f"{name}.png" for name in ("scores", "gradients", "images", "classifier", "norms", "selection")),
        *(f"{name}.{kind}" for name in ("scores", "selection", "norms") for kind in ("md", "csv"))}
    for name in ("scores", "selection", "norms"):
        text = (out / f"{name}.md").read_text()
        assert "**A → B" in text and f"Made by `python main.py {' '.join(words)}`" in text
    assert "| s2amsnet paper " in page.read_text() and "Spearman" not in page.read_text()
    assert len(pd.read_csv(out / "scores.csv")) == 8 and len(pd.read_csv(out / "selection.csv")) == 6
    assert "uses unlabelled target" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_names_what_is_wrong(tmp_path, capsys):
    assert main.main(["study", str(tmp_path)]) == 2
    assert "No run with a finished epoch" in capsys.readouterr().err
    write_study(tmp_path / "runs", pairs=("AB",), seeds=1)
    (tmp_path / "page.md").write_text("no marks")
    assert main.main(["study", str(tmp_path / "runs"), "--insert", str(tmp_path / "page.md")]) == 2
    assert "<!-- runs/scores -->" in capsys.readouterr().err
