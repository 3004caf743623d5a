"""Tables come from records only; a golden table fixes their form."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from utils import tables
from utils.errors import UserError
from utils.records import RunFolder


def write_run(folder, label, seed, last, val, oracle=None, shifted=None, status="done", data="one", target="B", **setting):
    folder.mkdir(parents=True)
    score = lambda x: {"oa": x, "aa": x - 0.1, "kappa": x - 0.2, "macro_f1": x - 0.3, "per_class": [x, None], "n": 10}
    entry = lambda x, epoch: {"epoch": epoch, "source_val": {"oa": 0.99}, "target": score(x), "confusion": [[1, 2], [0, 0]]}
    content = {"rules": {"last": entry(last, 9), "source-val": entry(val, 4)}, "constant": score(0.5)}
    if shifted is not None:
        content["rules"]["shifted-source"] = entry(shifted, 5)
        for rule in content["rules"].values():
            rule["shifted_source"] = {"oa": 0.8, "views": {}}
    if oracle is not None:
        content["oracle"] = entry(oracle, 7)
    if status == "done":
        (folder / "evaluation.json").write_text(json.dumps(content))
    (folder / "run.json").write_text(json.dumps({"label": label, "source": "A", "target": target, "seed": seed,
                                                 "classes": ["x", "y"], "status": status, "sha256": {"a": data}}))
    (folder / "diagnostics.jsonl").write_text('{"epoch": 0, "gradient_mi": 2, "gradient_consistency_max": 1}\n')
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "data_path": str(folder)} | setting))


GOLDEN = """\
| method          | n | last: source-validation OA | last: OA    | last: AA    | last: κ     | last: F1    | source-val: source-validation OA | source-val: OA | source-val: AA | source-val: κ | source-val: F1 |
|-----------------|---|----------------------------|-------------|-------------|-------------|-------------|----------------------------------|----------------|----------------|---------------|----------------|
| erm             | 2 | 99.0 ± 0.0                 | 65.0 ± 7.1  | 55.0 ± 7.1  | 45.0 ± 7.1  | 35.0 ± 7.1  | 99.0 ± 0.0                       | 55.0 ± 7.1     | 45.0 ± 7.1     | 35.0 ± 7.1    | 25.0 ± 7.1     |
| s2amsnet paper  | 1 | 99.0                       | 80.0        | 70.0        | 60.0        | 50.0        | 99.0                             | 70.0           | 60.0           | 50.0          | 40.0           |
| constant answer | – | –                          | 50.0        | 40.0        | 30.0        | 20.0        | –                                | 50.0           | 40.0           | 30.0          | 20.0           |"""


def squeeze(text):
    return [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if not line.startswith("|-")]


def test_golden_table(tmp_path):
    write_run(tmp_path / "a", "erm", 0, 0.6, 0.5)
    write_run(tmp_path / "b", "erm", 1, 0.7, 0.6, oracle=0.9)
    write_run(tmp_path / "c", "s2amsnet paper", 0, 0.8, 0.7)
    made = tables.pair_tables(tables.collect([tmp_path]))
    assert list(made) == ["A → B (percent, mean ± std over n seeds)",
                          "A → B, epoch selected on the target's labels (oracle; not an honest score)"]
    honest, oracle = made.values()
    assert squeeze(tables.markdown(honest, "method")) == squeeze(GOLDEN)
    assert not any("oracle" in column for column in honest) and list(oracle.index) == ["erm"]
    assert oracle.loc["erm", "oracle: OA"] == "90.0" and oracle.loc["erm", "n"] == "1"


def test_every_rule_has_its_columns_and_says_how_many_runs_know_it(tmp_path):
    write_run(tmp_path / "a", "erm", 0, 0.6, 0.5, shifted=0.4)
    write_run(tmp_path / "b", "erm", 1, 0.7, 0.6, shifted=0.5)
    write_run(tmp_path / "c", "erm", 2, 0.8, 0.7, patience=None)            # older than the rule
    runs = tables.collect([tmp_path])
    table, = tables.pair_tables(runs).values()
    assert [column.split(":")[0] for column in table.columns if column.endswith(": OA")] == [
        "last", "source-val", "shifted-source"]
    assert list(table.loc["erm", ["n", "last: OA", "shifted-source: OA"]]) == ["3", "70.0 ± 10.0", "45.0 ± 7.1 (n=2)"]
    assert table.loc["constant answer", "shifted-source: OA"] == "50.0"
    assert list(runs["shifted_source"].dropna()) == [0.8] * 6 and runs["shifted_source"].isna().sum() == 2
    text = tables.run_table(RunFolder(tmp_path / "a"))
    assert "shifted-source OA" in text and "| shifted-source " in text and "80.0" in text
    assert "shifted-source" not in tables.run_table(RunFolder(tmp_path / "c"))


def test_runs_of_different_settings_are_never_averaged(tmp_path):
    write_run(tmp_path / "a", "erm", 0, 0.6, 0.5, max_epoch=1)
    write_run(tmp_path / "b", "erm", 0, 0.8, 0.5, max_epoch=2)
    table, = tables.pair_tables(tables.collect([tmp_path])).values()
    assert list(table.index) == ["erm max_epoch=1", "erm max_epoch=2", "constant answer"]
    assert list(table["last: OA"][:2]) == ["60.0", "80.0"] and list(table["n"][:2]) == ["1", "1"]


def test_unfinished_runs_make_a_row_partial(tmp_path):
    write_run(tmp_path / "a", "erm", 0, 0.6, 0.5)
    write_run(tmp_path / "b", "erm", 1, 0.8, 0.5, status="interrupted")
    table, = tables.pair_tables(tables.collect([tmp_path])).values()
    assert table.loc["erm", "n"] == "1/2" and table.loc["erm", "last: OA"] == "60.0"


def test_a_repetition_and_a_damaged_folder_are_left_out_with_a_word(tmp_path, caplog):
    write_run(tmp_path / "a", "erm", 0, 0.6, 0.5)
    write_run(tmp_path / "b", "erm", 0, 0.9, 0.5)
    write_run(tmp_path / "c", "erm", 1, 0.6, 0.5)
    (tmp_path / "c" / "evaluation.json").write_text('{"rules"')
    write_run(tmp_path / "d", "erm", 2, 0.6, 0.5)
    (tmp_path / "d" / "run.json").unlink()
    table, = tables.pair_tables(tables.collect([tmp_path])).values()
    assert table.loc["erm", "last: OA"] == "60.0" and table.loc["erm", "n"] == "1"
    assert "repeats the setting" in caplog.text and caplog.text.count("damaged") == 2


def test_a_finished_run_goes_before_an_unfinished_twin_and_an_oracle_before_none(tmp_path):
    write_run(tmp_path / "a", "erm", 0, 0.1, 0.1, status="failed")
    write_run(tmp_path / "b", "erm", 0, 0.6, 0.5)
    write_run(tmp_path / "c", "erm", 0, 0.6, 0.5, oracle=0.9)
    honest, oracle = tables.pair_tables(tables.collect([tmp_path])).values()
    assert honest.loc["erm", "n"] == "1" and honest.loc["erm", "last: OA"] == "60.0"
    assert oracle.loc["erm", "oracle: OA"] == "90.0"


def test_runs_on_different_data_are_never_averaged(tmp_path):
    write_run(tmp_path / "a", "erm", 0, 0.9, 0.5, data="real")
    write_run(tmp_path / "b", "erm", 1, 0.1, 0.5, data="surrogate")
    table, = tables.pair_tables(tables.collect([tmp_path])).values()
    assert len(table) == 3 and all(" data=" in name for name in table.index[:2])


def test_gradients_of_different_pairs_are_never_averaged(tmp_path):
    write_run(tmp_path / "a", "s2amsnet paper", 0, 0.9, 0.5)
    write_run(tmp_path / "b", "s2amsnet paper", 0, 0.9, 0.5, target="C")
    table = tables.gradient_table(tables.collect([tmp_path]))
    assert set(table["n"]) == {"1"} and len(table) == 4


def test_mean_and_sample_deviation():
    assert tables.mean_std(pd.Series([0.5])) == "50.0"
    assert tables.mean_std(pd.Series([0.1, 0.2, 0.3])) == "20.0 ± 10.0"


def test_one_run_as_text(tmp_path):
    write_run(tmp_path / "a", "erm", 3, 0.6, 0.5, oracle=0.7)
    text = tables.run_table(RunFolder(tmp_path / "a"))
    assert "seed 3" in text and "n=1" in text and "oracle; not an honest score" in text
    assert "| y     | –        | 0      |" in text


def test_no_runs_is_an_error(tmp_path):
    with pytest.raises(UserError, match="No finished run"):
        tables.collect([tmp_path])


def test_a_table_is_put_between_its_marks(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("above <!-- demo/pairs -->old<!-- /demo/pairs --> below")
    tables.insert(path, "demo/pairs", "| new |")
    assert path.read_text() == "above <!-- demo/pairs -->\n| new |\n<!-- /demo/pairs --> below"
    with pytest.raises(UserError, match="switches/pairs"):
        tables.insert(path, "switches/pairs", "")


def test_tables_in_the_readme_are_those_under_figure():
    root = Path(__file__).resolve().parent.parent
    readme = (root / "README.md").read_text()
    names = re.findall(r"<!-- (\w+/\w+) -->", readme)
    assert names
    for name in names:
        shown = readme.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- /{name} -->")[0]
        made = (root / "figure" / f"{name}.md").read_text().partition("\n\nMade by")[0].rstrip("\n")
        assert shown == made
