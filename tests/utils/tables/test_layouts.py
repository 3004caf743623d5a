"""Tables of many runs: golden ones fix their form; marks, notes, and every layout on records with known answers."""

from pathlib import Path

import pandas as pd
import pytest

import main
from figure_checks import legible
from model.errors import UserError
from table_runs import made, texts, write_run, write_seeds
from utils.figures.comparison import plot_ranks
from utils.tables import cells, markup
from utils.tables.markup import BEST, LEVEL, Cell, Table
from utils.tables.statistics import rank_methods


@pytest.fixture
def seeds(tmp_path):
    write_seeds(tmp_path)
    return tmp_path


# --- the form ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("layout", ["pairs", "summary", "overview", "per_class", "ranks"])
def test_golden_tables(layout, seeds):
    """The exact text of Markdown, CSV and LaTeX."""
    if layout in ("overview", "ranks"):
        for name in ("erm", "svm", "daan"):
            write_run(seeds / f"{name}_C", name, 0, len(name) / 10 + (name == "erm") / 5, 0.5, target="C",
                      uses_target=name == "daan")
    found = made(seeds, layout)
    forms = {"md": markup.as_markdown(found) + "\n", "csv": markup.as_csv(found), "tex": markup.as_latex(found) + "\n"}
    golden = Path(__file__).parent / "golden_tables"
    for ending, text in forms.items():
        assert text == (golden / f"{layout}.{ending}").read_text(encoding="utf-8"), ending


def test_latex_escapes_and_groups():
    table = Table("50 % of a_b", "x", {"p&q": {"n": Cell("1"), "last: OA": Cell("2 ± 1", BEST), "last: κ": Cell("–"),
                                               "oracle: OA": Cell("3", LEVEL)}}, ["# 1"])
    lines = markup.as_latex([table]).splitlines()
    assert lines[2] == r"\caption{50 \% of a\_b}" and lines[3] == r"\begin{tabular}{lrrrr}"
    assert lines[5] == r" &  & \multicolumn{2}{c}{last} & \multicolumn{1}{c}{oracle} \\"
    assert lines[6] == r"\cmidrule(lr){3-4}\cmidrule(lr){5-5}" and lines[7] == r"x & n & OA & $\kappa$ & OA \\"
    assert lines[9] == r"p\&q & 1 & \textbf{2 $\pm$ 1} & -- & \underline{3} \\"
    assert lines[-2] == r"\par\footnotesize \# 1"


def test_missing_cells_are_dashes_and_not_in_the_csv():
    table = Table("t", "m", {"a": {"x": Cell("1", numbers={"mean": 1.0})}, "b": {"y": Cell("2")}})
    assert "| a | 1 | – |" in markup.as_markdown([table]) and "| b | – | 2 |" in markup.as_markdown([table])
    assert len(markup.as_csv([table]).splitlines()) == 3


def test_drawn_pairs_are_one_sample(tmp_path):
    """Means over seeds first, then mean and std over pairs; tests over pairs; a pair drawn once is no sample."""
    scores = {"erm": (0.5, 0.6, 0.7, 0.65, 0.55), "svm": (0.6, 0.7, 0.8, 0.75, 0.66), "daan": (0.4, 0.5, 0.6, 0.5, 0.4)}
    for name, values in scores.items():
        for pair, value in enumerate(values):
            drawn = {"simulation": {"severity": 1.0, "seed": pair, "gap": "drawn"}, "data": f"pair {pair}"}
            for seed, shift in enumerate((-0.02, 0.02)):
                write_run(tmp_path / f"{name}{pair}{seed}", name, seed, value + shift, 0.5, **drawn)
    write_run(tmp_path / "once", "erm", 0, 0.9, 0.5, data="once", simulation={"severity": 2.0, "seed": 0})
    kappa, aa = made(tmp_path, "drawings")
    assert kappa.columns == ["severity 1, drawn gap"] and set(kappa.rows) == set(scores)
    cells_of = {name: kappa.rows[name]["severity 1, drawn gap"] for name in scores}
    assert [cells_of[name].text for name in scores] == ["40.0 ± 7.9", "50.2 ± 7.8", "28.0 ± 8.4"]
    assert (cells_of["svm"].mark, cells_of["erm"].mark) == (BEST, LEVEL) and cells_of["erm"].numbers["p"] == 2 * 2 ** -5
    assert aa.rows["erm"]["severity 1, drawn gap"].text == "50.0 ± 7.9"
    assert kappa.notes[-1].startswith("severity 1, drawn gap: Friedman p = 0.0067 over 5 pairs; mean ranks svm 1.0, erm 2.0")
    with pytest.raises(UserError, match="more than one --simulation.seed"):
        made(tmp_path / "once", "drawings")


