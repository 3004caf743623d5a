"""Costs, published numbers and the comparison of two runs."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

import main
from conftest import build
from datasets.benchmark import BENCHMARK
from model.errors import ConfigError, UserError
from model.methods import REGISTRY, Task
from model.seeding import Streams
from table_runs import made, texts, write_run
from utils.run.build import build_method
from utils.run.config import TrainConfig, check
from utils.run.estimate import fresh_method, made_up
from utils.run.folder import RunFolder
from utils.tables import collect, compare, cost, layouts, published
from utils.tables.compare import Comparison, compare_runs
from utils.tables.runs import named

TASK = Task(bands=14, n_classes=3, patch_size=5)


# --- cost -------------------------------------------------------------------------------------------------------------

def config(**entries):
    sizes = {"pro_dim": 16, "GIN_ch": 4, "mmirn_filters": 2, "patch_size": 5, "batch_size": 64}
    return check(TrainConfig(**sizes | entries))


@pytest.mark.slow_but("{'method': 'erm'}")
@pytest.mark.parametrize("entries", [{"method": "erm"}, {"recipe": "released"}], ids=str)
def test_parameters_and_operations_of_a_patch_are_those_of_the_layers(entries):
    chosen = config(backend="reference", **entries)
    found = cost.count(chosen, TASK)
    method = build_method(chosen, TASK, Streams(0, torch.device("cpu")), torch.device("cpu"))
    assert found.patch == pytest.approx(operations(method.discriminator), rel=0.02)
    assert found.parameters == sum(p.numel() for p in method.parameters())
    assert found.classifier == sum(p.numel() for p in method.discriminator.parameters())


def operations(network) -> int:
    """Two per multiply-add of the convolutions and linear layers that one patch goes through, by their weights."""
    counted = []

    def count(layer, _, output):
        counted.append(2 * layer.weight.numel() * output[0, 0].numel())
    for layer in network.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(count)
    network.eval()(torch.zeros(1, TASK.bands, TASK.patch_size, TASK.patch_size))
    return sum(counted)


def test_an_erm_step_is_three_predictions_without_the_gradient_of_the_patches():
    """Forward, and a backward of twice that, in which the first stage gives the input no gradient."""
    found, n = cost.count(config(method="erm"), TASK), 64
    assert 2.5 * n * found.patch < found.step < 3 * n * found.patch


@pytest.mark.slow
def test_an_extrapolated_step_is_the_step_itself():
    chosen = config(recipe="released", batch_size=20, backend="reference")
    with FlopCounterMode(display=False) as counter:
        fresh_method(chosen, TASK, cost.CPU).update(*made_up(TASK, 20, cost.CPU))
    assert cost.count(chosen, TASK).step == counter.get_total_flops()


def test_extrapolation_is_exact_for_a_parabola():
    value = lambda n: 7 + 3 * n + 5 * n ** 2
    assert cost.extrapolated((4, 8, 12), [value(4), value(8), value(12)], 333) == value(333)


@pytest.mark.slow_but("dsan", "svm")
@pytest.mark.parametrize("name", [name for name in REGISTRY if name not in ("s2amsnet", "erm")])
def test_every_method_can_be_counted(name):
    found = cost.count(config(method=name, patch_size=7), Task(14, 3, 7))
    assert found.parameters >= found.classifier >= 0 and (found.step > 0) == (found.parameters > 0)


def test_the_averaged_network_is_not_counted_twice():
    assert cost.count(config(method="erm", weight_averaging=0.9), TASK) == \
        cost.count(config(method="erm"), TASK)


def test_seconds_of_records_that_stand_for_several_epochs(tmp_path):
    run = RunFolder(tmp_path)
    for epoch in (2, 4, 5):
        run.append(run.epochs, {"epoch": epoch, "seconds": 10.0})
    assert cost.seconds_per_epoch(run) == 6.0


def test_cost_of_runs(pair, tmp_path, caplog):
    run = pair.run("--method", "erm", save_path=tmp_path / "runs")
    run.checkpoint.unlink()                                  # records alone are what the table is made of
    about = run.read_run()
    other = RunFolder(shutil.copytree(run.path, tmp_path / "runs" / "other"))
    other.config.write_text(other.config.read_text().replace("lr: 0.001", "lr: 0.002"))
    other.run.write_text(json.dumps({name: value for name, value in about.items() if name != "patches_per_second"}))
    other.update_run(device="another GPU", seconds=50.0)
    assert main.main(["tables", str(tmp_path / "runs"), "--layout", "cost"]) == 0
    table, = made(tmp_path / "runs", "cost")
    row, missing = texts(table)["erm lr=0.001"], texts(table)["erm lr=0.002"]
    discriminator = build(48, 7, 5, method="erm").discriminator
    assert row["parameters"] == row["of the classifier"] == f"{sum(p.numel() for p in discriminator.parameters()):,}"
    assert row["patches/s"] == f"{about['patches_per_second']:,.0f}" and row["batch"] == "48"
    assert missing["s/run"] == "50.0" and "another GPU" in missing["trained on"] and missing["patches/s"] == "–"
    assert missing["parameters"] == row["parameters"]
    damaged = [{"bands": None}, {"bands": 0}, {"seconds": "long"}, {"classes": []}]
    for number, damage in enumerate(damaged):
        bad = RunFolder(shutil.copytree(run.path, tmp_path / "runs" / f"bad{number}"))
        bad.config.write_text(bad.config.read_text().replace("lr: 0.001", f"lr: 0.1{number}"))
        bad.update_run(seed=number)
        bad.run.write_text(json.dumps(about | damage))
    (bad.path / "epochs.jsonl").write_text('{"epoch": 0}\n')
    caplog.clear()
    assert main.main(["tables", str(tmp_path / "runs"), "--layout", "cost"]) == 0
    for number in range(len(damaged)):
        assert f"{tmp_path / 'runs' / f'bad{number}'} is left out: its records are damaged: " in caplog.text


# --- published numbers ------------------------------------------------------------------------------------------------

def houston(folder, oracle=0.5, pixels=sum(BENCHMARK["Houston18"].class_counts), digest="real"):
    write_run(folder, "erm", 0, 0.4, 0.4, oracle=oracle)
    run = RunFolder(folder)
    run.update_run(source="Houston13", target="Houston18", labelled_target_pixels=pixels, sha256={"source/a": digest})
    return named(collect.collect([folder]))


def test_published_numbers_stand_beside_our_oracle_by_the_users_word(tmp_path):
    runs = houston(tmp_path / "run")
    assert published.published_tables(runs, by_word=False) == []
    table, = published.published_tables(runs, by_word=True)
    assert "PUBLISHED" in table.title and "oracle; not an honest score" in table.title
    rows = texts(table)
    assert rows["erm (ours)"] == {"n": "1", "OA": "50.0", "AA": "40.0", "κ": "30.0"}
    assert rows["SDEnet (published)"] == {"n": "–", "OA": "78.29 ± 0.75", "AA": "70.05", "κ": "62.65 ± 1.45"}
    assert rows["LLURnet (published)"]["AA"] == "–" and "10.1109/TGRS.2025.3639448" in table.notes[-1]
    assert not any(cell.mark for row in table.rows.values() for cell in row.values())


def test_without_oracle_nothing_of_ours_stands_beside_them(tmp_path):
    table, = published.published_tables(houston(tmp_path / "run", oracle=None), by_word=True)
    assert not any("(ours)" in row for row in table.rows) and "None of our runs" in table.notes[0]


def test_crops_and_simulated_scenes_get_no_published_numbers(tmp_path):
    with pytest.raises(UserError, match="none of these runs has such a pair"):
        published.published_tables(houston(tmp_path / "crop", pixels=900), by_word=True)
    write_run(tmp_path / "simulated", "erm", 0, 0.4, 0.4, oracle=0.4)
    with pytest.raises(UserError, match="none of these runs"):
        layouts.make("pairs", collect.collect([tmp_path / "simulated"]), published=True)


def test_files_with_a_known_digest_need_no_word(tmp_path):
    content = yaml.safe_load(published.FILE.read_text())
    content["pairs"]["Houston13-Houston18"] = {"source/a": "real"}
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump(content))
    assert len(published.published_tables(houston(tmp_path / "a"), False, path)) == 1
    assert published.published_tables(houston(tmp_path / "b", digest="surrogate"), False, path) == []


def test_published_numbers_are_complete():
    content = yaml.safe_load(published.FILE.read_text())
    values = [(method, pair, metric, value) for method, pairs in content["methods"].items()
              for pair, metrics in pairs.items() for metric, value in metrics.items()]
    assert len(values) == 116 and len(content["methods"]) == 13
    assert {pair for _, pair, _, _ in values} == set(content["pairs"])
    assert all(value.keys() == ({"mean"} if metric == "AA" else {"mean", "std"}) for _, _, metric, value in values)
    assert all(name.split("-")[0] in BENCHMARK and name.split("-")[1] in BENCHMARK for name in content["pairs"])


# --- compare ----------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_two_runs_are_compared_on_the_targets_labels(pair, tmp_path, capsys):
    first, second = (pair.run("--method", name, save_path=tmp_path / "runs") for name in ("erm", "erm_gain"))
    capsys.readouterr()
    words = [str(first.path), str(second.path), "--resamples", "50", "--block", "8", "--out", str(tmp_path / "out")]
    assert main.main(["compare", *words]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() in (tmp_path / "out" / "compare.md").read_text()
    assert (tmp_path / "out" / "compare.tex").read_text().count(r"\end{table}") == 2
    frame = pd.read_csv(tmp_path / "out" / "compare.csv").set_index(["row", "column"])
    scores = [json.loads(run.evaluation.read_text())["rules"]["last"]["target"]["kappa"] for run in (first, second)]
    rows = ["A: erm, seed 333", "B: erm_gain, seed 333"]
    for row, score in zip(rows, scores):
        entry = frame.loc[(row, "κ")]
        assert entry["mean"] == pytest.approx(100 * score, abs=1e-3) and entry["low"] <= entry["mean"] <= entry["high"]
    assert frame.loc[("A − B", "κ")]["mean"] == pytest.approx(100 * (scores[0] - scores[1]), abs=1e-3)


def test_known_maps(caplog):
    rng = np.random.default_rng(0)
    positions, truth = np.argwhere(np.ones((32, 32), bool)), rng.integers(3, size=1024)
    worse = np.where(rng.random(1024) < 0.3, (truth + 1) % 3, truth)
    choice = Comparison("last", block=16, resamples=100)
    scored, mcnemar = compare.tables(["A", "B"], truth, [truth, worse], positions, 3, "scene", choice)
    wrong = (worse != truth).sum()
    assert texts(mcnemar)["A and B"] == {"only A right": str(wrong), "only B right": "0",
                                         "p": mcnemar.rows["A and B"]["p"].text}
    assert mcnemar.rows["A and B"]["p"].numbers["p"] < 1e-9 and "χ²" in mcnemar.title
    assert scored.rows["A"]["OA"].text == "100.0 [100.0, 100.0]"
    difference = scored.rows["A − B"]["OA"].numbers
    assert difference["mean"] == pytest.approx(100 * wrong / 1024) and 0 < difference["low"] < difference["high"]
    assert "only 4 blocks" in caplog.text and "4 blocks of 16×16" in scored.title and "rule last" in scored.title


@pytest.mark.slow
def test_runs_that_cannot_be_compared(pair, tmp_path):
    run = pair.run("--method", "svm", save_path=tmp_path / "a")
    lonely = pair.run("--method", "svm", "--target_name", "null", save_path=tmp_path / "b")
    other = pair.run("--method", "svm", "--target_name", str(pair.source), save_path=tmp_path / "c")
    choice = Comparison("last")
    with pytest.raises(ConfigError, match="without a target"):
        compare_runs(str(run.path), str(lonely.path), choice)
    with pytest.raises(ConfigError, match="different targets"):
        compare_runs(str(run.path), str(other.path), choice)
    with pytest.raises(ConfigError, match="block must be at least 1"):
        compare_runs(str(run.path), str(run.path), Comparison("last", block=0))
