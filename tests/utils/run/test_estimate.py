"""The estimate before training: the probe's arithmetic, and that it leaves no trace in the run."""

import copy
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import build, same_state
from datasets import formats
from fresh import in_a_fresh_process
from model.methods import REGISTRY, Task, method_class
from model.seeding import Streams
from utils import process
from utils.run import checkpoint, estimate
from utils.run.config import TrainConfig, check
from utils.run.estimate import Estimate, Work
from utils.run.predict import BATCH

CPU = torch.device("cpu")
LEARNING = [name for name in REGISTRY if not method_class(name).fits_in_one_epoch]


def config(**entries) -> TrainConfig:
    sizes = {"pro_dim": 8, "GIN_ch": 4, "mmirn_filters": 2, "patch_size": 7, "batch_size": 40}
    return check(TrainConfig(**sizes | entries))


class Pixels(list):
    """Stands for a sampler, of which the estimate wants the number of patches, and where they lie: far apart."""

    repeat, patch_size, backend = 5, 7, "auto"

    @property
    def centres(self) -> torch.Tensor:
        return torch.tensor(self)[:, None] * torch.tensor([100, 170])

    def epoch_length(self, batch_size: int) -> int:
        return -(-len(self) * self.repeat // batch_size)


def data(**entries) -> SimpleNamespace:
    """Stands for a run's data: 300 training patches, repeated 5 times."""
    there = {"task": Task(6, 3, 7), "train": Pixels(range(300)), "val": Pixels(range(80)),
             "shifted": range(10), "test": Pixels(range(500)), "unlabelled": None}
    return SimpleNamespace(**there | entries)


class FakeMachine:
    """A clock and a memory that only `work` moves: n patches take so many seconds and bytes."""

    def __init__(self, monkeypatch, seconds, memory):
        self.now, self.held, self.highest, self.sizes = 0.0, 1000, 0, []
        self.seconds, self.memory = seconds, memory
        monkeypatch.setattr(estimate.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(process, "reset_peak", lambda device: self.held)
        monkeypatch.setattr(process, "peak", lambda device: self.highest)

    def work(self, n):
        def run():
            self.sizes.append(n)
            self.now += self.seconds(n)
            self.highest = self.held + self.memory(n)
        return run


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 31, 33, 64, 128, 200, 256, 1000])
def test_what_grows_in_a_straight_line_is_extrapolated_exactly(monkeypatch, n):
    machine = FakeMachine(monkeypatch, lambda n: 0.25 + 0.5 * n, lambda n: 4000 + 100 * n)
    found = estimate.probe(machine.work, n, CPU, 2)
    assert found == Work(pytest.approx(0.25 + 0.5 * n), pytest.approx(4000 + 100 * n))


def test_an_eighth_and_a_quarter_of_the_batch_are_probed_and_little_besides(monkeypatch):
    machine = FakeMachine(monkeypatch, lambda n: 0.001 * n, lambda n: n)
    estimate.probe(machine.work, 256, CPU, 1)
    assert sorted(set(machine.sizes)) == [32, 64] and sum(machine.sizes) <= 256
    machine.sizes.clear()
    estimate.probe(machine.work, 256, CPU, 5)
    assert sum(machine.sizes) <= 256 + 4 * 96


def test_what_takes_long_is_timed_once(monkeypatch):
    machine = FakeMachine(monkeypatch, lambda n: 10.0 * n, lambda n: n)
    estimate.probe(machine.work, 256, CPU, 5)
    assert sum(machine.sizes) <= 256


def test_noise_never_extrapolates_below_what_was_measured():
    assert estimate.straight(32, 64, 256, 0.5, 0.4) == 0.5
    assert estimate.straight(32, 64, 256, 0.4, 0.5) == pytest.approx(1.1)
    assert estimate.straight(1, 1, 1, 0.4, 0.3) == 0.4


@pytest.mark.parametrize("predicted, interval", [(100, 1), (5 * BATCH, 4)])
def test_an_epoch_is_its_steps_and_its_share_of_an_evaluation(monkeypatch, predicted, interval):
    sizes = []
    found = iter([Work(2.0, 700), Work(3.0, 500)])
    monkeypatch.setattr(estimate, "predictions", lambda config, data: predicted)
    monkeypatch.setattr(estimate, "probe", lambda work, n, device, timings: sizes.append(n) or next(found))
    steps, batches = 38, max(1, predicted / BATCH)                # 1500 patches in batches of 40
    assert estimate.estimate(config(eval_interval=interval), data(), CPU, 1) == \
        Estimate(2.0, 2.0 * steps + (2.0 + 3.0 * batches) / interval, 700)
    assert sizes == [40, min(BATCH, predicted)]