def test_the_overview_sets_pairs_and_rules_beside_each_other(tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"a{seed}", "erm", seed, 0.6 + 0.1 * seed, 0.5, oracle=0.9)
        write_run(tmp_path / f"b{seed}", "erm", seed, 0.8, 0.5, target="C",
                  status="failed" if seed else "done")
        write_run(tmp_path / f"c{seed}", "dsu", seed, 0.7, 0.5)
        write_run(tmp_path / f"d{seed}", "mixup", seed, 0.7, 0.5, oracle=None if seed else 0.9)
    kappa, aa, source, gained = (texts(table) for table in made(tmp_path, "overview"))
    assert kappa["erm"] == {"n": "1–2", "A → B": "45.0 ± 7.1", "A → C": "60.0 (n=1/2)",
                                     "mean over pairs": "52.5"}
    assert kappa["dsu"] == {"n": "2", "A → B": "50.0 ± 0.0", "A → C": "–", "mean over pairs": "–"}
    assert kappa["constant answer"]["A → B"] == "30.0" and "constant answer" not in source
    assert aa["dsu"]["A → B"] == "60.0 ± 0.0" and source["dsu"]["A → B"] == "99.0 ± 0.0"
    assert gained == {"erm": {"n": "2", "A → B": "25.0 ± 7.1"},      # those without an oracle are not there,
                      "mixup": {"n": "1", "A → B": "20.0"}}          # nor do they count as unfinished
    val = made(tmp_path, "overview", "source-val")[0]
    assert "rule source-val" in val.title and texts(val)["erm"]["A → B"] == "30.0 ± 0.0"


def test_the_overview_marks_scores_that_can_be_compared(seeds):
    kappa, aa, source, gained = made(seeds, "overview")
    assert kappa.rows["erm"]["A → B"].mark == BEST == aa.rows["erm"]["A → B"].mark
    assert not any(cell.mark for table in (source, gained) for row in table.rows.values() for cell in row.values())
    assert kappa.rows["daan †"]["A → B"].text == "21.0 ± 0.9 (n=6/7)" and "†" in kappa.notes[0]


# --- marks ------------------------------------------------------------------------------------------------------------

def test_marks_of_the_best_and_of_what_is_no_worse(seeds):
    honest, oracle = made(seeds)
    marks = {name: row["last: OA"].mark for name, row in honest.rows.items()}
    assert marks == {"daan †": "", "erm": BEST, "svm": LEVEL, "constant answer": ""}
    daan, svm = (honest.rows[name]["last: OA"].numbers for name in ("daan †", "svm"))
    assert daan["p"] == pytest.approx(2 / 2 ** 6) and daan["r"] == 1 and 0 < svm["d_z"] < 2
    assert {name: row["source-val: OA"].mark for name, row in honest.rows.items()} == {
        "daan †": BEST, "erm": "", "svm": "", "constant answer": ""}
    assert "rules last, source-val" in honest.title and "not an honest score" in oracle.title
    assert not any(row["last: source-validation OA"].mark for name, row in honest.rows.items()
                   if name != "constant answer")
    assert honest.rows["daan †"]["n"].text == "6/7"
    assert not any(cell.mark for row in oracle.rows.values() for cell in row.values())      # nothing to compare with


def test_a_method_that_sees_the_target_is_marked_in_every_layout(tmp_path):
    for target, seed in (("B", 0), ("B", 1), ("C", 0)):
        for ablate in ([], ["no_mixing"]):
            for beta in (0.6, 1.0):
                write_run(tmp_path / f"{target}{seed}{ablate}{beta}", "daan paper", seed, 0.5 + 0.1 * seed, 0.5,
                          target=target, uses_target=True, ablate=ablate, beta=beta)
    for layout in ("pairs", "overview", "per_class", "ablation", "sensitivity", "ranks"):
        for table in made(tmp_path, layout):
            assert "†" in table.title + "".join([*table.rows, *table.columns]), layout
            assert cells.TARGET_MARKS["uses_target"][1] in table.notes, layout


