"""Records of many runs -> one frame: what belongs together, what is left out, and with what word."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from model.errors import UserError
from table_runs import made, texts, write_run
from utils import text
from utils.run import summary
from utils.run.config import parse_train
from utils.run.folder import RunFolder
from utils.run.planned import write_plan
from utils.tables import collect
from utils.text import insert_table


def test_every_rule_has_its_columns_and_says_how_many_runs_it_scored(tmp_path):
    write_run(tmp_path / "a", "erm", 0, 0.6, 0.5, shifted=0.4)
    write_run(tmp_path / "b", "erm", 1, 0.7, 0.6, shifted=0.5)
    write_run(tmp_path / "c", "erm", 2, 0.8, 0.7)
    runs, (table,) = collect.collect([tmp_path]), made(tmp_path)
    assert [column.split(":")[0] for column in table.columns if column.endswith(": OA")] == [
        "last", "source-val", "shifted-source"]
    row = texts(table)["erm"]
    assert [row[name] for name in ("n", "last: OA", "shifted-source: OA")] == ["3", "70.0 ± 10.0", "45.0 ± 7.1 (n=2)"]
    assert table.cell("constant answer", "shifted-source: OA").text == "50.0"
    assert list(runs["shifted_source"]) == [0.8] * 8
    text = summary.run_table(RunFolder(tmp_path / "a"))
    assert "shifted-source OA" in text and "\n| shifted-source " in text and "80.0" in text
    assert "\n| shifted-source " not in summary.run_table(RunFolder(tmp_path / "c"))
    assert "unlabelled" not in text
    write_run(tmp_path / "d", "dsan", 0, 0.6, 0.5, uses_target=True)
    assert "seed 0, unlabelled target seen (percent; n=1)" in summary.run_table(RunFolder(tmp_path / "d"))


def test_runs_of_different_settings_are_never_averaged(tmp_path):
    write_run(tmp_path / "a", "erm", 0, 0.6, 0.5, max_epoch=1)
    write_run(tmp_path / "b", "erm", 0, 0.8, 0.5, max_epoch=2)
    table, = made(tmp_path)
    assert list(table.rows) == ["erm max_epoch=1", "erm max_epoch=2", "constant answer"]
    assert [(row["n"], row["last: OA"]) for row in texts(table).values()][:2] == [("1", "60.0"), ("1", "80.0")]


def test_unfinished_runs_make_a_row_partial(tmp_path):
    write_run(tmp_path / "a", "erm", 0, 0.6, 0.5)
    write_run(tmp_path / "b", "erm", 1, 0.8, 0.5, status="interrupted")
    row = texts(made(tmp_path)[0])["erm"]
    assert row["n"] == "1/2" and row["last: OA"] == "60.0"


def test_runs_that_a_sweep_has_yet_to_begin_make_a_row_partial(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"a{seed}", "erm", seed, 0.6, 0.5, lr=0.1)
        write_run(tmp_path / f"b{seed}", "erm", seed, 0.6, 0.5, lr=0.2)
    configs = [replace(parse_train(["--method", "erm", "--lr", str(lr)]), seed=seed)
               for lr in (0.1, 0.3) for seed in range(4)]
    write_plan(tmp_path, "table", configs)
    assert {name: row["n"] for name, row in texts(made(tmp_path)[0]).items()} == {
        "erm lr=0.1": "2/4", "erm lr=0.2": "2", "constant answer": "–"}
    write_plan(tmp_path, "other", configs[:1])
    write_plan(tmp_path, "table", configs[:3])                       # what a sweep means to run now counts
    assert texts(made(tmp_path)[0])["erm lr=0.1"]["n"] == "2/3"


def test_a_repetition_and_a_damaged_folder_are_left_out_with_a_word(tmp_path, caplog):
    write_run(tmp_path / "a", "erm", 0, 0.6, 0.5)
    write_run(tmp_path / "b", "erm", 0, 0.9, 0.5)
    write_run(tmp_path / "c", "erm", 1, 0.6, 0.5)
    (tmp_path / "c" / "evaluation.json").write_text('{"rules"')
    write_run(tmp_path / "d", "erm", 2, 0.6, 0.5)
    (tmp_path / "d" / "run.json").unlink()
    write_run(tmp_path / "e", "erm", 3, 0.6, 0.5)
    (tmp_path / "e" / "evaluation.json").unlink()
    row = texts(made(tmp_path)[0])["erm"]
    assert row["last: OA"] == "60.0" and row["n"] == "1"
    assert "repeats the setting" in caplog.text and caplog.text.count("damaged") == 3


def test_a_finished_run_goes_before_an_unfinished_twin_and_an_oracle_before_none(tmp_path):
    write_run(tmp_path / "a", "erm", 0, 0.1, 0.1, status="failed")
    write_run(tmp_path / "b", "erm", 0, 0.6, 0.5)
    write_run(tmp_path / "c", "erm", 0, 0.6, 0.5, oracle=0.9)
    honest, oracle = made(tmp_path)
    assert texts(honest)["erm"]["n"] == "1" and texts(honest)["erm"]["last: OA"] == "60.0"
    assert texts(oracle)["erm"]["oracle: OA"] == "90.0"


def test_runs_on_different_data_are_never_averaged(tmp_path):
    write_run(tmp_path / "a", "erm", 0, 0.9, 0.5, data="real")
    write_run(tmp_path / "b", "erm", 1, 0.1, 0.5, data="surrogate")
    first, second = made(tmp_path)
    assert first.title != second.title and all(" (data " in table.title for table in (first, second))
    assert [texts(table)["erm"]["last: OA"] for table in (first, second)] in (["90.0", "10.0"], ["10.0", "90.0"])


def test_gradients_of_different_pairs_are_never_averaged(tmp_path):
    write_run(tmp_path / "a", "s2amsnet paper", 0, 0.9, 0.5)
    write_run(tmp_path / "b", "s2amsnet paper", 0, 0.9, 0.5, target="C")
    table, = made(tmp_path, "gradients")
    assert {row["n"] for row in texts(table).values()} == {"1"} and len(table.rows) == 4


def test_mean_and_sample_deviation():
    assert text.mean_std(pd.Series([0.5])) == "50.0"
    assert text.mean_std(pd.Series([0.1, 0.2, 0.3])) == "20.0 ± 10.0"


def test_one_run_as_text(tmp_path):
    write_run(tmp_path / "a", "erm", 3, 0.6, 0.5, oracle=0.7)
    text = summary.run_table(RunFolder(tmp_path / "a"))
    assert "seed 3" in text and "n=1" in text and "oracle; not an honest score" in text
    assert "| y     | –        | 0      |" in text


def test_no_runs_is_an_error(tmp_path):
    with pytest.raises(UserError, match="No finished run"):
        collect.collect([tmp_path])


def test_a_table_is_put_between_its_marks(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("above <!-- demo/pairs -->old<!-- /demo/pairs --> below")
    insert_table(path, "demo/pairs", "| new |")
    assert path.read_text() == "above <!-- demo/pairs -->\n| new |\n<!-- /demo/pairs --> below"
    with pytest.raises(UserError, match="switches/pairs"):
        insert_table(path, "switches/pairs", "")


ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name)
def test_tables_on_a_page_are_those_under_figure(page):
    text = page.read_text()
    for name in re.findall(r"<!-- (\w+/\w+) -->", text):
        shown = text.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- /{name} -->")[0]
        made = (ROOT / "figure" / f"{name}.md").read_text().partition("\n\nMade by")[0].rstrip("\n")
        assert shown == made


def test_scores_of_other_classes_leave_a_run_out(tmp_path, caplog):
    write_run(tmp_path / "a", "erm", 0, 0.6, 0.5)
    write_run(tmp_path / "b", "erm", 1, 0.6, 0.5)
    content = json.loads((tmp_path / "b/evaluation.json").read_text())
    content["rules"]["last"]["target"]["per_class"] = [0.5] * 3
    content["rules"]["last"]["confusion"] = [[1] * 3] * 3
    (tmp_path / "b/evaluation.json").write_text(json.dumps(content))
    assert set(collect.collect([tmp_path])["seed"]) == {0}
    assert "its scores are not of the 2 classes of run.json" in caplog.text