def test_the_batch_is_never_larger_than_an_epoch(monkeypatch):
    sizes = []
    monkeypatch.setattr(estimate, "probe", lambda work, n, device, timings: sizes.append(n) or Work(1.0, None))
    found = estimate.estimate(config(batch_size=256), data(train=Pixels(range(20))), CPU, 1)
    assert sizes[0] == 100 and found.memory is None


def test_what_an_evaluation_predicts():
    views = len(estimate.VIEWS) * 10
    assert estimate.predictions(config(), data()) == 80 + views
    assert estimate.predictions(config(oracle=True), data()) == 80 + views + 500
    assert estimate.predictions(config(), data(unlabelled=range(60))) == 80 + views + 60
    assert estimate.predictions(config(batchnorm_statistics="source"), data()) == 80 + views + 300


def random_states() -> list:
    """PyTorch's, numpy's and Python's own generators."""
    return [torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()]


@pytest.mark.slow_but("s2amsnet", "erm")
@pytest.mark.parametrize("name", LEARNING)
def test_every_method_is_probed_and_no_random_stream_moves(name):
    method, streams = build(method=name, patch_size=7), Streams(333, CPU)

    def states():
        return [method.training_state(), method.streams.state_dict(), streams.state_dict(), random_states()]
    before = copy.deepcopy(states())
    found = estimate.estimate(config(method=name), data(), CPU, 1)
    assert 0 < found.step < found.epoch and (found.memory is None or found.memory >= 0)
    assert same_state(before, states())


def test_nothing_is_read_compiled_or_recorded():
    chosen = [config(method="htcnn", htcnn_weights="nowhere.pth"), config(cuda_graph=True),
              config(compile=True, backend="reference")]
    for each in chosen:
        method = estimate.fresh_method(each, Task(6, 3, 7), CPU)
        estimate.step_of(method, 5)()
        assert method.fast_step is None
    assert chosen[1].cuda_graph and chosen[2].compile


class Field(Pixels):
    """Stands for a sampler of every pixel of a scene, 700 of them in a row."""

    cube = torch.rand(6, 90, 700)

    @property
    def centres(self) -> torch.Tensor:
        return torch.cartesian_prod(torch.arange(90), torch.arange(700))


@pytest.mark.parametrize("name", ["erm", "htcnn"])
def test_a_scan_is_extrapolated_from_an_eighth_and_a_quarter_of_its_rows(monkeypatch, name):
    machine, rows = FakeMachine(monkeypatch, lambda n: 0.0, lambda n: 4000 + 100 * n), []

    def blocks(scanner, cube, region, rows):
        assert cube is Field.cube and (region.height, region.width) == (90, 700)
        machine.work(rows)()
        yield 0, 0, None

    method = estimate.fresh_method(config(method=name, patch_size=7, backend="reference"), Task(6, 3, 7), CPU)
    monkeypatch.setattr(estimate.Scanner, "blocks", blocks)
    monkeypatch.setattr(estimate.Scanner, "block_rows", lambda scanner, tile, device: rows.append(tile.width) or 64)
    found = estimate.scan_memory(method, data(test=Field(range(63000))), CPU)
    assert found == (pytest.approx(4000 + 6400) if name == "erm" else 0)
    assert machine.sizes == ([8, 16] if name == "erm" else []) and estimate.scan_memory(method, data(), CPU) == 0


def extrapolated_and_taken(n) -> tuple[float | None, float | None]:
    """Bytes of a step with n patches: extrapolated, and taken."""
    method = estimate.fresh_method(config(pro_dim=32, GIN_ch=24), Task(48, 7, 7), CPU)
    found = estimate.probe(lambda n: estimate.step_of(method, n), n, CPU, 1)
    return found.memory, estimate.memory_of(estimate.step_of(method, n), CPU)