def test_too_few_seeds_are_said_under_the_table_and_in_the_log(tmp_path, caplog):
    for seed in range(4):
        for name, score in (("erm", 0.9), ("svm", 0.1)):
            write_run(tmp_path / f"{name}{seed}", name, seed, score + 0.01 * seed, 0.5)
    table, = made(tmp_path)
    assert table.rows["svm"]["last: OA"].mark == LEVEL
    assert "nothing can be significant here; with 4 common seeds and 1 comparison the smallest p that can be reached " \
           "is 0.062" in table.notes[-1]
    assert "fewer than 5 common seeds" in caplog.text
    for name, score in (("erm", 0.9), ("svm", 0.1)):
        write_run(tmp_path / f"{name}4", name, 4, score, 0.5)
    caplog.clear()
    table, = made(tmp_path)
    assert table.rows["svm"]["last: OA"].mark == "" and table.notes == [cells.MARKS.format("seeds")] and not caplog.text


def test_equal_means_are_all_best(tmp_path):
    for seed in range(3):
        for name, score in (("dsu", 0.1 * (seed + 1)), ("erm", 0.1 * (3 - seed)), ("svm", 0.1)):
            write_run(tmp_path / f"{name}{seed}", name, seed, score, 0.5)
    table, = made(tmp_path)
    assert [table.rows[name]["last: OA"].mark for name in ("dsu", "erm", "svm")] == [BEST, BEST, LEVEL]
    assert {table.rows[name]["source-val: OA"].mark for name in ("dsu", "erm", "svm")} == {BEST}


def test_notes_where_only_some_have_enough_seeds():
    found, = cells.power_note([[10, 3], []], 1)
    assert found == "Marks: nothing can be significant where there are fewer than 5 common seeds."
    assert cells.power_note([[10] * 4], 1) == [] and cells.power_note([[]], 1) == []
    assert "5 common seeds and 1 comparison the smallest p that can be reached is 0.062" in "".join(
        cells.power_note([[5]], 2))


# --- layouts ----------------------------------------------------------------------------------------------------------

def test_per_class_scores(tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"a{seed}", "erm", seed, 0.6, 0.5, classes=(0.2 + 0.2 * seed, None))
        write_run(tmp_path / f"b{seed}", "svm", seed, 0.7, 0.4, classes=(0.1, None), oracle=0.8)
    table, = made(tmp_path, "per_class")
    assert texts(table)["x"] == {"erm": "30.0 ± 14.1", "svm": "10.0 ± 0.0", "constant answer": "50.0"}
    assert set(texts(table)["y"].values()) == {"–"} and list(table.rows) == ["x", "y", "OA", "AA", "κ", "n"]
    assert texts(table)["OA"] == {"erm": "60.0 ± 0.0", "svm": "70.0 ± 0.0", "constant answer": "50.0"}
    assert table.rows["x"]["erm"].mark == BEST and table.rows["OA"]["svm"].mark == BEST and "rule last" in table.title
    oracle, = made(tmp_path, "per_class", "oracle")
    assert "not an honest score" in oracle.title and oracle.columns == ["svm", "constant answer"]
    with pytest.raises(UserError, match="shifted-source"):
        made(tmp_path, "per_class", "shifted-source")


def s2amsnet(folder, seed, last, recipe="paper", **settings):
    write_run(folder / f"{recipe}_{settings}_{seed}", f"s2amsnet {recipe}", seed, last, 0.5, **settings)


def test_ablations_are_differences_to_the_same_method_over_common_seeds(tmp_path):
    for seed in range(6):
        s2amsnet(tmp_path, seed, 0.80 + 0.01 * seed)
        s2amsnet(tmp_path, seed, 0.85, patch_size=5)                                      # another group, without parts
        if seed:
            s2amsnet(tmp_path, seed, 0.70 + 0.02 * seed, ablate=["no_mixing"])
    table, = made(tmp_path, "ablation")
    assert table.title.startswith("A → B: s2amsnet paper patch_size=13, rule last") and table.corner == "without"
    assert list(table.rows) == ["– (the method)", "mixing", "constant answer"]
    row = table.rows["mixing"]
    assert row["Δ κ"].numbers["mean"] == pytest.approx(100 * (-0.1 + 0.03)) and row["n"].text == "5"
    assert row["Δ κ"].numbers["std"] == pytest.approx(1.5811, rel=1e-3) and row["Δ κ"].text == "-7.0 ± 1.6"
    assert row["p"].text == "0.062" and row["r"].text == "-1.00" and row["d_z"].text == "-4.43"
    assert "Δ OA" not in table.rows["– (the method)"] and table.rows["constant answer"]["OA"].text == "50.0"


def test_an_ablation_without_its_method_has_no_difference(tmp_path, caplog):
    s2amsnet(tmp_path, 0, 0.7, ablate=["no_mixing"])
    table, = made(tmp_path, "ablation")
    assert "Δ κ" not in table.columns and "no run of s2amsnet paper without a change" in caplog.text
    with pytest.raises(UserError, match="takes anything out"):
        made(tmp_path, "switches")


