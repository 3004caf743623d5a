"""Thousands of run folders: what is read and compared grows with the folders, and no faster.  Calls are counted; the
seconds stand in docs/runs.md."""

import io
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from model import plain
from table_runs import write_run
from utils.run.config import Simulation, TrainConfig, read_config, to_dict, train_parser
from utils.run.records import without_seed
from utils.sweep import file as sweep_file
from utils.sweep.sweep import SweepConfig, sweep_runs
from utils.tables import statistics
from utils.tables.collect import collect
from utils.tables.runs import differing_settings

WRITTEN = "method: erm\nablate: []\ncontrast_layers:\n- 0\n- 4\nsource_ce: 'off'\nseed: 7\nsimulation:\n" \
    "  severity: 2.0\n  seed: 0\n"
LARGEST_ROW = 30_000       # bytes that a run and its row of each rule may take while tables are made


def counted(monkeypatch, owner, name, counts):
    """Count the calls of a function by its first argument."""
    original = getattr(owner, name)

    def count(*args, **options):
        counts[str(args[0])] += 1
        return original(*args, **options)
    monkeypatch.setattr(owner, name, count)


@pytest.fixture
def many(tmp_path):
    """Runs of three settings with 20 seeds each."""
    for lr in (0.1, 0.2, 0.3):
        for seed in range(20):
            write_run(tmp_path / f"{lr}_{seed}", "erm", seed, 0.6 + 0.01 * seed, 0.5, lr=lr, data_path="data")
    return tmp_path


def test_settings_are_parsed_once_for_all_seeds_and_a_file_is_read_once(many, monkeypatch):
    parsed, opened = Counter(), Counter()
    counted(monkeypatch, plain, "parse_yaml", parsed)
    counted(monkeypatch, io, "open", opened)
    runs = collect([many])
    assert len(runs) == 2 * 60 and sorted(set(runs["seed"])) == list(range(20)) and runs["setting"].nunique() == 3
    assert parsed.total() == 3
    files = Counter({path: count for path, count in opened.items() if path.startswith(str(many))})
    assert set(files.values()) == {1}
    assert Counter(Path(path).name for path in files) == dict.fromkeys(
        ("config.yaml", "run.json", "evaluation.json"), 60)


def test_a_table_keeps_little_of_each_run(many):
    collect([many])                                         # what is made once
    tracemalloc.start()
    runs = collect([many])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < LARGEST_ROW * runs["folder"].nunique()


def test_runs_that_differ_in_the_seed_alone_have_their_own_seed_and_what_they_share():
    common, seed = without_seed(WRITTEN)
    assert seed == 7 and without_seed(WRITTEN.replace("seed: 7", "seed: 123")) == (common, 123)
    assert without_seed(WRITTEN.replace("severity: 2.0", "severity: 3.0"))[0] != common
    assert without_seed(WRITTEN.replace("  seed: 0", "  seed: 1"))[0] != common


@pytest.mark.parametrize("text", [
    WRITTEN.replace("seed: 7\n", ""), WRITTEN + "seed: 8\n", WRITTEN + "seed: null\n", WRITTEN + "seed:\n",
    WRITTEN.replace("seed: 7", "seed: 07"), WRITTEN.replace("seed: 7", "seed: -7"), WRITTEN.replace("'off'", "\"off"),
    WRITTEN.replace("'off'", "'off"), WRITTEN.replace("[]", "["), WRITTEN.replace("[]", "&a []"),
    WRITTEN.replace("[]", "|"), WRITTEN + "? a\n", WRITTEN + "'seed': 9\n", WRITTEN + "a: {seed: 3}\n",
    WRITTEN.replace("seed: 7", "seed: " + "9" * 30), WRITTEN.replace("seed: 7\n", "seed: 7  # nine\n")])
def test_a_text_in_another_form_than_the_programs_is_read_by_itself(text):
    assert without_seed(text) is None


def test_settings_are_compared_with_one_another_once():
    class Value:
        compared = 0

        def __ne__(self, other):
            Value.compared += 1
            return False
    names = [f"setting {k}" for k in range(5)]
    assert differing_settings([{name: Value() for name in names} for _ in range(100)]) == []
    assert Value.compared == 100 * len(names)
    assert differing_settings([{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1, "b": 2, "c": 0}]) == ["b", "c"]


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_comparisons_of_a_family_are_tested_in_one_call_with_the_same_result(monkeypatch, alternative):
    rng = np.random.default_rng(0)
    family = [*rng.normal(0.3, 1, (40, 10)), *rng.normal(0.3, 1, (5, 60)), rng.normal(0, 1, 4), np.zeros(6),
              np.zeros(0), np.array([1.0, 1, 2, -3]), np.array([0.0, 1, 2, -3])]
    alone = [statistics.signed_rank(difference, alternative) for difference in family]
    counts = Counter()
    original = statistics.wilcoxon
    monkeypatch.setattr(statistics, "wilcoxon", lambda x, **options: counts.update([x.shape]) or original(x, **options))
    assert statistics.signed_ranks(family, alternative) == alone
    assert counts == {(40, 10): 1, (5, 60): 1, (1, 4): 2, (1, 3): 1}


def test_a_sweep_parses_a_value_once_however_many_runs_have_it(tmp_path, monkeypatch):
    path = tmp_path / "many.yaml"
    path.write_text(yaml.safe_dump({
        "config": ["configs/cpu.yaml"], "settings": {"simulation.severity": 2}, "seeds": list(range(5)),
        "save_path": str(tmp_path), "pairs": [{"source_name": f"S{k}", "target_name": f"T{k}"} for k in range(6)],
        "variants": [{"method": method, "lr": lr} for method in ("erm", "mixup") for lr in (0.1, 1e-3)]}))
    sweep_file._parsed_file.cache_clear()
    sweep_file._parsed_value.cache_clear()
    parser, counts = train_parser(), Counter()
    original = parser.parse_object
    monkeypatch.setattr(parser, "parse_object",
                        lambda *args, **options: counts.update(n=1) or original(*args, **options))
    runs = sweep_runs(path, SweepConfig())
    assert len({run.name for run, _ in runs}) == 6 * 4 * 5
    assert counts["n"] <= 1 + 6 + 6 + 2 + 2 + 2                 # the file; names, methods, rates, severity, folder


@pytest.mark.parametrize("changes", [
    {}, {"lr": "1e-2"}, {"recipe": "robust"}, {"recipe": "paper", "mi_weight": 0}, {"simulation": {"severity": 3}},
    {"ablate": ["no_noise", "no_mixing"]}, {"ablate+": "no_noise"}, {"patience": None}, {"contrast_layers": [0, 4]}])
@pytest.mark.parametrize("files", [[], ["configs/cpu.yaml"], ["configs/simulated.yaml", "configs/method/erm.yaml"]])
def test_settings_parsed_one_by_one_are_those_parsed_together(files, changes):
    one, other = sweep_file.read_alike(files, changes), read_config(*files, **changes)
    assert isinstance(one, TrainConfig) and isinstance(one.simulation, Simulation)
    assert repr(to_dict(one)) == repr(to_dict(other))           # 1 and 1.0 are not the same