@pytest.mark.slow
def test_memory_of_a_step():
    """In a fresh process: holes that earlier tests left in this one's heap would show."""
    found, taken = in_a_fresh_process(extrapolated_and_taken, 128)
    if taken is None:
        pytest.skip("this system does not tell the peak of a part of a process")
    assert found == pytest.approx(taken, rel=0.5)                      # the quarter alone would be far below


@pytest.mark.slow
def test_a_run_is_the_same_with_and_without_the_estimate(pair, tmp_path, caplog, monkeypatch):
    runs = []
    for patches in (1, 10 ** 9):
        monkeypatch.setattr(estimate, "PATCHES", patches)
        runs.append(pair.run("--recipe", "robust", "--max_epoch", "1", save_path=tmp_path / str(patches)))
    assert sum(record.message.startswith("Estimate: ") for record in caplog.records) == 1
    one, other = (checkpoint.load(run.checkpoint) for run in runs)
    assert all(same_state(one[part], other[part]) for part in ("method", "streams"))
    assert runs[0].evaluation.read_text() == runs[1].evaluation.read_text()
    assert runs[0].records(runs[0].diagnostics) == runs[1].records(runs[1].diagnostics)


def test_the_line():
    found = estimate.Estimate(step=2.4, epoch=28.8, memory=2.1e9)
    assert estimate.describe(found, 400, 23_040_000_000) == \
        "about 2.4 s a step, 3 h 12 min for 400 epochs, 2.1 GB of memory (23.0 GB free)"
    assert estimate.describe(replace(found, memory=3.5e7), 1, None).endswith("1 epoch, 35 MB of memory")
    assert estimate.describe(found, 1, None) == "about 2.4 s a step, 29 s for 1 epoch, 2.1 GB of memory"
    assert estimate.describe(replace(found, memory=None), 1, 10 ** 9) == "about 2.4 s a step, 29 s for 1 epoch"


def test_free_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(formats, "MEMINFO", tmp_path / "meminfo")
    assert estimate.free_memory(CPU) is None
    (tmp_path / "meminfo").write_text("MemTotal:       24000000 kB\nMemAvailable:   2000000 kB\n")
    assert estimate.free_memory(CPU) == 2_048_000_000


@pytest.mark.parametrize("free, warned", [(10 ** 12, False), (10 ** 4, True), (None, False)])
def test_training_says_what_it_will_cost(pair, tmp_path, caplog, monkeypatch, free, warned):
    monkeypatch.setattr(estimate, "PATCHES", 1)
    monkeypatch.setattr(estimate, "free_memory", lambda device: free)
    monkeypatch.setattr(process, "reset_peak", lambda device: 0)
    pair.run("--method", "erm", "--max_epoch", "1", save_path=tmp_path)
    line, = [record.message for record in caplog.records if record.message.startswith("Estimate: about ")]
    assert " a step, " in line and " for 1 epoch, " in line
    said = [record for record in caplog.records if "Memory is short" in record.message]
    assert [record.levelname for record in said] == ["WARNING"] * warned
    assert all("--batch_size" in record.message for record in said)


def test_no_memory_is_said_where_the_system_does_not_tell(pair, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(estimate, "PATCHES", 1)
    monkeypatch.setattr(process, "_CLEAR_REFS", tmp_path / "nothing" / "clear_refs")
    pair.run("--method", "erm", "--max_epoch", "1", save_path=tmp_path)
    line, = [record.message for record in caplog.records if record.message.startswith("Estimate: about ")]
    assert line.endswith(" for 1 epoch")


@pytest.mark.parametrize("name, epochs", [("svm", 3), ("random_forest", 3), ("erm", 0), ("erm", 5)])
def test_nothing_is_said_of_learning_in_one_epoch_of_a_finished_run_and_of_a_few_steps(caplog, name, epochs):
    assert 5 * 1500 < estimate.PATCHES                                 # what five epochs train on
    estimate.announce(config(method=name), data(train=Pixels(range(10 ** 6))) if epochs == 3 else data(), CPU, epochs)
    assert not caplog.records


def test_the_longer_the_run_the_more_often_is_timed(monkeypatch):
    asked = []
    monkeypatch.setattr(estimate, "estimate",
                        lambda config, data, device, timings: asked.append(timings) or Estimate(1.0, 1.0, None))
    for epochs in (6, 12, 400):
        estimate.announce(config(method="erm"), data(), CPU, epochs)
    assert asked == [1, 2, estimate.MOST]