def test_switches_are_differences_to_the_recipe(tmp_path):
    for seed in range(3):
        s2amsnet(tmp_path, seed, 0.5)
        s2amsnet(tmp_path, seed, 0.6 + 0.01 * seed, source_ce="on")
        s2amsnet(tmp_path, seed, 0.5, kernel_activation="relu")
        s2amsnet(tmp_path, seed, 0.9, "released")
    table, = made(tmp_path, "switches")
    assert list(table.rows) == ["– (the recipe)", "kernel_activation=relu", "source_ce=on", "constant answer"]
    assert table.rows["source_ce=on"]["Δ OA"].text == "+11.0 ± 1.0"
    same = table.rows["kernel_activation=relu"]
    assert same["Δ OA"].text == "+0.0 ± 0.0" and same["p"].text == "1.000" and "d_z" in same and same["d_z"].text == "–"


def test_sensitivity_is_over_one_setting_alone(tmp_path):
    for seed in range(2):
        for size in (13, 5, 9):
            s2amsnet(tmp_path, seed, 0.5 + size / 100, patch_size=size)
        s2amsnet(tmp_path, seed, 0.9, patch_size=13, beta=1.0)
        s2amsnet(tmp_path, seed, 0.1, patch_size=7, beta=2.0)                    # differs in two settings
    found = {table.corner: table for table in made(tmp_path, "sensitivity")}
    assert set(found) == {"patch_size", "beta"}
    assert [(row, table["OA"]) for row, table in texts(found["patch_size"]).items()] == [
        ("5", "55.0 ± 0.0"), ("9", "59.0 ± 0.0"), ("13", "63.0 ± 0.0"), ("constant answer", "50.0")]
    assert [row for row in found["beta"].rows] == ["0.6", "1.0", "constant answer"]
    assert found["patch_size"].rows["13"]["OA"].mark == BEST
    with pytest.raises(UserError, match="differ in one setting alone"):
        made(next(tmp_path.glob("*beta*")), "sensitivity")


def test_sensitivity_is_over_whatever_number_or_list_varies(tmp_path):
    """Switches of the recipe too, which stand in a run's label."""
    for seed in range(2):
        s2amsnet(tmp_path, seed, 0.5)
        for weight in (0.1, 10.0):
            s2amsnet(tmp_path, seed, 0.6, mi_weight=weight)
        s2amsnet(tmp_path, seed, 0.7, contrast_layers=[4, 8])
        s2amsnet(tmp_path, seed, 0.8, consistency="kl")                          # neither
        for number in (5, 20):
            s2amsnet(tmp_path, seed, 0.9, samples_per_class=number)
    found = {table.corner: list(table.rows) for table in made(tmp_path, "sensitivity")}
    assert found == {"contrast_layers": ["4,8", "4,8,12,16", "constant answer"],
                     "mi_weight": ["0.1", "1.0", "10.0", "constant answer"],
                     "samples_per_class": ["5", "20", "constant answer"]}


def test_ranks_leave_out_what_was_not_run_everywhere(tmp_path, caplog):
    for target in "BCD":
        for place, name in enumerate(["erm", "svm", "dsu", "coral"]):
            if (name, target) != ("coral", "D"):
                write_run(tmp_path / name / target, name, 0, 0.9 - 0.1 * place, 0.5, target=target)
    table, = made(tmp_path, "ranks")
    assert list(table.rows) == ["erm", "svm", "dsu"] and "coral is left out" in caplog.text
    assert [row["mean rank"].text for row in table.rows.values()] == ["1.00", "2.00", "3.00"]
    assert [row["n"].text for row in table.rows.values()] == ["1", "1", "1"]
    assert "N = 3 pairs" in table.notes[0] and "fewer than 5 seeds" in table.notes[1]
    with pytest.raises(UserError, match="three methods"):
        made(tmp_path / "erm", "ranks")


@pytest.fixture
def with_ceilings(tmp_path):
    """Three seeds of four methods on two pairs, and a ceiling, on the second pair below ERM."""
    for target, high in (("B", 0.95), ("C", 0.3)):
        for seed in range(3):
            for name, score in {"erm": 0.5, "svm": 0.6, "daan": 0.4, "dsu": 0.35}.items():
                write_run(tmp_path / "honest" / f"{name}{target}{seed}", name, seed, score + seed / 100, 0.5,
                          target=target, oracle=0.9, uses_target=name == "daan")
            write_run(tmp_path / f"top{target}{seed}", "erm", seed, high + seed / 100, 0.5, target=target, ceiling=True,
                      oracle=0.99)
    return tmp_path


