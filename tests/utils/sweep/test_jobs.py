"""How many runs of a sweep go at a time, and with how many threads."""

import json
import math
import os
import re
from functools import partial

import pytest
import torch

from at_work import write_sweep_file
from datasets import formats
from forked import finish
from utils.run.config import TrainConfig
from utils.run.folder import find_runs
from utils.sweep import jobs
from utils.sweep.jobs import at_a_time

CORES, NEEDED = 8, 10 ** 9


@pytest.fixture
def machine(monkeypatch):
    """Eight cores without a GPU, and memory for five runs; returns a function that sets OMP_NUM_THREADS."""
    monkeypatch.setattr(jobs, "cpu_count", lambda: CORES)
    monkeypatch.setattr(jobs, "largest", lambda left: NEEDED)
    monkeypatch.setattr(formats, "free_memory", lambda: 5 * NEEDED)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def set_threads(count: int) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", str(count))
        monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    return set_threads


def choose(number, threads, runs=100, left=100, gpu=0):
    return at_a_time(number, threads, runs, [TrainConfig(seed=seed, gpu=gpu) for seed in range(left)])


def test_every_core_is_used_once(machine, monkeypatch, caplog):
    monkeypatch.setattr(formats, "free_memory", lambda: 100 * NEEDED)
    assert choose(None, None) == (8, 1)
    assert caplog.messages == ["8 runs at a time, 1 thread each, on 8 cores (--jobs, --cpus_per_run)."]
    assert choose(None, 3) == (2, 3) and choose(None, 8) == (1, 8) and choose(None, 20) == (1, 20)
    assert choose(None, None, runs=3, left=3) == (3, 2) and choose(None, 2, runs=3, left=3) == (3, 2)
    assert choose(None, None, runs=1, left=1) == (1, None)             # as PyTorch chooses
    assert choose(None, None, runs=3, left=1) == (3, 2)                # the threads do not depend on what is left


def test_the_threads_of_the_environment_are_those_of_a_run(machine, monkeypatch):
    monkeypatch.setattr(formats, "free_memory", lambda: 100 * NEEDED)
    machine(2)
    assert choose(None, None) == (4, 2) and choose(None, 1) == (8, 1) and choose(None, None, runs=2, left=2) == (2, 2)
    machine(16)
    assert choose(None, None) == (1, 16)


def test_a_number_that_is_asked_for_stands(machine, caplog):
    machine(2)
    assert choose(3, None) == (3, 1) and choose(3, 4) == (3, 4) and choose(1, None) == (1, None)
    assert not caplog.records
    assert choose(6, None) == (6, 1) and choose(100, None, left=5) == (100, 1)
    assert caplog.messages == [
        "Memory is short for 6 runs at a time: one needs up to 1.0 GB, and 5.0 GB is free. --jobs 5 takes less."]


def test_fewer_runs_where_memory_is_short_get_more_threads(machine, monkeypatch, caplog):
    assert choose(None, None) == (5, 1)
    assert caplog.messages[0].endswith("and 5.0 GB is free. So 5 at a time (--jobs sets another number).")
    monkeypatch.setattr(formats, "free_memory", lambda: 2.5 * NEEDED)
    machine(1)
    assert choose(None, None) == (2, 1)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert choose(None, None) == (2, 4)
    monkeypatch.setattr(jobs, "largest", lambda left: math.inf)
    assert choose(None, None) == (1, None) and "one needs more than could be measured" in caplog.messages[-1]


@pytest.mark.parametrize("free, needed", [(None, NEEDED), (NEEDED, None)])
def test_nothing_is_said_where_the_system_does_not_tell(machine, monkeypatch, caplog, free, needed):
    monkeypatch.setattr(formats, "free_memory", lambda: free)
    monkeypatch.setattr(jobs, "largest", lambda left: needed)
    assert choose(None, None) == (8, 1) and choose(9, None) == (9, 1) and len(caplog.messages) == 1


def test_a_single_run_is_not_measured_and_a_gpu_is_not_shared_unasked(machine, monkeypatch):
    monkeypatch.setattr(jobs, "largest", None)
    assert choose(1, None) == (1, None) and choose(4, None, left=1) == (4, 1) and choose(None, 8) == (1, 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose(None, None) == (1, None) and choose(3, None) == (3, 1) and choose(None, 2) == (1, 2)
    monkeypatch.setattr(jobs, "largest", lambda left: NEEDED)
    assert choose(None, None, gpu=-1) == (5, 1)


def test_settings_are_measured_once_and_a_process_that_is_lost_is_no_size(monkeypatch):
    monkeypatch.setattr(jobs, "_measure", lambda settings, parent, speaking: [
        speaking.send(each.patch_size if os.getpid() != parent else None) for each in settings])
    configs = [TrainConfig(seed=seed, patch_size=size) for seed in (0, 1) for size in (5, 9, 7)]
    assert jobs.largest(configs) == 9
    monkeypatch.setattr(jobs, "_measure", lambda settings, parent, speaking: speaking.send(None) or speaking.send(3))
    assert jobs.largest(configs[:2]) is None
    monkeypatch.setattr(jobs, "_measure", lambda settings, parent, speaking: os._exit(9))
    assert jobs.largest(configs) == math.inf


def set_free_memory(count: int) -> None:
    formats.free_memory = lambda: count


@pytest.mark.slow
def test_what_is_said_of_memory_is_what_the_runs_take(pair, tmp_path):
    """Two runs, of which one is refused: the sweep measures the other one, goes on, and lists the failure."""
    file = tmp_path / "sweep.yaml"
    write_sweep_file(file, pair.words("--method", "erm", "--max_epoch", "1"), tmp_path / "runs",
                     variants=[{}, {"training_sample_ratio": 0.999}])
    code, said = finish(["sweep", str(file), "--jobs", "2"], prepare=partial(set_free_memory, 1000))
    assert code == 1 and re.search(r"failed: .*exit code 2: ConfigError: .*training_sample_ratio.*log\.txt", said)
    number, unit = re.search(r"one needs up to ([\d.]+) ([GM]B),", said).groups()
    runs = [run for run in find_runs([tmp_path / "runs"]) if run.evaluation.exists()]
    taken = [json.loads((run.path / "run.json").read_text())["peak_memory_mib"] * 2 ** 20 for run in runs]
    assert len(runs) == 1 and float(number) * {"GB": 1e9, "MB": 1e6}[unit] == pytest.approx(taken[0], rel=0.4)
