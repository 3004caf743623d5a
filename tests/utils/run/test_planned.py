"""What a sweep writes about the runs that it means to do."""

import json
from dataclasses import replace

import pytest

from model.errors import RunFolderError
from utils.run.config import parse_train, to_dict
from utils.run.planned import FILE, planned, write_plan


def config(seed: int, *words: str):
    return replace(parse_train(["--method", "erm", *words]), seed=seed)


def test_a_plan_names_every_setting_once_with_its_seeds(tmp_path):
    slow, fast = ["--lr", "0.1"], ["--lr", "0.3"]
    again = replace(config(1, *slow), run_name="x", resume="y")
    write_plan(tmp_path, "table", [config(0, *slow), config(0, *fast), again])
    write_plan(tmp_path, "other", [config(7)])
    text = (tmp_path / FILE).read_text()
    content = json.loads(text)
    assert text.endswith("}\n") and list(content) == ["table", "other"]
    assert [(part["seeds"], part["settings"]["lr"]) for part in content["table"]] == [([0, 1], 0.1), ([0], 0.3)]
    named = to_dict(config(0, *slow))
    assert content["table"][0]["settings"] == {name: named[name] for name in named.keys() - {"seed", "run_name", "resume"}}
    write_plan(tmp_path, "table", [config(5)])
    content = json.loads((tmp_path / FILE).read_text())
    assert {sweep: [part["seeds"] for part in plan] for sweep, plan in content.items()} == {"table": [[5]], "other": [[7]]}


def test_a_damaged_plan_is_not_replaced(tmp_path):
    for damage in ("{", '{"table": [{"seeds": "all"}]}'):
        (tmp_path / FILE).write_text(damage)
        with pytest.raises(RunFolderError, match=FILE):
            write_plan(tmp_path, "table", [config(0)])
        assert (tmp_path / FILE).read_text() == damage


def test_plans_are_read_back_at_and_below_the_folders_and_damaged_ones_named(tmp_path, caplog):
    for name, seed in (("b/c", 2), ("a", 1), ("d", 3)):
        (tmp_path / name).mkdir(parents=True)
        write_plan(tmp_path / name, "table", [config(seed), config(seed + 10)])
    unknown = json.loads((tmp_path / "d" / FILE).read_text())
    unknown["table"][0]["settings"]["colour"] = "blue"
    (tmp_path / "d" / FILE).write_text(json.dumps(unknown))
    (tmp_path / FILE).write_text("{")
    found = list(planned([tmp_path / "a", tmp_path]))
    assert [seeds for _, seeds in found] == [[1, 11], [1, 11], [2, 12]]
    assert to_dict(found[0][0]) == to_dict(replace(config(1), seed=found[0][0].seed))
    told = [record.getMessage() for record in caplog.records if "is left out: " in record.getMessage()]
    assert len(told) == 2 and told[0].startswith(f"{tmp_path / 'd' / FILE} is left out: colour: ")
    assert told[1].startswith(f"{tmp_path / FILE} is left out: ")
    assert list(planned([str(tmp_path / "b" / "c")]))[0][1] == [2, 12]