@pytest.mark.parametrize("layout", ["pairs", "summary", "overview", "ranks", "per_class"])
def test_a_ceiling_stands_last_and_is_not_compared(layout, with_ceilings):
    """Every other row is what it is without the ceiling."""
    found = {table.title: table for table in made(with_ceilings, layout)}
    for expected in made(with_ceilings / "honest", layout):
        table = found.pop(expected.title)
        names = table.columns if layout == "per_class" else list(table.rows)
        if "labels add" in table.title:
            assert table.rows == expected.rows
            continue
        assert names[-1] == "ceiling (erm)" and names[:-1] == (expected.columns if layout == "per_class" else
                                                               list(expected.rows))
        for row in expected.rows:
            assert {key: cell for key, cell in table.rows[row].items() if key != "ceiling (erm)"} == expected.rows[row]
        cells_of = [cell for row, cells in table.rows.items() for key, cell in cells.items()
                    if "ceiling (erm)" in (row, key)]
        assert cells_of and not any(cell.mark for cell in cells_of) and cells.CEILING_NOTE in table.notes
    assert all(title.startswith("Share of the way") for title in found) and bool(found) == (layout == "overview")


def test_the_share_of_the_way_to_the_ceiling(with_ceilings, caplog):
    """κ on B: erm 31, svm 41, daan 21, dsu 16, ceiling 76; on C the ceiling is below erm."""
    table = made(with_ceilings, "overview")[3]
    assert texts(table) == {name: {"n": "3", "A → B": share, "A → C": "–"}
                            for name, share in {"svm": "22", "daan †": "-22", "dsu": "-33"}.items()}
    assert table.rows["svm"]["A → B"].numbers["mean"] == pytest.approx(100 * 10 / 45)
    assert "erm to the ceiling, κ, rule last" in table.title and "Missing where" in table.notes[-1]
    for seed in range(3):                                       # a higher one takes its place; two rows of erm: none
        write_run(with_ceilings / f"other{seed}", "erm robust", seed, 0.6 + seed / 100, 0.5, target="C", ceiling=True)
        write_run(with_ceilings / f"wide{seed}", "erm", seed, 0.6, 0.5, target="B", pro_dim=64)
    shares = texts(made(with_ceilings, "overview")[3])["svm"]
    assert shares == {"n": "3", "A → B": "–", "A → C": "100"}
    assert made(with_ceilings, "overview")[0].rows["ceiling (erm robust)"]["A → C"].text == "41.0 ± 1.0"


def test_an_ablation_of_a_ceiling_is_a_table_of_its_own(tmp_path):
    for ceiling in (False, True):
        s2amsnet(tmp_path, 0, 0.7, ceiling=ceiling, ablate=["no_mixing"])
    titles = [table.title.partition(",")[0] for table in made(tmp_path, "ablation")]
    assert sorted(titles) == ["A → B: ceiling (s2amsnet paper)", "A → B: s2amsnet paper"]


def test_the_diagram_of_ranks_can_be_read():
    for n in (3, 8, 15):
        scores = {f"method {i} released †": [i + 0.3 * (i * pair % 5) for pair in range(4)] for i in range(n)}
        figure = plot_ranks(rank_methods(scores), "Mean ranks over pairs by κ, rule last")
        assert legible(figure)
        shown = [text.get_text() for text in figure.axes[0].texts]
        assert all(any(name in text for text in shown) for name in scores)


def test_the_command_writes_all_forms(seeds, capsys):
    write_run(seeds / "svmC", "svm", 0, 0.5, 0.5, target="C")
    write_run(seeds / "ermC", "erm", 0, 0.6, 0.5, target="C")
    write_run(seeds / "daanC", "daan", 0, 0.7, 0.5, target="C", uses_target=True)
    out = seeds / "out"
    for layout in ("pairs", "ranks"):
        assert main.main(["tables", str(seeds), "--layout", layout, "--out", str(out)]) == 0
        text = (out / f"{layout}.md").read_text()
        assert capsys.readouterr().out.strip() in text and "Made by `python main.py tables" in text
        assert pd.read_csv(out / f"{layout}.csv")["table"].nunique() == text.count("**A →") + (layout == "ranks")
        assert (out / f"{layout}.tex").read_text().count(r"\end{table}") >= 1
    assert (out / "ranks.png").stat().st_size > 1000
    assert {"uses_target", "kappa"} <= set(pd.read_csv(out / "runs.csv").columns)
    assert not {"folder", "per_class", "classes"} & set(pd.read_csv(out / "runs.csv").columns)
